"""Gram matrices as norms and cosines, which scale does not spoil."""

from typing import NamedTuple

import tensorflow as tf

from keras_mgda.weightings.weighting import ASYMMETRY


class Factors(NamedTuple):
    """A Gram matrix as `G_ts = n_t n_s K_ts`, in float64.

    Attributes:
        norms: `[m]`, `n_t = ||g_t||`; for a zero gradient that of the largest.
            All NaN for a matrix that is no Gram matrix.
        cosines: `[m, m]`, `K`, symmetric; zero where a gradient is.
        active: `[m]`, bool: whose gradient is not zero.
    """

    norms: tf.Tensor
    cosines: tf.Tensor
    active: tf.Tensor


def factors(gram: tf.Tensor) -> Factors:
    gram = tf.cast(gram, tf.float64)
    squared_norms = tf.linalg.diag_part(gram)
    active = squared_norms != 0
    norms = tf.sqrt(squared_norms)
    largest = tf.reduce_max(norms)
    # Of the size of the others, so that what divides by it keeps their scale.
    norms = tf.where(active, norms, tf.where(largest > 0, largest, 1))
    cosines = gram / norms[:, None] / norms
    # Not so where either is NaN.
    symmetric = tf.abs(cosines - tf.transpose(cosines)) <= ASYMMETRY
    is_gram = tf.reduce_all(symmetric)
    norms = tf.where(is_gram, norms, float("nan"))
    cosines = (cosines + tf.transpose(cosines)) / 2
    # Zero, too, for what is no Gram matrix: an eigensolver raises on NaN.
    pairs = active[:, None] & active & is_gram
    return Factors(norms, tf.where(pairs, cosines, 0), active)


def finish(w: tf.Tensor, of: Factors) -> tf.Tensor:
    """Task weights as they are returned."""
    w = tf.where(of.active, w, 0)
    w = tf.where(tf.reduce_any(of.active), w, tf.ones_like(w) / w.shape[0])
    is_gram = ~tf.reduce_any(tf.math.is_nan(of.norms))
    return tf.cast(tf.where(is_gram, w, float("nan")), tf.float32)
