"""Weightings that are gradients of one number made of the task losses."""

import random
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.weightings.preference import (
    Numbers,
    TaskNumbers,
    shares,
)
from keras_mgda.weightings.state import StatefulWeighting, Values
from keras_mgda.weightings.weighting import (
    Weighting,
    check_gram,
    check_losses,
    check_positive,
)


@keras.saving.register_keras_serializable(package="keras_mgda")
class Uniform(Weighting):
    """All task weights 1: the plain sum of the task losses, as stock Keras.

    Permutation-equivariant; linear under scaling; scale-invariant. Not non-
    conflicting, not on the simplex.
    """

    uses_gram = False

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        return tf.ones(gram.shape[0], tf.float32)


@keras.saving.register_keras_serializable(package="keras_mgda")
class Fixed(Weighting):
    """Task weights that are given and stay.

    They scale what the encoder gets from each task; the heads keep their plain
    gradients. (Keras's own `loss_weights` scale both.) Linear under scaling and
    scale-invariant; not non-conflicting.

    Args:
        task_weights: `{task: number}`, or `m` numbers in the order of the
            tasks. Finite and not negative. `None`: all 1, as `Uniform`.

    Raises:
        ValueError: for other numbers, and when they do not fit the tasks.

    Example:

    >>> from keras_mgda import weightings
    >>> weighting = weightings.Fixed({"left": 0.3, "right": 0.7})
    """

    uses_gram = False

    def __init__(self, task_weights: Numbers | None = None) -> None:
        self._numbers = TaskNumbers(task_weights, "Fixed task weights")
        self.task_weights = self._numbers.given

    def build(self, task_names: Sequence[str]) -> None:
        self._numbers = self._numbers.in_order(task_names)

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        return tf.cast(self._numbers.tensor(gram, default=1), tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {"task_weights": self.task_weights}


@keras.saving.register_keras_serializable(package="keras_mgda")
class Random(StatefulWeighting):
    """Random loss weighting: other task weights at every step.

    ```
    w = softmax(x),   x_t ~ N(0, 1)
    ```

    a function of the seed and the number of the step: runs repeat, and go on
    where they were interrupted. On the simplex; scale-invariant and, for the
    same draw, linear under scaling; not non-conflicting.

    Args:
        seed: of the draws; `None` draws one.

    References:
        Lin et al., 2022. Reasonable Effectiveness of Random Weighting: A Litmus
        Test for Multi-Task Learning, algorithm 2.
        https://arxiv.org/abs/2111.10603
    """

    uses_gram = False

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.seed = random.getrandbits(31) if seed is None else seed

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        return {"num_steps": np.int64(0)}

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        steps = state["num_steps"]
        seed = tf.stack([self.seed, steps])
        return _random(gram.shape[0], seed), {"num_steps": steps + 1}

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


@keras.saving.register_keras_serializable(package="keras_mgda")
class GeometricMean(Weighting):
    """The gradient of the geometric mean of the task losses.

    ```
    (prod_t L_t)^(1/m),   w_t = (prod_s L_s)^(1/m) / (m L_t)
    ```

    The direction does not depend on the scales of the task losses. Not non-
    conflicting, not on the simplex; scale-invariant, as it does not look at the
    Gram matrix; permutation-equivariant.

    The losses have to be positive: the weights are NaN if one is not. One of
    zero, as without labels, is left out, and its weight is zero.

    References:
        Chennupati et al., 2019. MultiNet++: Multi-Stream Feature Aggregation
        and Geometric Loss Strategy. https://arxiv.org/abs/1904.08492
    """

    uses_gram = False
    uses_losses = True

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        L = check_losses(task_losses, check_gram(gram), "GeometricMean")
        labelled = L != 0
        logs = tf.math.log(tf.where(labelled, L, 1))
        count = tf.reduce_sum(tf.cast(labelled, L.dtype))
        mean = tf.math.divide_no_nan(tf.reduce_sum(logs), count)
        w = tf.math.divide_no_nan(tf.exp(mean - logs), count)
        return _finish(tf.where(labelled, w, 0), L)


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
    A loss of zero, as without labels, is left out, and its weight is zero.

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
        gram = check_gram(gram)
        L = check_losses(task_losses, gram, "STCH")
        p = self._preference.tensor(gram, default=1 / gram.shape[0])
        p = shares(p, L != 0)
        z = self._reference.tensor(gram, default=0)
        exponents = tf.where(L != 0, p * (L - z) / self.mu, -float("inf"))
        exponents -= tf.reduce_max(exponents)
        return _finish(p * tf.nn.softmax(exponents), L)

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
    not on the simplex, not linear under scaling.

    Args:
        learning_rate: of `s`.

    References:
        Kendall, Gal & Cipolla, 2018. Multi-Task Learning Using Uncertainty to
        Weigh Losses, equation 7. https://arxiv.org/abs/1705.07115
    """

    uses_gram = False
    uses_losses = True
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
        L = tf.cast(task_losses, s.dtype)
        step = self.learning_rate * (tf.exp(-s) * L - 1) / 2
        to_minimum = tf.math.log(tf.maximum(L, 0)) - s
        step = tf.clip_by_value(
            step, tf.minimum(to_minimum, 0), tf.maximum(to_minimum, 0)
        )
        after = s + tf.where(L != 0, step, 0)
        return tf.exp(-s) / 2, {"log_variances": after}

    def get_config(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate}


# By XLA everywhere, for it draws other numbers than TensorFlow does without.
@tf.function(jit_compile=True, autograph=False)
def _random(num_tasks: int, seed: tf.Tensor) -> tf.Tensor:
    draws = tf.random.stateless_normal([num_tasks], seed, alg="philox")
    return tf.nn.softmax(draws)


def _finish(w: tf.Tensor, L: tf.Tensor) -> tf.Tensor:
    w = tf.where(tf.reduce_any(L != 0), w, tf.ones_like(w) / w.shape[0])
    finite = tf.reduce_all(tf.math.is_finite(L))
    return tf.cast(tf.where(finite, w, float("nan")), tf.float32)
