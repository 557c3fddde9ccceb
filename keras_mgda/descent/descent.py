"""How a model's training steps find their directions, and what they found."""

import copy
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda import weightings
from keras_mgda.descent.directions import Direction
from keras_mgda.descent.forward import Recording
from keras_mgda.descent.kept_weights import Reuse, check_update_every
from keras_mgda.descent.step import (
    Gradients,
    direction_of_step,
    layer_names,
    mode,
)


class Descent:
    """What `MGDAModel.compile` was told of the direction; the last steps' own.

    To be made in the scope of the strategy that trains.

    Args:
        model: that is trained.
        task_names: of the `m` tasks, in order.
        weighting: as in `MGDAModel.compile`, as the others are.
        gradients: which task gradients the weighting sees.
        verify: whether to look at each direction.
        max_corrections: of a verified direction.
        update_every: for how many steps task weights are used.

    Attributes:
        weighting: the one that was given, built for these tasks.
        config: the rest, as `compile` takes it again.
        task_weights: `[m]`, a variable: those of the last step.
        metrics: of what was found by looking at directions.
    """

    def __init__(
        self,
        model: keras.Model,
        task_names: Sequence[str],
        *,
        weighting: Any,
        gradients: Gradients,
        verify: bool,
        max_corrections: int,
        update_every: int,
    ) -> None:
        # A copy, for `build` must not change that of another model.
        self.weighting = copy.copy(weightings.get(weighting))
        self._mode = mode(gradients, model, self.weighting, max_corrections)
        replicas = model.distribute_strategy.num_replicas_in_sync
        check_update_every(update_every, gradients, replicas)
        self.weighting.build(task_names)
        self._reuse = None
        if update_every > 1:
            self._reuse = Reuse(update_every, len(task_names))
        self.config = {
            "gradients": layer_names(gradients),
            "verify": verify,
            "max_corrections": max_corrections,
            "update_every": update_every,
        }
        # Not a part of the model's state.
        self.task_weights = tf.Variable(
            tf.fill([len(task_names)], float("nan")),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        names = ("conflicts", "corrections", "min_cosine") if verify else ()
        self.metrics = [keras.metrics.Mean(name) for name in names]

    @property
    def states(self) -> dict[str, keras.layers.Layer | None]:
        """What is remembered from step to step: `{name: layer}`."""
        return {
            "weighting": self.weighting.state,
            "reuse": self._reuse and self._reuse.state,
        }

    def direction(
        self,
        recording: Recording,
        variables: Sequence[keras.Variable],
        total_loss: tf.Tensor,
        loss_scale: tf.Tensor,
    ) -> Direction:
        """`direction_of_step` by these settings."""
        return direction_of_step(
            recording,
            variables,
            total_loss,
            loss_scale=loss_scale,
            weighting=self.weighting,
            mode=self._mode,
            verify=self.config["verify"],
            reuse=self._reuse,
        )

    def note(self, direction: Direction, skips: bool) -> None:
        """Notes what a step found.

        Args:
            direction: of the step.
            skips: whether a step that is not finite is skipped.
        """
        self.task_weights.assign(direction.task_weights)
        found = direction.verification or ()
        for metric, value in zip(self.metrics, found, strict=False):
            value = tf.cast(value, tf.float32)
            counts = tf.math.is_finite(value) if skips else True
            metric.update_state(
                tf.where(counts, value, 0.0), tf.cast(counts, tf.float32)
            )
