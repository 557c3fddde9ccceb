"""A task's loss, which tells the training step its value."""

from typing import Any

import keras
import tensorflow as tf

from keras_mgda import recording

# The class in which Keras wraps a loss that is a function. It is not exported
# by name, but the losses that are derive from it.
_FunctionLoss = keras.losses.MeanSquaredError.__base__


class TaskLoss(keras.losses.Loss):
    """The loss of one task: what `compile` was given, and a note of its value.

    Args:
        task: the task's name.
        loss: what `keras.Model.compile` takes for one output: a name, a
            function or a `keras.losses.Loss`.
    """

    def __init__(self, task: str, loss: Any) -> None:
        self.task = task
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
