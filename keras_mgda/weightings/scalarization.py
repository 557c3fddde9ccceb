"""Weightings that are the gradient of one number made of the task losses."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.linalg import square_gram
from keras_mgda.weightings.preference import (
    Numbers,
    TaskNumbers,
    shares,
)
from keras_mgda.weightings.state import StatefulWeighting, Values
from keras_mgda.weightings.weighting import Weighting, check_positive


@keras.saving.register_keras_serializable(package="keras_mgda")
class GeometricMean(Weighting):
    """The gradient of the geometric mean of the task losses.

    ```
    (prod_t L_t)^(1/m),   w_t = (prod_s L_s)^(1/m) / (m L_t)
    ```

    The direction does not depend on the scales of the task losses. Not non-
    conflicting, not on the simplex; scale-invariant, as it does not look at the
    Gram matrix; permutation-equivariant.

    The losses must be positive. One of zero, as without labels, is left out,
    and its weight is zero.

    References:
        Chennupati et al., 2019. MultiNet++: Multi-Stream Feature Aggregation
        and Geometric Loss Strategy. https://arxiv.org/abs/1904.08492
    """

    uses_gram = False
    uses_losses = True
    positive_losses = True

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        L = self.check_losses(task_losses, square_gram(gram))
        labelled = L != 0
        logs = tf.math.log(tf.where(labelled, L, 1))
        count = tf.reduce_sum(tf.cast(labelled, L.dtype))
        mean = tf.math.divide_no_nan(tf.reduce_sum(logs), count)
        w = tf.math.divide_no_nan(tf.exp(mean - logs), count)
        return _task_weights(tf.where(labelled, w, 0), L)  # NaN below zero


@keras.saving.register_keras_serializable(package="keras_mgda")
class STCH(Weighting):
    """The gradient of the smooth Tchebycheff scalarization.

    ```
    mu log sum_t exp(p_t (L_t - z_t) / mu),
    w_t = p_t softmax_t(p_t (L_t - z_t) / mu)
    ```

    a smooth `max_t p_t (L_t - z_t)`, nearer to it the smaller `mu`. Its minima
    are Pareto optimal, and all Pareto optima are minima for some preference.

    Not non-conflicting, not on the simplex, not linear under scaling; scale-
    invariant, as it does not look at the Gram matrix; permutation-equivariant.
    The losses may be negative. One of zero, as without labels, is left out, and
    its weight is zero.

    Args:
        mu: positive. In units of the task losses.
        preference: `p`: `{task: number}`, or `m` numbers in the order of the
            tasks; finite and not negative. `None`: `1 / m` each.
        reference: `z`, the ideal losses, in the same form. `None`: zeros.

    Raises:
        ValueError: for other arguments, and when they do not fit the tasks.

    References:
        Lin et al., 2024. Smooth Tchebycheff Scalarization for Multi-Objective
        Optimization. https://arxiv.org/abs/2402.19078
    """

    uses_gram = False
    uses_losses = True

    def __init__(
        self,
        mu: float = 1.0,
        preference: Numbers | None = None,
        reference: Numbers | None = None,
    ) -> None:
        self.mu = check_positive(mu, "mu")
        self._preference = TaskNumbers(preference, "Preferences")
        self._reference = TaskNumbers(reference, "Ideal losses", True)
        self.preference = self._preference.given
        self.reference = self._reference.given

    def build(self, task_names: Sequence[str]) -> None:
        self._preference = self._preference.in_order(task_names)
        self._reference = self._reference.in_order(task_names)

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        L = self.check_losses(task_losses, square_gram(gram))
        p = self._preference.tensor(gram, default=1 / gram.shape[0])
        p = shares(p, L != 0)
        z = self._reference.tensor(gram, default=0)
        exponents = tf.where(L != 0, p * (L - z) / self.mu, -float("inf"))
        exponents -= tf.reduce_max(exponents)
        return _task_weights(p * tf.nn.softmax(exponents), L)

    def get_config(self) -> dict[str, Any]:
        return {
            "mu": self.mu,
            "preference": self.preference,
            "reference": self.reference,
        }


@keras.saving.register_keras_serializable(package="keras_mgda")
class Uncertainty(StatefulWeighting):
    """Homoscedastic uncertainty: learned log variances `s` of the tasks.

    ```
    min_(theta, s)  sum_t exp(-s_t) L_t / 2 + s_t / 2,   w_t = exp(-s_t) / 2
    ```

    At the minimum over `s` the weights are `1 / (2 L_t)`. From zero, every step
    moves `s` by a gradient step of its own, no further than its minimum,
    `s_t = log L_t`: a large loss does not throw it. In the paper, the model's
    optimizer trains `s`; here it has its own learning rate. (The paper's form
    for classification, without the first 1/2, is that for `2 L_t`.)

    Loss-only, so scale-invariant; permutation-equivariant. Not non-conflicting,
    not on the simplex, not linear under scaling. The losses must be positive:
    below zero there is no minimum, and the weights grow without end. At zero,
    as without labels, `s_t` stays.

    Args:
        learning_rate: of `s`.

    References:
        Kendall, Gal & Cipolla, 2018. Multi-Task Learning Using Uncertainty to
        Weigh Losses, equation 7. https://arxiv.org/abs/1705.07115
    """

    uses_gram = False
    uses_losses = True
    positive_losses = True
    compiles_step = True

    def __init__(self, learning_rate: float = 0.025) -> None:
        super().__init__()
        self.learning_rate = check_positive(learning_rate, "learning_rate")

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        return {"log_variances": np.zeros(num_tasks, np.float32)}

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        s = state["log_variances"]
        after = _log_scales(s, task_losses, self.learning_rate / 2)
        return tf.exp(-s) / 2, {"log_variances": after}

    def get_config(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate}


@keras.saving.register_keras_serializable(package="keras_mgda")
class IMTLL(StatefulWeighting):
    """IMTL-L: learned scales `exp(s)` that bring all losses to one size.

    ```
    min_(theta, s)  sum_t exp(s_t) L_t - s_t,   w_t = exp(s_t)
    ```

    At the minimum over `s` the weights are `1 / L_t`, and all scaled losses 1.
    From zero, the plain sum, every step moves `s` by a gradient step of its
    own, no further than its minimum, `s_t = -log L_t`: a large loss does not
    throw it. In the paper, the model's optimizer trains `s`; here it has its
    own learning rate. It is `Uncertainty` with `s` of the other sign, at twice
    its weights and its rate.

    Loss-only, so scale-invariant; permutation-equivariant. Not non-conflicting,
    not on the simplex, not linear under scaling. The losses must be positive.
    At zero, as without labels, `s_t` stays.

    Args:
        learning_rate: of `s`.

    References:
        Liu et al., 2021. Towards Impartial Multi-task Learning, equation 6.
        https://openreview.net/forum?id=IMPnRXEWpvr
    """

    uses_gram = False
    uses_losses = True
    positive_losses = True
    compiles_step = True

    def __init__(self, learning_rate: float = 0.025) -> None:
        super().__init__()
        self.learning_rate = check_positive(learning_rate, "learning_rate")

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        return {"log_scales": np.zeros(num_tasks, np.float32)}

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        s = state["log_scales"]
        after = -_log_scales(-s, task_losses, self.learning_rate)
        return tf.exp(s), {"log_scales": after}

    def get_config(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate}


@keras.saving.register_keras_serializable(package="keras_mgda")
class PBI(Weighting):
    """Penalty-based boundary intersection: the losses along a direction.

    ```
    d_1 + theta d_2,   d_1 = <L - z, e>,   d_2 = ||L - z - d_1 e||,
    w = e + theta (L - z - d_1 e) / d_2,   e = p / ||p||
    ```

    goes down the ray from the ideal losses `z` along the preference `p`, and
    back to it with the force `theta`: a trade-off is a direction of `p`, not a
    ratio of weights. On the ray, `w = e`. Weights may be negative: a loss that
    lies below the ray is given up for the others.

    Loss-only, so scale-invariant; permutation-equivariant. Not non-conflicting,
    not on the simplex, not linear under scaling. The losses may be negative. A
    loss of zero, as without labels, is left out, and its weight is zero.

    Args:
        theta: not negative; 0 is `Fixed(e)`. The paper's 5.
        preference: `p`: `{task: number}`, or `m` numbers in the order of the
            tasks; finite and not negative. `None`: `1 / m` each.
        reference: `z`, the ideal losses, in the same form. `None`: zeros.

    Raises:
        ValueError: for other arguments, and when they do not fit the tasks.

    References:
        Zhang & Li, 2007. MOEA/D: A Multiobjective Evolutionary Algorithm Based
        on Decomposition, section II. https://ieeexplore.ieee.org/document/4358754
    """

    uses_gram = False
    uses_losses = True

    def __init__(
        self,
        theta: float = 5.0,
        preference: Numbers | None = None,
        reference: Numbers | None = None,
    ) -> None:
        self.theta = check_positive(theta, "theta", or_zero=True)
        self._preference = TaskNumbers(preference, "Preferences")
        self._reference = TaskNumbers(reference, "Ideal losses", True)
        self.preference = self._preference.given
        self.reference = self._reference.given

    def build(self, task_names: Sequence[str]) -> None:
        self._preference = self._preference.in_order(task_names)
        self._reference = self._reference.in_order(task_names)

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        L = self.check_losses(task_losses, square_gram(gram))
        p = self._preference.tensor(gram, default=1 / gram.shape[0])
        e = _of_length_one(shares(p, L != 0))
        above = L - self._reference.tensor(gram, default=0)
        above = tf.where(L != 0, above, 0)
        aside = above - tf.tensordot(above, e, 1) * e
        # What is left of it on the ray is rounding.
        on_ray = tf.norm(aside) <= 1e-9 * tf.norm(above)
        aside = tf.where(on_ray, tf.zeros_like(aside), _of_length_one(aside))
        return _task_weights(e + self.theta * aside, L)

    def get_config(self) -> dict[str, Any]:
        return {
            "theta": self.theta,
            "preference": self.preference,
            "reference": self.reference,
        }


@keras.saving.register_keras_serializable(package="keras_mgda")
class COSMOS(Weighting):
    """The objective of COSMOS: losses weighed, and turned to a preference.

    ```
    <p, L> - penalty cos(p, L),
    w = p - penalty (p / (||p|| ||L||) - cos(p, L) L / ||L||^2)
    ```

    so that the losses come to lie along `p`. Weights may be negative, of losses
    that are short of their share. In the paper a network takes `p` as a part of
    its input, and is trained for draws of it, to hold a whole Pareto front;
    this is its objective, for one `p`. `MGDAModel` draws none.

    Loss-only, so scale-invariant; permutation-equivariant. Not non-conflicting,
    not on the simplex, not linear under scaling. The losses may be negative. A
    loss of zero, as without labels, is left out, and its weight is zero.

    Args:
        penalty: the paper's lambda, not negative; 0 is `Fixed(p)`. The paper
            has 0.01 to 8, depending on the data.
        preference: `p`: `{task: number}`, or `m` numbers in the order of the
            tasks; finite and not negative. `None`: `1 / m` each.

    Raises:
        ValueError: for other arguments, and when they do not fit the tasks.

    References:
        Ruchte & Grabocka, 2021. Scalable Pareto Front Approximation for Deep
        Multi-Objective Learning, equation 5. https://arxiv.org/abs/2103.13392
    """

    uses_gram = False
    uses_losses = True

    def __init__(
        self, penalty: float = 1.0, preference: Numbers | None = None
    ) -> None:
        self.penalty = check_positive(penalty, "penalty", or_zero=True)
        self._preference = TaskNumbers(preference, "Preferences")
        self.preference = self._preference.given

    def build(self, task_names: Sequence[str]) -> None:
        self._preference = self._preference.in_order(task_names)

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        L = self.check_losses(task_losses, square_gram(gram))
        p = self._preference.tensor(gram, default=1 / gram.shape[0])
        p = shares(p, L != 0)
        e, of_losses = _of_length_one(p), _of_length_one(L)
        cosine = tf.tensordot(e, of_losses, 1)
        turn = tf.math.divide_no_nan(e - cosine * of_losses, tf.norm(L))
        w = tf.where(L != 0, p - self.penalty * turn, 0)
        return _task_weights(w, L)

    def get_config(self) -> dict[str, Any]:
        return {"penalty": self.penalty, "preference": self.preference}


def _log_scales(s: tf.Tensor, task_losses: Any, rate: float) -> tf.Tensor:
    """`s` after a gradient step on `exp(-s) L + s`, not past its minimum."""
    L = tf.cast(task_losses, s.dtype)
    step = rate * (tf.exp(-s) * L - 1)
    to_minimum = tf.math.log(tf.maximum(L, 0)) - s
    step = tf.clip_by_value(
        step, tf.minimum(to_minimum, 0), tf.maximum(to_minimum, 0)
    )
    return s + tf.where(L != 0, step, 0)


def _of_length_one(x: tf.Tensor) -> tf.Tensor:
    """`x / ||x||`; zero for zero."""
    largest = tf.reduce_max(tf.abs(x))
    x = tf.math.divide_no_nan(x, largest)  # whose squares do not overflow
    return tf.math.divide_no_nan(x, tf.norm(x))


def _task_weights(w: tf.Tensor, L: tf.Tensor) -> tf.Tensor:
    w = tf.where(tf.reduce_any(L != 0), w, tf.ones_like(w) / w.shape[0])
    finite = tf.reduce_all(tf.math.is_finite(L))
    return tf.cast(tf.where(finite, w, float("nan")), tf.float32)
