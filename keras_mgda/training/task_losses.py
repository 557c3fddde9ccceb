"""A task's loss, which tells the training step its value."""

from typing import Any

import keras
import tensorflow as tf

from keras_mgda.descent import forward as recording

# The class in which Keras wraps a loss that is a function. It is not exported
# by name, but the losses that are derive from it.
_FunctionLoss = keras.losses.MeanSquaredError.__base__


class TaskLoss(keras.losses.Loss):
    """The loss of one task: what `compile` was given, and a note of its value.

    Args:
        task: the task's name.
        loss: what `keras.Model.compile` takes for one output: a name, a
            function or a `keras.losses.Loss`.
        partly_labelled: whether sample weights leave out what is not
            labelled. The loss must have a value for each, then.
    """

    def __init__(
        self, task: str, loss: Any, partly_labelled: bool = False
    ) -> None:
        self.task = task
        self.partly_labelled = partly_labelled
        self.loss = loss if _by_shape(loss) else _as_loss(loss)
        super().__init__(
            name=getattr(self.loss, "name", None),
            reduction=getattr(self.loss, "reduction", "sum_over_batch_size"),
        )

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> tf.Tensor:
        loss = self.loss
        if _by_shape(loss):
            loss = _crossentropy(y_true, y_pred)
        if self.partly_labelled:
            self._check_values(loss, y_true, y_pred, sample_weight)
        value = loss(y_true, y_pred, sample_weight)
        if len(value.shape):
            raise ValueError(
                "The loss of a task must be a scalar. "
                f"Received: the loss of task '{self.task}' has shape "
                f"{tuple(value.shape)}. Reduce it, as with "
                "`reduction='sum_over_batch_size'`."
            )
        step = recording.current()
        return value if step is None else step.mark_task_loss(self.task, value)

    def _check_values(
        self, loss: keras.losses.Loss, y_true: Any, y_pred: Any, weight: Any
    ) -> None:
        """Raises if the sample weights would be broadcast, not multiplied."""
        y_true, y_pred = (
            keras.ops.convert_to_tensor(y, loss.dtype) for y in (y_true, y_pred)
        )
        shape = tuple(loss.call(y_true, y_pred).shape)
        expected = tuple(weight.shape)
        if len(shape) != len(expected) or any(
            size != other and (size == 1 or None not in (size, other))
            for size, other in zip(shape, expected, strict=True)
        ):
            raise ValueError(
                "With `unlabelled`, a loss must have a value for each label, "
                f"here of the shape {expected}. Received: the loss of task "
                f"'{self.task}', whose values have the shape {shape}. Take the "
                "mean over the last axis of the predictions alone."
            )


def _by_shape(loss: Any) -> bool:
    """Whether Keras chooses this loss by the shapes it meets."""
    return isinstance(loss, str) and loss.lower() in ("crossentropy", "ce")


def _crossentropy(y_true: Any, y_pred: Any) -> keras.losses.Loss:
    if y_pred.shape[-1] == 1:
        return keras.losses.BinaryCrossentropy()
    if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
        return keras.losses.SparseCategoricalCrossentropy()
    return keras.losses.CategoricalCrossentropy()


def _as_loss(loss: Any) -> keras.losses.Loss:
    resolved = keras.losses.get(loss)
    if isinstance(resolved, keras.losses.Loss):
        return resolved

    def of_examples(y_true: Any, y_pred: Any) -> tf.Tensor:
        # Keras takes no mean over a scalar, nor over the replicas then.
        values = keras.ops.convert_to_tensor(resolved(y_true, y_pred))
        return values if len(values.shape) else values[None]

    return _FunctionLoss(of_examples, name="loss")
