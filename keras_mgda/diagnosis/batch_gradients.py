"""The gradients of all tasks in a batch, in training mode; none are applied."""

import contextlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.column_heads import noted_logits
from keras_mgda.descent.directions import (
    gram_of_parameters,
    gram_of_representation,
)
from keras_mgda.descent.forward import (
    by_task,
    losses_by_task,
    record_forward_pass,
)
from keras_mgda.descent.task_gradients import (
    Rows,
    TaskGradients,
    check_representation,
    check_tasks_are_trained,
    of_total_loss,
    through_heads,
)
from keras_mgda.diagnosis import sketches
from keras_mgda.diagnosis.estimates import Array
from keras_mgda.model import MGDAModel


class BatchGradients(NamedTuple):
    """What a batch tells of the tasks; tensors in a graph, else arrays.

    Attributes:
        rows: `[m, k]`, the gradients of the shared variables, or sketches.
        gram: `[m, m]`, float64, their Gram matrix, never sketched.
        gram_at_z: `[m, m]`, that of the gradients of the representation;
            `None` if nothing marks one.
        losses: `[m]`.
        other_losses: `[m]`, the losses if each prediction is given to another
            example.
        num_labels: `[m]`, how many labels there are.
        num_examples: `[m]`, how many there could be.
        task_weights: `[m]`, those that a training step would take; `None` if
            the model is trained by the plain sum.
    """

    rows: Any
    gram: Any
    gram_at_z: Any
    losses: Any
    other_losses: Any
    num_labels: Any
    num_examples: Any
    task_weights: Any


class Gatherer:
    """Gathers the gradients of all tasks, batch by batch.

    Args:
        model: compiled.
        limit: how many numbers there may be for a gradient.
        weighs: whether the task weights of its own mode are wanted, too.

    Attributes:
        sketch_size: numbers for a gradient, if they are sketched.
    """

    def __init__(self, model: MGDAModel, limit: int, weighs: bool) -> None:
        self.sketch_size: int | None = None
        self._model = model
        self._limit = limit
        self._weighs = weighs
        self._function = tf.function(self._of_batch, autograph=False)
        self._scale = model.optimizer.scale_loss(tf.ones([]))

    def variables(self, batch: Any) -> Sequence[tf.Variable]:
        """Those that are read, or written, at such a batch."""
        function = self._function.get_concrete_function(*batch, self._scale)
        return function.graph.variables

    def at(self, batch: Any) -> BatchGradients:
        """The gradients, at a loss scale that they fit.

        As in training an overflow halves it; it does not grow again.
        """
        while True:
            found = BatchGradients(
                *(
                    None if value is None else value.numpy()
                    for value in self._function(*batch, self._scale)
                )
            )
            overflow = np.isfinite(found.losses).all() and not (
                np.isfinite(np.diag(found.gram)).all()
            )
            if not overflow or self._scale <= 1:
                return found
            self._scale /= 2

    def _of_batch(
        self, x: Any, y: Any, sample_weight: Any, scale: tf.Tensor
    ) -> BatchGradients:
        model = self._model
        with (
            record_forward_pass() as forward,
            noted_logits(forward, model._last_layers),
        ):
            y_pred = model(x, training=True)
            total_loss = model.compute_loss(x, y, y_pred, sample_weight)
        with record_forward_pass() as others:
            rolled = keras.tree.map_structure(
                lambda leaf: tf.roll(leaf, 1, axis=0), y_pred
            )
            model.compute_loss(x, y, rolled, sample_weight)
        forward.complete(model._descent.output_names)
        others.complete(model._descent.output_names)
        variables = model.trainable_variables
        seeds, _ = of_total_loss(forward, variables, total_loss, scale)
        gradients = through_heads(forward, variables, seeds)
        check_tasks_are_trained(gradients)
        gram, rows = gram_of_parameters(gradients)
        if not rows:
            raise ValueError(
                "Some trainable variable must be shared by two tasks, or "
                "nothing can be in conflict. Received: a model without one. "
                "Unfreeze the encoder (`layer.trainable = True`)."
            )
        num_labels, num_examples = _num_labels(model, y, y_pred, sample_weight)
        task_weights = None
        if self._weighs:
            task_weights = model._descent.direction(
                forward, variables, total_loss, loss_scale=scale
            ).task_weights
        return BatchGradients(
            rows=self._numbers(rows.values()) / scale,
            gram=tf.cast(gram, tf.float64) / tf.cast(scale, tf.float64) ** 2,
            gram_at_z=_gram_at_z(gradients),
            losses=losses_by_task(forward, tf.float32),
            other_losses=losses_by_task(others, tf.float32),
            num_labels=num_labels,
            num_examples=num_examples,
            task_weights=task_weights,
        )

    def _numbers(self, rows: Collection[Rows]) -> tf.Tensor:
        """`[m, k]`: the gradients of all tasks, sketched if they are long."""
        if sketches.num_entries(rows) <= self._limit:
            return sketches.exact(rows)
        self.sketch_size = self._limit
        return sketches.sketched(rows, self._limit)


def _num_labels(
    model: MGDAModel, y: Any, y_pred: Any, sample_weight: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """`[m]`: how many labels each task has, and would have without gaps."""
    tasks = model.task_names
    if model._labels is None:
        return tf.ones([len(tasks)]), tf.ones([len(tasks)])

    found = model._labels.find(y, y_pred, sample_weight)
    counts = model._labels.counts(found, y_pred)
    whole = {
        output: tf.ones_like(counts[output])
        * tf.cast(tf.size(of_output.mask) / tf.size(counts[output]), tf.float32)
        for output, of_output in found.items()
    }
    return (
        by_task(list(counts.values())),
        by_task([whole.get(t, n) for t, n in counts.items()]),
    )


def _gram_at_z(gradients: TaskGradients) -> tf.Tensor | None:
    try:
        check_representation(gradients)
    except ValueError:
        return None  # nothing marks where the tasks part
    return gram_of_representation(gradients)


@contextlib.contextmanager
def unchanged() -> Iterator[Any]:
    """Puts back the variables it was told of, however this block ends."""
    before: dict[Any, tuple[tf.Variable, tf.Tensor]] = {}

    def keep(*several: Sequence[Any]) -> None:
        for variable in itertools.chain(*several):
            if isinstance(variable, keras.Variable):
                variable = variable.value
            if isinstance(variable, tf.Variable):
                kept = (variable, variable.read_value())
                before.setdefault(variable.ref(), kept)

    try:
        yield keep
    finally:
        for variable, value in before.values():
            variable.assign(value)


def check_finite(
    found: BatchGradients, tasks: Sequence[str], number: int
) -> None:
    """Raises a `ValueError` if a loss or a gradient is not finite."""
    for what, values in (
        ("loss", found.losses),
        ("gradient", np.diag(found.gram)),
    ):
        bad = [t for t, v in zip(tasks, values, strict=True) if not
               np.isfinite(v)]  # fmt: skip
        if bad:
            raise ValueError(
                "Losses and gradients must be finite. Received: in batch "
                f"{number} the {what} of {bad} is not. Look for NaN in the "
                "data and labels (`compile(unlabelled='nan')` takes them for "
                "missing ones), or diagnose before training diverges."
            )


def products_of(seen: Sequence[BatchGradients]) -> Array:
    """`[m, m, B, B]`: `<g_t^i, g_s^j>`."""
    rows = [of_batch.rows for of_batch in seen]
    m, size = rows[0].shape
    total = np.zeros([len(rows) * m] * 2)
    for start in range(0, size, 8192):  # a copy of a part at a time
        part = np.concatenate([of_i[:, start : start + 8192] for of_i in rows])
        total += part @ part.T
    by_batch = total.reshape(len(rows), m, len(rows), m)
    products = by_batch.transpose(1, 3, 0, 2).copy()
    for i, of_batch in enumerate(seen):  # known without a sketch
        products[:, :, i, i] = of_batch.gram
    return products
