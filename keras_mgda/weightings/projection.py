"""Weightings that project onto the directions that no task objects to.

With unit gradients `e_t = g_t / n_t` and their cosines `K`, the direction
nearest to `d_0 = sum_t b_t e_t` among those with `<e_t, d> >= r_t` is

    d = d_0 + sum_t y_t e_t,   y = argmin y'Ky / 2 - (r - Kb)'y  over  y >= 0,

a non-negative quadratic program. With `r = 0` they are the dual cone of the
task gradients: along them no loss rises to first order.
"""

from typing import Any

import keras
import tensorflow as tf

from keras_mgda.linalg import min_norm_point, non_negative_minimum
from keras_mgda.weightings.normalized_gram import ROUNDING, normalized_gram
from keras_mgda.weightings.preference import PreferenceWeighting, shares
from keras_mgda.weightings.weighting import GramWeighting


@keras.saving.register_keras_serializable(package="keras_mgda")
class UPGrad(PreferenceWeighting):
    """The mean of the task gradients, each projected onto the dual cone.

    ```
    d = sum_t p_t P(g_t),   P(x) = argmin_d ||d - x||  s.t.  <g_s, d> >= 0
    ```

    for the preference `p`, so that `w = sum_t p_t v_t` with
    `v_t = argmin_v v'Gv` subject to `v >= e_t` (the unit vector of `t`). It is
    the sum of `m` quadratic programs that share their matrix.

    Non-conflicting; scale-invariant (`c G` gives the same as `G`); permutation-
    equivariant; linear under scaling of the task losses. Not on the simplex: it
    is the mean where no tasks conflict, and its weights add up to 1 or more.

    Differs from TorchJD, which adds `1e-4` of the trace to the diagonal of `G`,
    and takes the mean when the trace is below `1e-4`. Here nothing regularizes
    but the rounding of a float32 Gram matrix, and scale is free.

    Args:
        preference: as in `PreferenceWeighting`.

    Example:

    >>> from keras_mgda import weightings
    >>> w = weightings.UPGrad()([[18.0, -22.0], [-22.0, 38.0]])
    >>> [round(float(weight), 4) for weight in w]
    [1.1111, 0.7895]

    References:
        Quinton & Rey, 2024. Jacobian Descent for Multi-Objective Optimization,
        section 3. https://arxiv.org/abs/2406.16232
    """

    scale_invariant = True

    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        return _upgrad(gram, self.preference_of(gram))


@keras.saving.register_keras_serializable(package="keras_mgda")
class DualProj(PreferenceWeighting):
    """The mean of the task gradients, projected onto the dual cone.

    ```
    d = argmin_d ||d - sum_t p_t g_t||   s.t.   <g_t, d> >= 0
    ```

    for the preference `p`, so that `w = argmin_v v'Gv` subject to `v >= p`.

    Non-conflicting; scale-invariant; permutation-equivariant. Not on the
    simplex, and not linear under scaling of the task losses.

    Args:
        preference: as in `PreferenceWeighting`.

    References:
        Lopez-Paz & Ranzato, 2017. Gradient Episodic Memory for Continual
        Learning, equation 11. https://arxiv.org/abs/1706.08840
    """

    scale_invariant = True

    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        return _dual_proj(gram, self.preference_of(gram))


@keras.saving.register_keras_serializable(package="keras_mgda")
class CAGrad(GramWeighting):
    """The direction near the mean that is best for its worst task.

    ```
    max_d  min_t <g_t, d>   s.t.   ||d - g_0|| <= c ||g_0||,   g_0 = mean(g)
    ```

    Solved exactly: `d` is the projection of `g_0` onto `<g_t, d> >= z` for the
    largest `z` that leaves it in the ball. The distance of the projection is
    convex in `z`, and its derivative known, so that Newton's method finds `z`.

    Scale-invariant; permutation-equivariant. Non-conflicting for `c >= 1`, and
    below only where the ball reaches the dual cone; not on the simplex, not
    linear under scaling. Where tasks are Pareto stationary and `d` not unique,
    it is the one nearest to `g_0`.

    The authors' code may divide `d` by `1 + c^2`; that is a learning rate.

    Args:
        c: radius of the ball in units of `||g_0||`; 0 is the mean.

    Raises:
        ValueError: if `c` is negative or not finite.

    References:
        Liu et al., 2021. Conflict-Averse Gradient Descent for Multi-task
        Learning, algorithm 1. https://arxiv.org/abs/2110.14048
    """

    scale_invariant = True

    def __init__(self, c: float = 0.5) -> None:
        if not 0 <= c < float("inf"):
            raise ValueError(
                f"`c` must be finite and not negative. Received: {c!r}."
            )
        self.c = c

    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        return _cagrad(gram, tf.constant(self.c, tf.float64))

    def get_config(self) -> dict[str, Any]:
        return {"c": self.c}


@tf.function(jit_compile=True, autograph=False)
def _upgrad(gram: tf.Tensor, preference: tf.Tensor) -> tf.Tensor:
    n, K, active = normalized = normalized_gram(gram)
    b = shares(preference, active) * n
    m = b.shape[0]

    def project_one(t: Any, y: Any) -> Any:
        alone = tf.one_hot(t, m, dtype=b.dtype)
        projected = alone + _onto(K, 0.0, alone, _norm(K, alone))
        return t + 1, y + tf.gather(b, t) * projected

    start = (0, tf.zeros_like(b))
    _, y = tf.while_loop(lambda t, y: t < m, project_one, start)
    return normalized.task_weights(y / n)


@tf.function(jit_compile=True, autograph=False)
def _dual_proj(gram: tf.Tensor, preference: tf.Tensor) -> tf.Tensor:
    n, K, active = normalized = normalized_gram(gram)
    b = shares(preference, active) * n
    return normalized.task_weights((b + _onto(K, 0.0, b, _norm(K, b))) / n)


@tf.function(jit_compile=True, autograph=False)
def _cagrad(gram: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
    n, K, active = normalized = normalized_gram(gram)
    n /= tf.reduce_max(n)
    b = shares(tf.ones_like(n) / n.shape[0], active) * n
    size = _norm(K, b)
    radius = c * size

    def project(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        y = _onto(K, tf.where(active, z / n, -1), b, (2 + c) * size)
        return y, _norm(K, y)

    def newton(step: Any, z: Any, y: Any, distance: Any) -> Any:
        # d(distance^2 / 2) / dz is the sum of the multipliers `y_t / n_t`.
        slope = tf.reduce_sum(y / n) / distance
        z -= (distance - radius) / slope
        return step + 1, z, *project(z)

    # No direction in the ball does better than this for the min-norm point.
    gram = n[:, None] * (K + ROUNDING) * n
    point = min_norm_point(gram, active=active)
    z = tf.tensordot(point.task_weights, tf.linalg.matvec(gram, b / n), 1)
    z += radius * tf.sqrt(point.squared_norm)
    _, _, y, _ = tf.while_loop(
        lambda step, z, y, distance: (
            (step < 50) & (distance > (1 + 1e-9) * radius)
        ),
        newton,
        (0, z, *project(z)),
    )
    return normalized.task_weights((b + y) / n)


def _norm(K: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.maximum(tf.tensordot(y, tf.linalg.matvec(K, y), 1), 0))


def _onto(K: tf.Tensor, r: Any, b: tf.Tensor, reach: tf.Tensor) -> tf.Tensor:
    """`y` of the projection of `sum_t b_t e_t` onto `<e_t, d> >= r_t`.

    Where tasks are nearly stationary, rounding can leave `K` indefinite and the
    program without a minimum. With `rounding` no smaller than what any entry
    moved by, `K + rounding` has `y'Ky >= 0` again for all `y >= 0`, and
    `sum(y) <= reach / sqrt(rounding)` for a projection no further than `reach`.
    Sums of many products are rounded more than once: if `y` breaks the bound,
    so was this matrix.
    """
    m = b.shape[0]

    def project(rounding: Any, y: Any) -> Any:
        rounding *= 16.0
        c = r - tf.linalg.matvec(K + rounding, b)
        tolerance = 1e-12 * tf.reduce_max(b)
        y, _ = non_negative_minimum(
            K + rounding, c, lambda residuals, y: residuals > tolerance, 10 * m
        )
        return rounding, y

    def is_rejected(rounding: Any, y: Any) -> tf.Tensor:
        too_far = tf.reduce_sum(y) * tf.sqrt(rounding) > 2 * reach
        return (rounding < ROUNDING) | too_far

    start = (tf.constant(ROUNDING / 16, K.dtype), tf.zeros_like(b))
    return tf.while_loop(is_rejected, project, start)[1]
