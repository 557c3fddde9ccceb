"""Weightings that share the gain among the tasks as a fair bargain would.

With the gains `u_t = <g_t, d>` of the tasks along `d`, they maximize a sum of
utilities of the gains. Where it is largest, `G w = f(w)` with `f` decreasing.
"""

from typing import Any

import keras
import tensorflow as tf

from keras_mgda.linalg import solve
from keras_mgda.weightings.normalized_gram import ROUNDING, normalized_gram
from keras_mgda.weightings.weighting import GramWeighting

_MAX_STEPS = 300


@keras.saving.register_keras_serializable(package="keras_mgda")
class NashMTL(GramWeighting):
    """The direction that maximizes the product of the tasks' gains.

    ```
    max_d  sum_t log <g_t, d>   s.t.   ||d|| <= 1,   so that   G w = 1 / w
    ```

    up to a factor: the Nash bargaining solution. `w` solves `G w = 1 / w` with
    `G` in units of its Frobenius norm, and is then shrunk to `||d|| <=
    max_norm`, both as in the authors' code.

    Non-conflicting; permutation-equivariant; without `max_norm` scale-
    invariant. Not on the simplex, not linear under scaling (but the direction
    does not depend on the scales of the task losses at all). Where the tasks
    are Pareto stationary there is no bargain: the weights grow as far as the
    rounding of `G` bounds them.

    The authors solve a sequence of convex programs with ECOS; here Newton's
    method minimizes `w'Gw / 2 - sum_t log w_t`, with the same solution.

    Args:
        max_norm: limit on the length of the direction; `None` for no limit.

    Raises:
        ValueError: if `max_norm` is not positive.

    References:
        Navon et al., 2022. Multi-Task Learning as a Bargaining Game, claim 3.1
        and algorithm 1. https://arxiv.org/abs/2202.01017
    """

    def __init__(self, max_norm: float | None = 1.0) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(
                "`max_norm` must be positive, or `None` for no limit. "
                f"Received: {max_norm!r}."
            )
        self.max_norm = max_norm

    @property
    def scale_invariant(self) -> bool:
        return self.max_norm is None

    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        return _nash(gram, self.max_norm)

    def get_config(self) -> dict[str, Any]:
        return {"max_norm": self.max_norm}


@keras.saving.register_keras_serializable(package="keras_mgda")
class FairGrad(GramWeighting):
    """The direction of an alpha-fair allocation of the gains.

    ```
    max_d  sum_t <g_t, d>^(1 - alpha) / (1 - alpha)   s.t.   ||d|| <= 1,
    so that   G w = w^(-1 / alpha)
    ```

    up to a factor. `alpha = 1` is proportional fairness, as Nash-MTL; 2 is
    minimum potential delay; the larger, the nearer to max-min fairness. Toward
    0 the weights become equal: that is `Uniform`.

    Non-conflicting; permutation-equivariant. Not scale-invariant (the weights
    of `c G` are `c^(-alpha / (1 + alpha))` as large), not on the simplex, not
    linear under scaling. At Pareto stationarity as Nash-MTL.

    Newton's method minimizes `w'Gw / 2 - sum_t w_t^(1 - 1/alpha) / (1 -
    1/alpha)`; the authors' code asks SciPy for a least-squares solution.

    Args:
        alpha: from 0.2 to 10.

    Raises:
        ValueError: for another `alpha`.

    References:
        Ban & Ji, 2024. Fair Resource Allocation in Multi-Task Learning,
        equation 4 and algorithm 1. https://arxiv.org/abs/2402.15638
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not 0.2 <= alpha <= 10:
            raise ValueError(
                "`alpha` must be from 0.2 to 10. "
                f"Received: {alpha!r}. Use `Uniform` for 0."
            )
        self.alpha = alpha

    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        return _fair(gram, tf.constant(self.alpha, tf.float64))

    def get_config(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


@tf.function(jit_compile=True, autograph=False)
def _nash(gram: tf.Tensor, max_norm: float | None) -> tf.Tensor:
    n, K, active = normalized = normalized_gram(gram)
    y = _balanced(K, tf.cast(active, K.dtype), 1.0)
    largest = tf.reduce_max(n)
    frobenius = tf.norm((n / largest)[:, None] * K * (n / largest))
    y *= largest * tf.sqrt(frobenius)
    if max_norm is not None:
        squared = tf.tensordot(y, tf.linalg.matvec(K, y), 1)
        y *= tf.minimum(max_norm * tf.math.rsqrt(tf.maximum(squared, 0)), 1)
    return normalized.task_weights(y / n)


@tf.function(jit_compile=True, autograph=False)
def _fair(gram: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    n, K, active = normalized = normalized_gram(gram)
    # In units of the largest norm `c`: `w` is `c^(-2 / (1 + p))` as large.
    p, largest = 1 / alpha, tf.reduce_max(n)
    b = tf.where(active, (n / largest) ** (p - 1), 0)
    y = _balanced(K, b, p) * largest ** (1 - 2 / (1 + p))
    return normalized.task_weights(y / n)


def _balanced(K: tf.Tensor, b: tf.Tensor, p: Any) -> tf.Tensor:
    """`y > 0` with `K y = b y^(-p)` (where `b > 0`), by damped Newton steps."""
    K += ROUNDING  # bounds `y` where tasks are Pareto stationary
    K += tf.linalg.diag(tf.cast(b == 0, K.dtype))
    b = tf.where(b != 0, b, 1)

    def newton(step: Any, y: Any, change: Any) -> Any:
        slope = b * y**-p
        hessian = K + tf.linalg.diag(p * slope / y)
        relative = solve(hessian, slope - tf.linalg.matvec(K, y)) / y
        # All of the step is never more than what would take one to zero.
        damping = 1 + tf.maximum(tf.reduce_max(-relative), 0)
        y *= 1 + relative / damping
        return step + 1, y, tf.reduce_max(tf.abs(relative))

    # The best equal unknowns.
    start = (tf.reduce_sum(b) / tf.reduce_sum(K)) ** (1 / (1 + p))
    _, y, _ = tf.while_loop(
        lambda step, y, change: (step < _MAX_STEPS) & (change > 1e-7),
        newton,
        (0, start * tf.ones_like(b), tf.ones_like(start)),
    )
    return y
