"""Task weights that are chosen now and then, and kept in between.

What they were chosen by changes little from step to step, so a step in between
needs no Gram matrix at all, only one backward pass through the encoder: by
`update_every=5` exact MGDA saves four of five times its `m` backward passes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mgda.weightings.state import State


class KeptWeights:
    """Chooses task weights at the first of every `k` steps, for all of them.

    Weights that are not finite are not kept, nor those of a step in which no
    task had a gradient: the next step chooses again. To a weighting that
    remembers, a step in between has not been.

    Args:
        update_every: `k`.
        num_tasks: `m`.

    Attributes:
        state: the layer that holds the weights, and counts steps.

    References:
        Navon et al., 2022. Multi-Task Learning as a Bargaining Game, section
        6.4. https://arxiv.org/abs/2202.01017
    """

    def __init__(self, update_every: int, num_tasks: int) -> None:
        self._update_every = update_every
        none = np.zeros(num_tasks, np.float32)
        self.state = State({"task_weights": none, "num_steps": np.int64(0)})

    def weights(
        self, choose: Callable[[], tuple[tf.Tensor, tf.Tensor]]
    ) -> tf.Tensor:
        """The task weights `[m]` of a step, chosen anew or kept.

        Args:
            choose: returns new weights `[m]`, and whether to keep them.
        """
        kept = self.state.read()
        num_steps = kept["num_steps"]
        # The weights alone, so that both ways go on with the same backward
        # pass.
        task_weights, accepted = tf.cond(
            num_steps % self._update_every == 0,
            choose,
            lambda: (kept["task_weights"], tf.constant(True)),
        )
        self.state.update(
            {"task_weights": task_weights, "num_steps": num_steps + 1},
            accepted,
        )
        return task_weights


def check_update_every(
    update_every: Any, gradients: Any, num_replicas: int
) -> None:
    """Raises unless task weights can be kept for so many steps.

    Raises:
        ValueError: if `update_every` is no number of steps, or more than 1
            where every step has to choose.
    """
    if (
        isinstance(update_every, bool)
        or not isinstance(update_every, int)
        or update_every < 1
    ):
        raise ValueError(
            "`update_every` must be a whole number of steps, at least 1. "
            f"Received: {update_every!r}."
        )
    if update_every == 1:
        return
    if isinstance(gradients, str) and gradients == "verified":
        raise ValueError(
            "`gradients='verified'` must choose the task weights at every "
            f"step, for it checks each. Received: update_every={update_every}. "
            "Leave that out, or take another of the `gradients`."
        )
    if num_replicas > 1:
        raise ValueError(
            "`update_every` must be 1 on several replicas: TensorFlow cannot "
            "sum over them in some steps only. Received: "
            f"update_every={update_every} with {num_replicas} replicas. "
            "Leave it out."
        )
