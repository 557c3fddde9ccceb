"""Weightings that balance the tasks by how their losses go down.

They learn: from their state and the losses (and gradient norms) of this step
they make the task weights of this step and the state of the next. A task whose
loss is zero, as without labels, keeps its part of the state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.weightings.normalized_gram import normalized_gram
from keras_mgda.weightings.preference import Numbers, TaskNumbers
from keras_mgda.weightings.state import StatefulWeighting, Values
from keras_mgda.weightings.weighting import check_positive


@keras.saving.register_keras_serializable(package="keras_mgda")
class DWA(StatefulWeighting):
    """Dynamic weight average: more weight to losses that go down slowly.

    ```
    w_t = m softmax_t(r_t / T),   r_t = (mean of L_t over the last period)
                                        / (mean of L_t over the one before)
    ```

    All weights are 1 during the first two periods. In the paper a period is an
    epoch; a weighting does not see where epochs end, so it counts steps.

    Loss-only, so scale-invariant; permutation-equivariant. The weights add up
    to `m`. Not non-conflicting, not linear under scaling. The losses must be
    positive: the rate of a loss that goes down from -1 to -2 is 2, as if it
    went up.

    Args:
        temperature: `T`; the larger, the more alike the weights. The paper's 2.
        period: in steps; the `steps_per_epoch` of `fit` for the paper's.

    Raises:
        ValueError: for arguments that are not positive.

    References:
        Liu, Johns & Davison, 2019. End-to-End Multi-Task Learning with
        Attention, equation 7. https://arxiv.org/abs/1803.10704
    """

    uses_gram = False
    uses_losses = True
    positive_losses = True
    compiles_step = True

    def __init__(self, temperature: float = 2.0, period: int = 100) -> None:
        super().__init__()
        self.temperature = check_positive(temperature, "temperature")
        self.period = int(check_positive(period, "period"))

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        names = ("sums", "counts", "last", "before")
        zeros = {name: np.zeros(num_tasks, np.float32) for name in names}
        return {**zeros, "num_steps": np.int64(0)}

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        last, before = state["last"], state["before"]
        rates = tf.where(before != 0, tf.math.divide_no_nan(last, before), 1)
        weights = tf.nn.softmax(rates / self.temperature) * rates.shape[0]

        L = tf.cast(task_losses, last.dtype)
        sums = state["sums"] + L
        counts = state["counts"] + tf.cast(L != 0, L.dtype)
        num_steps = state["num_steps"] + 1
        over = num_steps == self.period
        shifts = over & (counts > 0)
        mean = tf.math.divide_no_nan(sums, counts)
        return weights, {
            "sums": tf.where(over, tf.zeros_like(sums), sums),
            "counts": tf.where(over, tf.zeros_like(counts), counts),
            "last": tf.where(shifts, mean, last),
            "before": tf.where(shifts, last, before),
            "num_steps": tf.where(over, tf.zeros_like(num_steps), num_steps),
        }

    def get_config(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "period": self.period}


@keras.saving.register_keras_serializable(package="keras_mgda")
class GradNorm(StatefulWeighting):
    """Weights that bring the tasks to train at like rates.

    ```
    min_w  sum_t | w_t n_t - mean_s(w_s n_s) r_t^alpha |,   n_t = ||g_t||,
    r_t = (L_t / L_t(0)) / mean_s(L_s / L_s(0))
    ```

    with what follows the minus held constant. From 1, every step moves `w` by a
    gradient step and scales it so that the weights add up to `m`; the encoder
    gets those from before. `n` are the norms of the task gradients that the
    model weighs: at the representation, or of the shared variables.

    The steps are in units of the mean of `w_t n_t`, and end where the absolute
    value is zero. So the weights stay positive, and the direction does not
    depend on the scale of the gradients; in the paper's form both fail.

    Scale-invariant; permutation-equivariant. Not non-conflicting, not linear
    under scaling; the weights add up to `m`. The losses must be positive.

    Args:
        alpha: how strongly the rates are to be alike. The paper's 1.5.
        learning_rate: of `w`. The paper's 0.025.

    References:
        Chen et al., 2018. GradNorm, equation 2 and algorithm 1.
        https://arxiv.org/abs/1711.02257
    """

    uses_losses = True
    positive_losses = True
    scale_invariant = True
    compiles_step = True

    def __init__(
        self, alpha: float = 1.5, learning_rate: float = 0.025
    ) -> None:
        super().__init__()
        self.alpha = check_positive(alpha, "alpha")
        self.learning_rate = check_positive(learning_rate, "learning_rate")

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        return {
            "task_weights": np.ones(num_tasks, np.float32),
            "initial_losses": np.zeros(num_tasks, np.float32),
        }

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        n, _, active = normalized_gram(gram)
        active &= task_losses != 0
        w, first = (tf.cast(state[name], n.dtype) for name in state)
        first = tf.where(active & (first == 0), task_losses, first)

        def mean(values: tf.Tensor) -> tf.Tensor:
            values = tf.where(active, values, 0)
            count = tf.reduce_sum(tf.cast(active, values.dtype))
            return tf.math.divide_no_nan(tf.reduce_sum(values), count)

        progress = tf.math.divide_no_nan(task_losses, first)
        rates = tf.math.divide_no_nan(progress, mean(progress))
        length = mean(w * n)
        way = length * rates**self.alpha / n - w
        step = self.learning_rate * tf.math.divide_no_nan(n, length)
        moved = w + tf.clip_by_value(way, -step, step)
        moved *= tf.math.divide_no_nan(mean(w), mean(moved))
        after = {
            "task_weights": tf.where(active, moved, w),
            "initial_losses": first,
        }
        return w, {k: tf.cast(v, tf.float32) for k, v in after.items()}

    def get_config(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "learning_rate": self.learning_rate}


@keras.saving.register_keras_serializable(package="keras_mgda")
class FAMO(StatefulWeighting):
    """Fast adaptive multitask optimization: equal rates from losses alone.

    ```
    w_t = (z_t / l_t) / sum_s (z_s / l_s),   z = softmax(x),   l_t = L_t - b_t
    ```

    is the direction of `sum_t z_t log l_t`; `x` follows, by Adam, the gradient
    of `sum_t z_t (log l_t(before) - log l_t(after))` and its own decay, so that
    the task whose loss went down least gains weight. `b` are lower bounds of
    the losses, zero unless given.

    The authors measure `before` and `after` a step on the same batch, by a
    second forward pass. A weighting sees one pass for each step: here `after`
    is the next step, on the next batch. What `x` follows has the same mean if
    batches are drawn alike, but the noise of the batches on top: use large
    batches, or a smaller learning rate.

    Loss-only, so scale-invariant; on the simplex; permutation-equivariant; the
    direction does not depend on the scales of the task losses. Not non-
    conflicting, not linear under scaling. The losses must be above their lower
    bounds. One of exactly zero is that of a task without labels, and left out.

    Args:
        learning_rate: of `x`. The paper's 0.025.
        decay: of `x`. The paper's 0.001.
        min_losses: `b`: `{task: number}`, or `m` numbers in the order of the
            tasks; finite. `None`: zeros.

    Raises:
        ValueError: for other arguments, and when they do not fit the tasks.

    References:
        Liu et al., 2023. FAMO: Fast Adaptive Multitask Optimization,
        algorithm 1. https://arxiv.org/abs/2306.03792
    """

    uses_gram = False
    uses_losses = True
    compiles_step = True

    def __init__(
        self,
        learning_rate: float = 0.025,
        decay: float = 1e-3,
        min_losses: Numbers | None = None,
    ) -> None:
        super().__init__()
        self.learning_rate = check_positive(learning_rate, "learning_rate")
        self.decay = check_positive(decay, "decay", or_zero=True)
        self._bounds = TaskNumbers(min_losses, "Lower bounds of losses", True)
        self.min_losses = self._bounds.given
        self.compiles_step = min_losses is None

    def build(self, task_names: Sequence[str]) -> None:
        self._bounds = self._bounds.in_order(task_names)
        super().build(task_names)

    def admits(self, task_losses: tf.Tensor) -> tf.Tensor:
        bounds = self._bounds.tensor(task_losses, default=0)
        below = tf.cast(task_losses, tf.float64) <= bounds
        return ~below | (task_losses == 0)

    def losses_error(self, task_losses: Mapping[str, float]) -> ValueError:
        return ValueError(
            "`FAMO` must have task losses above their lower bounds. Received: "
            f"{dict(task_losses)}, and min_losses={self.min_losses}, which is "
            "zero where it is `None`. Use `FAMO(min_losses=...)` below all "
            "that the losses can be, or a weighting that takes any loss, such "
            "as 'mgda'."
        )

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        names = ("logits", "mean", "square", "logs", "seen")
        zeros = {name: np.zeros(num_tasks, np.float32) for name in names}
        return {**zeros, "num_steps": np.int64(0)}

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        labelled = task_losses != 0
        if self.min_losses is not None:
            task_losses -= self._bounds.tensor(gram, default=0)
        L = tf.cast(task_losses, tf.float32)
        logs = tf.math.log(tf.where(labelled, L, 1))
        x, after = _famo_logits(state, logs, labelled, self)
        log_w = tf.where(labelled, tf.nn.log_softmax(x) - logs, -float("inf"))
        w = tf.nn.softmax(log_w - tf.reduce_max(log_w))
        none = ~tf.reduce_any(labelled)
        return tf.where(none, tf.ones_like(w) / w.shape[0], w), after

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "decay": self.decay,
            "min_losses": self.min_losses,
        }


def _famo_logits(
    state: Values, logs: tf.Tensor, labelled: tf.Tensor, famo: FAMO
) -> tuple[tf.Tensor, Values]:
    """A step of Adam from the losses of the last step and those of this one."""
    x, known = state["logits"], labelled & (state["seen"] > 0)
    gains = tf.where(known, state["logs"] - logs, 0)
    z = tf.nn.softmax(x)
    gradient = z * (gains - tf.tensordot(z, gains, 1)) + famo.decay * x

    # Nothing is known yet at the first step.
    num_steps = state["num_steps"] + tf.cast(tf.reduce_any(known), tf.int64)
    count = tf.cast(tf.maximum(num_steps, 1), x.dtype)
    mean = 0.9 * state["mean"] + 0.1 * gradient
    square = 0.999 * state["square"] + 0.001 * gradient**2
    corrected = tf.sqrt(square / (1 - 0.999**count)) + 1e-8
    x -= famo.learning_rate * mean / (1 - 0.9**count) / corrected
    return x, {
        "logits": x,
        "mean": mean,
        "square": square,
        "logs": tf.where(labelled, logs, state["logs"]),
        "seen": tf.maximum(state["seen"], tf.cast(labelled, x.dtype)),
        "num_steps": num_steps,
    }
