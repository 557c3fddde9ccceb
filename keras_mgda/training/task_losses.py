"""A task's loss, which tells the training step its value."""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.descent.forward import current_forward_pass
from keras_mgda.internals import FunctionLoss
from keras_mgda.losses import PerColumn

_collected: ContextVar[dict[str, list[tf.Tensor]] | None] = ContextVar(
    "keras_mgda_task_losses", default=None
)


class TaskLoss(keras.losses.Loss):
    """The loss of an output that `compile` was given, and a note of its value.

    The output is one task. With `PerColumn` its columns are tasks, and their
    losses one vector.

    Args:
        output: its name.
        loss: what `keras.Model.compile` takes for one output: a name, a
            function or a `keras.losses.Loss`.
        partly_labelled: whether sample weights leave out what is not
            labelled. The loss must have a value for each, then.
    """

    def __init__(
        self, output: str, loss: Any, partly_labelled: bool = False
    ) -> None:
        self.output = output
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
        if self.partly_labelled and sample_weight is not None:
            check_reduction(self.output, loss)
            self._check_values(loss, y_true, y_pred, sample_weight)
        if isinstance(loss, PerColumn):
            of_columns = loss.of_columns(y_true, y_pred, sample_weight)
            return loss.total(self._noted(of_columns))
        value = loss(y_true, y_pred, sample_weight)
        if len(value.shape):
            raise ValueError(
                "The loss of a task must be a scalar. "
                f"Received: the loss of task '{self.output}' has shape "
                f"{tuple(value.shape)}. Reduce it, as with "
                "`reduction='sum_over_batch_size'`."
            )
        return self._noted(value)

    def _noted(self, value: tf.Tensor) -> tf.Tensor:
        """The same value, or what shall enter the total loss in its place."""
        collected = _collected.get()
        if collected is not None:
            collected.setdefault(self.output, []).append(value)
        forward = current_forward_pass()
        if forward is None:
            return value
        return forward.mark_task_loss(self.output, value)

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
                f"'{self.output}', whose values have the shape {shape}. Take "
                "the mean over the last axis of the predictions alone."
            )


@contextlib.contextmanager
def collected_losses() -> Iterator[Mapping[str, list[tf.Tensor]]]:
    """`{output: values}` of the losses that are computed in this block."""
    collected: dict[str, list[tf.Tensor]] = {}
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def check_reduction(output: str, loss: Any) -> None:
    """Raises a `ValueError` unless a loss is a mean over its examples."""
    reduction = getattr(loss, "reduction", "sum_over_batch_size")
    if reduction not in ("sum_over_batch_size", "mean"):
        raise ValueError(
            "With `unlabelled`, a loss must have the reduction "
            "'sum_over_batch_size', which becomes the mean over the "
            f"labelled examples. Received: {reduction!r} for task '{output}'. "
            "Change it, or give the task the value `None` in `unlabelled` and "
            "no sample weights, if all of its labels are there."
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

    return FunctionLoss(of_examples, name="loss")
