"""A Gram matrix as norms and cosines, which the scale of it does not spoil."""

from typing import NamedTuple

import tensorflow as tf

from keras_mgda.linalg.gram import ASYMMETRY

# Half an ulp of float32: by so much rounding moves the cosines, at most.
ROUNDING = 2.0**-24


class NormalizedGram(NamedTuple):
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

    def task_weights(self, w: tf.Tensor) -> tf.Tensor:
        """`w` as a weighting returns it: `[m]`, float32.

        Zero for a zero gradient, `1 / m` if all are, and NaN for a matrix that
        is no Gram matrix.
        """
        w = tf.where(self.active, w, 0)
        any_active = tf.reduce_any(self.active)
        w = tf.where(any_active, w, tf.ones_like(w) / w.shape[0])
        is_gram = ~tf.reduce_any(tf.math.is_nan(self.norms))
        return tf.cast(tf.where(is_gram, w, float("nan")), tf.float32)


def normalized_gram(gram: tf.Tensor) -> NormalizedGram:
    """The norms and cosines of a Gram matrix `[m, m]`."""
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
    return NormalizedGram(norms, tf.where(pairs, cosines, 0), active)
