"""Task weights that are chosen now and then, and used in between.

What they were chosen by changes little from step to step, so a step in between
needs no task gradients at all, only one backward pass through the encoder: by
`update_every=5` exact MGDA saves four of five times its `m` backward passes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mgda.descent.directions import (
    Direction,
    Step,
    around_representation,
    gram_of_representation,
    shared_gradients,
    with_heads,
)
from keras_mgda.weightings.state import State


class Reuse:
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

    def along(self, mode: Callable[[Step], Direction], step: Step) -> Direction:
        """The direction of a step, with new task weights or the ones kept.

        The `gram` of a step in between is that of the representation.

        Args:
            mode: whose directions' task weights are kept.
            step: what the direction is made from.
        """
        kept = self.state.read()
        around = around_representation(step)

        def choose() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            found = mode(step)
            any_gradient = tf.linalg.trace(found.gram) != 0
            return found.task_weights, found.gram, any_gradient

        def keep() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            gram = gram_of_representation(step, around)
            return kept["task_weights"], gram, tf.constant(True)

        num_steps = kept["num_steps"]
        # The weights alone, so that of `choose` nothing else is computed, and
        # both ways go on with the same backward pass.
        task_weights, gram, accepted = tf.cond(
            num_steps % self._update_every == 0, choose, keep
        )
        self.state.update(
            {"task_weights": task_weights, "num_steps": num_steps + 1},
            accepted,
        )
        shared = shared_gradients(step, around, task_weights)
        return with_heads(step, shared, task_weights, gram)


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
