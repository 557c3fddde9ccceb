"""The min-norm point of the convex hull of the task gradients."""

import functools
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from keras_mgda.linalg.gram import square_gram
from keras_mgda.linalg.quadratic_program import non_negative_minimum


class MinNormPoint(NamedTuple):
    """The point of smallest norm in the convex hull of `m` task gradients.

    Attributes:
        task_weights: `[m]`, `w`, non-negative, summing to one.
        squared_norm: `[]`, `w'Gw`; zero at Pareto stationarity.
        duality_gap: `[]`, `w'Gw - min_t (Gw)_t >= 0`; at least half of what
            `w'Gw` lies above its minimum. It is that of the weights as they
            are returned: where large gradients cancel, their rounding shows.
        num_steps: `[]`, int32; equal to `max_steps` if the limit was met.
    """

    task_weights: tf.Tensor
    squared_norm: tf.Tensor
    duality_gap: tf.Tensor
    num_steps: tf.Tensor


def min_norm_point(
    gram: Any,
    *,
    method: Literal["active_set", "frank_wolfe"] = "active_set",
    active: Any = None,
    max_steps: int | None = None,
    tolerance: float = 1e-10,
) -> MinNormPoint:
    """Min-norm point of the convex hull of `m` task gradients.

    With the Gram matrix `G_ts = <g_t, g_s>` of the task gradients, solves

        min_w  ||sum_t w_t g_t||^2 = w'Gw   subject to   w >= 0, sum_t w_t = 1

    (Eq. 3 of the paper). At the solution `(Gw)_t >= w'Gw` for every task, so
    a small step against `sum_t w_t g_t` decreases every loss, or that sum is
    zero and the tasks are Pareto stationary. `c G` gives the same as `G`.

    ```
    >>> point = min_norm_point([[18.0, -22.0], [-22.0, 38.0]])
    >>> [round(float(weight), 4) for weight in point.task_weights]
    [0.6, 0.4]

    ```

    XLA compiles it, in eager code and in a `tf.function` alike. The weights
    are constants to a `tf.GradientTape`.

    Args:
        gram: `[m, m]`, floating, symmetric and positive semidefinite (both up
            to rounding), with `m` known. It is computed with in float64.
        method: `"active_set"` reaches the solution in about `m` steps.
            `"frank_wolfe"` is `FrankWolfeSolver` in Algorithm 2 of the paper,
            to be compared with: it may stay far from the solution where the
            norms of the gradients differ. Two tasks are closed form (Eq. 4)
            with either.
        active: `[m]`, bool. The other tasks leave the simplex: their weights
            are zero, their rows not looked at. If none is active, all weights
            are `1 / m`.
        max_steps: limit on the steps, `O(m^2)` each. `None` is 250 for
            Frank-Wolfe, as in the authors' code, and `10 m` for the active
            set, a guard that is not met in practice.
        tolerance: stop when the duality gap or `w'Gw` itself is at most
            `tolerance * min_t G_tt`.

    Returns:
        A `MinNormPoint` in the dtype of `gram`. Its weights are NaN if `gram`
        is not finite or has a negative diagonal.

    Raises:
        ValueError: If `gram` is not a square matrix of known size, `active`
            does not fit it, `method` is unknown or `max_steps < 1`.

    References:
        - Sener & Koltun, 2018. https://arxiv.org/abs/1810.04650
        - Désidéri, 2012. Multiple-gradient descent algorithm (MGDA).
        - Lawson & Hanson, 1974. Solving Least Squares Problems, chapter 23.
    """
    gram = square_gram(gram)
    shape = gram.shape
    if method not in _METHODS:
        raise ValueError(
            f"`method` must be one of {list(_METHODS)}. Received: {method!r}."
        )
    if max_steps is None:
        max_steps = 10 * shape[0] if method == "active_set" else 250
    if max_steps < 1:
        raise ValueError(
            f"`max_steps` must be at least 1. Received: {max_steps}."
        )
    if active is not None:
        active = tf.cast(active, tf.bool)
        if active.shape != shape[:1]:
            raise ValueError(
                "`active` must hold one boolean for each task. Received: "
                f"shape {active.shape} for {shape[0]} tasks."
            )
    return _compiled(method, max_steps, float(tolerance))(gram, active)


@functools.cache
def _compiled(method: str, max_steps: int, tolerance: float) -> Any:
    # A closure: options as arguments cost an eager call half as much again.
    def solve(gram: tf.Tensor, active: tf.Tensor | None) -> MinNormPoint:
        return _solve(gram, active, method, max_steps, tolerance)

    return tf.function(solve, jit_compile=True, autograph=False)


# Below, `gram[t]` with a traced `t` would make `gram` a compile-time constant
# to TensorFlow, and compile anew for every matrix. `tf.gather` does not.


def _solve(
    gram: tf.Tensor,
    active: tf.Tensor | None,
    method: str,
    max_steps: int,
    tolerance: float,
) -> MinNormPoint:
    dtype, m = gram.dtype, gram.shape[0]
    if active is None:
        active = tf.ones([m], tf.bool)
    none_active = ~tf.reduce_any(active)
    active |= none_active

    # At the same speed up to m = 40, float32 loses a factor of 50 in accuracy
    # and misses 1e-6. (A TPU emulates float64: nothing, at this size.)
    gram = tf.cast(gram, tf.float64)
    gram = tf.where(active[:, None] & active, gram + tf.transpose(gram), 0) / 2
    if m == 2:
        w, num_steps = _two_tasks(gram, active), 0
    else:
        w, num_steps = _METHODS[method](gram, active, max_steps, tolerance)

    w = tf.where(none_active, tf.ones_like(w) / m, w)
    is_gram = tf.math.is_finite(gram) & (tf.linalg.diag_part(gram) >= 0)
    w = tf.where(tf.reduce_all(is_gram), w, float("nan"))
    task_weights = tf.cast(w, dtype)

    w = tf.cast(task_weights, tf.float64)  # rounded as the caller has them
    gram_w = tf.linalg.matvec(gram, w)
    squared_norm = tf.tensordot(w, gram_w, 1)
    gap = squared_norm - _min_over(active, gram_w)
    return MinNormPoint(
        task_weights,
        tf.cast(tf.maximum(squared_norm, 0), dtype),  # < 0 by rounding only
        tf.cast(tf.maximum(gap, 0), dtype),
        tf.convert_to_tensor(num_steps, tf.int32),
    )


def _min_over(active: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_min(tf.where(active, values, float("inf")))


def _segment(v11: tf.Tensor, v12: tf.Tensor, v22: tf.Tensor) -> tf.Tensor:
    """Algorithm 1: the `y` in [0, 1] of least `||y v1 + (1 - y) v2||`."""
    # In the paper's order of tests `v1 = v2` gives 1, and 0 / 0 is not taken.
    inside = (v22 - v12) / (v11 + v22 - 2 * v12)
    return tf.where(v12 < v11, tf.where(v12 < v22, inside, 0), 1)


def _two_tasks(gram: tf.Tensor, active: tf.Tensor) -> tf.Tensor:
    """Eq. 4."""
    y = _segment(gram[0, 0], gram[0, 1], gram[1, 1])
    y = tf.where(active[1], y, 1)
    y = tf.where(active[0], y, 0)
    return tf.stack([y, 1 - y])


def _frank_wolfe(
    gram: tf.Tensor, active: tf.Tensor, max_steps: int, tolerance: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Lines 6 to 14 of Algorithm 2, but for its stop.

    The paper stops when a step is short, which proves no solution; this stops
    at the duality gap, which does.
    """
    squared_norms = tf.linalg.diag_part(gram)
    tolerance *= _min_over(active, squared_norms)

    def proceed(step: Any, w: Any, gram_w: Any) -> tf.Tensor:
        squared_norm = tf.tensordot(w, gram_w, 1)
        gap = squared_norm - _min_over(active, gram_w)
        return (step < max_steps) & (tf.minimum(gap, squared_norm) > tolerance)

    def body(step: Any, w: Any, gram_w: Any) -> tuple[Any, ...]:
        t = tf.argmin(tf.where(active, gram_w, float("inf")))
        v11, v12 = tf.gather(squared_norms, t), tf.gather(gram_w, t)
        y = _segment(v11, v12, tf.tensordot(w, gram_w, 1))
        w = (1 - y) * w + y * tf.one_hot(t, w.shape[0], dtype=w.dtype)
        return step + 1, w, tf.linalg.matvec(gram, w)

    w = tf.cast(active, gram.dtype)
    w /= tf.reduce_sum(w)
    start = (0, w, tf.linalg.matvec(gram, w))
    num_steps, w, _ = tf.while_loop(proceed, body, start)
    return w, num_steps


def _active_set(
    gram: tf.Tensor, active: tf.Tensor, max_steps: int, tolerance: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Lawson & Hanson's method, on gradients scaled to norm one.

    With `n_t = ||g_t||` and `c_t = min_s n_s / n_t`, the min-norm point is
    `w_t ~ c_t u_t` for the solution `u` of

        min_u  ||sum_t u_t g_t / n_t||^2 + (c'u - 1)^2   subject to   u >= 0

    whose second term bounds `u` where tasks are Pareto stationary. Its
    residuals are `r = c - M u` with `M_ts = cos(g_t, g_s) + c_t c_s`. In units
    of `min_t G_tt` and with `z = c'u`, the squared norm is `(1 - z) / z` and
    the duality gap the largest `r_t / (c_t z)`.
    """
    squared_norms = tf.linalg.diag_part(gram)
    smallest = _min_over(active, squared_norms)
    # A zero gradient is given the cosine 0, and solves the problem alone.
    n = tf.sqrt(tf.where(squared_norms > 0, squared_norms, 1))
    c = tf.where(squared_norms > smallest, tf.sqrt(smallest) / n, 1)
    c = tf.where(active, c, 0)  # has residual 0 and never enters
    M = gram / (n[:, None] * n) + c[:, None] * c

    def enters(r: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        z = tf.tensordot(c, u, 1)
        return (r > tolerance * c * z) & (1 - z > tolerance * z)

    u, num_steps = non_negative_minimum(M, c, enters, max_steps)
    return c * u / tf.tensordot(c, u, 1), num_steps


_METHODS = {"active_set": _active_set, "frank_wolfe": _frank_wolfe}
