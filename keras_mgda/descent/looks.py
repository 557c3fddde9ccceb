"""Which steps `verify` looks at, and the means of what it finds there.

A look costs up to one more step. At every `k`-th step it costs a `k`-th of
that, and over a long run tells the same.
"""

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.weightings.state import State

# What `compile(verify=...)` takes.
Verify = bool | Literal["step"]
_NAMES = {
    False: (),
    True: ("conflicts", "corrections", "min_cosine"),
    "step": ("harmed", "worst_change", "encoder_part"),
}


class Looks:
    """Looks at the first of every `k` steps.

    To be made in the scope of the strategy that trains.

    Args:
        verify: what is looked at: `True` for the directions of steps, "step"
            for what they did, `False` for nothing.
        every: `k`.

    Attributes:
        metrics: the means over the steps that were looked at.
        state: the layer that counts steps; `None` if each is looked at.

    Raises:
        ValueError: if `verify` is none of these, or `every` no number of
            steps.
    """

    def __init__(self, verify: Verify, every: int) -> None:
        # 1 is equal to `True`, and a list cannot be looked up.
        if not isinstance(verify, (bool, str)) or verify not in _NAMES:
            raise ValueError(
                "`verify` must be `True`, which looks at the direction of each "
                "step, 'step', which looks at what each did, or `False`. "
                f"Received: {verify!r}."
            )
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(
                "`verify_every` must be a whole number of steps, at least 1. "
                f"Received: {every!r}."
            )
        self._every = every
        self.metrics = [MeanOfLooks(name) for name in _NAMES[verify]]
        self.state = (
            State({"num_steps": np.int64(0)})
            if self.metrics and every > 1
            else None
        )

    def is_due(
        self, losses: tf.Tensor, counts: tf.Tensor | None = None
    ) -> tf.Tensor | None:
        """Whether to look at this step, which is counted.

        To be called by the training step itself: replicas count together.

        Args:
            losses: of the step. Where the data have ended there are none, and
                nothing is counted.
            counts: `[]`, bool: whether this is a step. `None`: it is.

        Returns:
            `[]`, bool; `counts` as given if every step is looked at.
        """
        if self.state is None:
            return counts
        with tf.control_dependencies([losses]):
            counts = tf.constant(True) if counts is None else counts
            num_steps = self.state.read()["num_steps"]
            due = counts & (num_steps % self._every == 0)
            self.state.update({"num_steps": num_steps + 1}, counts)
        return due

    def note(
        self,
        found: Sequence[tf.Tensor],
        looked: tf.Tensor | None,
        *,
        finite: bool,
    ) -> None:
        """Notes what was found at a step.

        Args:
            found: the values of the metrics, in order.
            looked: `[]`, bool: whether there was a look. `None`: there was.
            finite: whether to leave out values that are not finite, as of a
                step that was skipped.
        """
        counts = tf.constant(True) if looked is None else looked
        values = [tf.cast(value, tf.float32) for value in found]
        if finite:
            counts &= tf.reduce_all(tf.math.is_finite(tf.stack(values)))
        for metric, value in zip(self.metrics, values, strict=True):
            metric.update_state(
                tf.where(counts, value, 0.0), tf.cast(counts, tf.float32)
            )


class MeanOfLooks(keras.metrics.Mean):
    """A mean, and NaN, not zero, where nothing was looked at."""

    def __init__(self, name: str) -> None:
        super().__init__(name)

    def result(self) -> Any:
        mean = super().result()
        return tf.where(self.count > 0, mean, tf.cast(float("nan"), mean.dtype))
