"""Weightings that align the task gradients, or the direction with them.

With unit gradients `e_t = g_t / n_t` as the rows of `E`, and the spectrum of
their cosines `K = EE' = V diag(l) V'`.
"""

from typing import Any, Literal, NamedTuple

import keras
import tensorflow as tf

from keras_mgda.weightings.normalized_gram import normalized_gram
from keras_mgda.weightings.preference import (
    Numbers,
    PreferenceWeighting,
    shares,
)
from keras_mgda.weightings.weighting import GramWeighting

Scale = Literal["min", "median", "rmse"]
_SCALES = ("min", "median", "rmse")


@keras.saving.register_keras_serializable(package="keras_mgda")
class IMTLG(GramWeighting):
    """The direction with equal projections onto all task gradients.

    ```
    <e_t, d> = <e_s, d>  for all t, s;   sum_t w_t = 1
    ```

    so that `w_t = y_t / n_t / |sum_s y_s / n_s|` with `K y = 1`, by the pseudo-
    inverse. The published formula divides by the sum itself, and climbs every
    loss where that is negative. Where the sum is next to zero, the absolute
    values of the weights add up to 1 instead.

    If the task gradients are linearly dependent, there may be no `y` with
    `K y = 1`, and then the one that comes closest is taken. Where the unit
    gradients add up to zero, as those of two opposite tasks, that is none:
    `K 1 = 0`. Along `y = 1`, `w_t ~ 1 / n_t`, all projections are equal then,
    for `d = 0`, and so are those along no other positive weights.

    Scale-invariant; permutation-equivariant; non-conflicting for linearly
    independent task gradients. Not on the simplex, as weights may be negative;
    not linear under scaling.

    References:
        Liu et al., 2021. Towards Impartial Multi-task Learning, the closed form
        of IMTL-G. https://openreview.net/forum?id=IMPnRXEWpvr
    """

    scale_invariant = True

    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        return _imtl_g(gram)


@keras.saving.register_keras_serializable(package="keras_mgda")
class ConFIG(PreferenceWeighting):
    """The direction with equal cosines to all task gradients.

    ```
    x = E^+ p,   d = (sum_t <g_t, x>) x / ||x||^2
    ```

    with the preference `p` among the cosines: a direction of IMTL-G, as long as
    the projections of all task gradients onto it together. With `y = K^+ p`,
    `x = E'y`: the Gram matrix is all that it takes.

    Scale-invariant; permutation-equivariant; linear under scaling;
    non-conflicting for linearly independent task gradients. Not on the simplex.

    Args:
        preference: as in `PreferenceWeighting`.

    References:
        Liu, Chu & Thuerey, 2025. ConFIG: Towards Conflict-free Training of
        Physics Informed Neural Networks, equation 2.
        https://arxiv.org/abs/2408.11104
    """

    scale_invariant = True

    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        return _config(gram, self.preference_of(gram))


@keras.saving.register_keras_serializable(package="keras_mgda")
class AlignedMTL(PreferenceWeighting):
    """The sum of the orthogonal gradients nearest to the task gradients.

    ```
    min_J'  ||J - J'||_F^2   s.t.   J' J'' = s^2 I;   d = J'' p
    ```

    in which every principal component of the task gradients `J` is as long as
    the shortest, `s^2 = min(l)` over the positive eigenvalues `l` of `G`:
    `w = s V diag(l)^(-1/2) V' p`.

    Scale-invariant; permutation-equivariant. Not non-conflicting (though each
    `<g'_t, d>` is positive), not on the simplex, not linear under scaling.

    Eigenvalues count as zero by the cosines, so that a small task gradient is
    none of them; in the authors' code, and in TorchJD, one whose norm is a few
    thousand times smaller than another's is dropped as rounding.

    Args:
        preference: as in `PreferenceWeighting`.
        scale: `s^2`: the `"min"` or `"median"` of the positive eigenvalues, or
            their mean (`"rmse"`).

    Raises:
        ValueError: for another scale, and as in `PreferenceWeighting`.

    References:
        Senushkin et al., 2023. Independent Component Alignment for Multi-Task
        Learning, algorithm 1. https://arxiv.org/abs/2305.19000
    """

    scale_invariant = True

    def __init__(
        self,
        preference: Numbers | None = None,
        scale: Scale = "min",
    ) -> None:
        super().__init__(preference)
        if scale not in _SCALES:
            raise ValueError(
                f"`scale` must be one of {_SCALES}. Received: {scale!r}."
            )
        self.scale = scale

    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        return _aligned(gram, self.preference_of(gram), self.scale)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale}


# Not compiled for XLA by themselves: in a graph without it, TensorFlow has an
# eigensolver of its own, which takes a tenth of the time of XLA's.


@tf.function(autograph=False)
def _imtl_g(gram: tf.Tensor) -> tf.Tensor:
    n, K, active = normalized = normalized_gram(gram)
    ones = tf.cast(active, K.dtype)
    y = _solve(K, ones)
    cancel = tf.reduce_all(y == 0)  # the unit gradients add up to zero
    v = tf.where(active, tf.where(cancel, ones, y) / n, 0)
    total, size = tf.abs(tf.reduce_sum(v)), tf.reduce_sum(tf.abs(v))
    divisor = tf.where(total > 1e-6 * size, total, size)
    return normalized.task_weights(tf.math.divide_no_nan(v, divisor))


@tf.function(autograph=False)
def _config(gram: tf.Tensor, preference: tf.Tensor) -> tf.Tensor:
    n, K, active = normalized = normalized_gram(gram)
    y = _solve(K, shares(preference, active))
    Ky = tf.linalg.matvec(K, y)
    projections = tf.tensordot(n, Ky, 1)
    y *= tf.math.divide_no_nan(projections, tf.tensordot(y, Ky, 1))
    return normalized.task_weights(y / n)


@tf.function(autograph=False)
def _aligned(gram: tf.Tensor, preference: tf.Tensor, scale: Scale) -> tf.Tensor:
    n, K, active = normalized = normalized_gram(gram)
    m = n.shape[0]
    r = tf.where(tf.math.is_nan(n), tf.ones_like(n), n / tf.reduce_max(n))
    cosines = _spectrum(K)
    rank = tf.reduce_sum(tf.cast(cosines.positive, tf.int32))
    eigenvalues, vectors, _ = _spectrum(r[:, None] * cosines.matrix() * r)
    # In ascending order, so that those of rounding come first.
    positive = tf.range(m) >= m - rank
    kept = tf.where(positive, tf.maximum(eigenvalues, 1e-30), 0)
    if scale == "rmse":
        square = tf.reduce_sum(kept) / tf.cast(rank, kept.dtype)
    else:
        middle = (rank - 1) // 2 if scale == "median" else 0
        square = tf.gather(kept, tf.minimum(m - rank + middle, m - 1))
    along = _components(vectors, shares(preference, active))
    along *= tf.sqrt(tf.math.divide_no_nan(square, kept))
    return normalized.task_weights(tf.linalg.matvec(vectors, along))


class _Spectrum(NamedTuple):
    """`V diag(l) V'`.

    Attributes:
        values: `[m]`, `l`, ascending.
        vectors: `[m, m]`, `V`.
        positive: `[m]`, which `l` are more than what rounding leaves of zero.
    """

    values: tf.Tensor
    vectors: tf.Tensor
    positive: tf.Tensor

    def matrix(self) -> tf.Tensor:
        """The matrix without what is rounding."""
        kept = tf.where(self.positive, self.values, 0)
        return tf.matmul(self.vectors * kept, self.vectors, transpose_b=True)


def _spectrum(K: tf.Tensor) -> _Spectrum:
    values, vectors = tf.linalg.eigh(K)
    return _Spectrum(values, vectors, values > _rounding(K))


def _solve(K: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    """`K^+ p`."""
    values, vectors, positive = _spectrum(K)
    along = tf.where(positive, _components(vectors, p) / values, 0)
    return tf.linalg.matvec(vectors, along)


def _components(vectors: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    """`V'p`, zero where it is no more than rounding: small `l` divide it."""
    along = tf.linalg.matvec(vectors, p, transpose_a=True)
    return tf.where(tf.abs(along) > _rounding(vectors) * tf.norm(p), along, 0)


def _rounding(K: tf.Tensor) -> float:
    """How far entries of at most 1, rounded to float32, move eigenvalues."""
    return K.shape[0] * 2.0**-23
