"""A weighting around another one, that smooths what it does."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.weightings.mgda import MGDA
from keras_mgda.weightings.state import StatefulWeighting, Values
from keras_mgda.weightings.weighting import (
    Weighting,
    check_fraction,
    check_weighting,
)


@keras.saving.register_keras_serializable(package="keras_mgda")
class CRMOGM(StatefulWeighting):
    """A moving average of the task weights of any other weighting.

    ```
    w_k = alpha w_(k-1) + (1 - alpha) v_k
    ```

    with the weights `v_k` that the other one chooses at step `k`; `w_1 = v_1`.
    It takes the correlation with the gradients of the very batch out of the
    weights, which biases every method that has it. Where a task has no gradient
    its average stands still.

    On the simplex, as long as the same tasks have gradients, and permutation-
    equivariant if the other one is; not non-conflicting, as weights of other
    gradients are in it.

    Args:
        weighting: the other one. `None`: `MGDA()`.
        alpha: from 0, the other one alone, to 1, its first weights for ever.

    Raises:
        ValueError: for another `alpha`, and if `weighting` is none.

    Example:

    >>> from keras_mgda import weightings
    >>> smoothed = weightings.CRMOGM(weightings.UPGrad(), alpha=0.99)

    References:
        Zhou et al., 2022. On the Convergence of Stochastic Multi-Objective
        Gradient Manipulation and Beyond. NeurIPS 2022.
    """

    def __init__(
        self, weighting: Weighting | None = None, alpha: float = 0.9
    ) -> None:
        super().__init__()
        weighting = MGDA() if weighting is None else weighting
        self.weighting = check_weighting(weighting)
        self.alpha = check_fraction(alpha, "alpha")
        self.uses_gram = weighting.uses_gram
        self.uses_losses = weighting.uses_losses

    def build(self, task_names: Sequence[str]) -> None:
        super().build(task_names)
        # A copy, for `build` must not change that of another model.
        self.weighting = copy.copy(self.weighting)
        self.weighting.build(task_names)
        self.state.inner = self.weighting.state  # saved with it

    @property
    def scale_invariant(self) -> bool:
        return self.weighting.scale_invariant

    def admits(self, task_losses: tf.Tensor) -> tf.Tensor:
        return self.weighting.admits(task_losses)

    def losses_error(self, task_losses: Mapping[str, float]) -> ValueError:
        return self.weighting.losses_error(task_losses)

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        zeros = np.zeros(num_tasks, np.float32)
        return {"task_weights": zeros, "seen": zeros}

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        v, before = self.weighting(gram, task_losses), state["task_weights"]
        active = tf.ones_like(v, tf.bool)
        if self.uses_gram:
            active = tf.linalg.diag_part(gram) != 0
        seen = state["seen"] > 0
        smoothed = self.alpha * before + (1 - self.alpha) * v
        w = tf.where(seen, tf.where(active, smoothed, before), v)
        seen = tf.cast(seen | active, v.dtype)
        return w, {"task_weights": w, "seen": seen}

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.weighting)
        return {"weighting": inner, "alpha": self.alpha}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CRMOGM":
        inner = keras.saving.deserialize_keras_object(config["weighting"])
        return cls(**{**config, "weighting": inner})
