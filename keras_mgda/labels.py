"""Training on examples that are not labelled for every task.

An example counts for the tasks that it is labelled for, and for no other. With
`W_ti` the sample weight of example `i` for task `t`, and `N_t` the number of
examples in the global batch that are labelled for it,

    L_t = (sum of W_ti l_ti over the labelled i) / N_t.

Keras divides by the whole batch instead, so that a rarely labelled task has
small gradients, to which MGDA would give a large weight.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mgda import recording, tasks
from keras_mgda.replicas import ReplicatedModel, sum_over_replicas

Marker = str | float | None


class Labelled(NamedTuple):
    """One task's labels, without those that are missing.

    Attributes:
        y_true: as given, with zero for the missing ones.
        mask: 1 where labelled and 0 elsewhere, in the shape of the losses:
            that of `y_pred` without its last axis. Float32.
        sample_weight: in the same shape; the mean over all losses under it is
            the mean over the labelled ones.
        count: `[]`, how many are labelled.
    """

    y_true: tf.Tensor
    mask: tf.Tensor
    sample_weight: tf.Tensor
    count: tf.Tensor


def find_labels(
    y_true: tf.Tensor,
    y_pred: tf.Tensor,
    sample_weight: tf.Tensor | None,
    marker: Marker,
) -> Labelled:
    """Which losses of a task count.

    Args:
        y_true: `[b, ...]`, labels.
        y_pred: `[b, ..., c]`, predictions; their Keras mask is respected.
        sample_weight: `[b]`, or as the losses; zero means not labelled.
        marker: the value of a missing label, `"nan"` for NaN. A label that has
            several entries is missing if one of them is. `None` if labels are
            missing by sample weight and mask alone.
    """
    present = tf.ones_like(y_true, tf.bool)
    if marker == "nan" and y_true.dtype.is_floating:
        present = ~tf.math.is_nan(y_true)
    elif marker not in (None, "nan"):
        present = y_true != tf.cast(marker, y_true.dtype)
    y_true = tf.where(present, y_true, tf.zeros_like(y_true))

    if present.shape.rank == y_pred.shape.rank:
        present = tf.reduce_all(present, axis=-1)
    mask = tf.cast(present, tf.float32)
    # Keras divides by the number of losses, or of those under its own mask.
    keras_mask = getattr(y_pred, "_keras_mask", None)
    divisor = tf.cast(tf.size(mask), tf.float32)
    if keras_mask is not None:
        keras_mask = tf.cast(keras_mask, tf.float32)
        divisor = tf.reduce_sum(keras_mask)
        mask *= _expanded(keras_mask, mask)
    scaled = mask
    if sample_weight is not None:
        sample_weight = _expanded(tf.cast(sample_weight, tf.float32), mask)
        mask *= tf.cast(sample_weight != 0.0, tf.float32)
        scaled = mask * sample_weight
    count = tf.reduce_sum(mask)
    scaled *= tf.math.divide_no_nan(divisor, count)
    return Labelled(y_true, mask, scaled, count)


def _expanded(weight: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """`[b]`, or `[b, 1]`, as `[b, 1, ...]` of the rank of `mask`."""
    missing = mask.shape.rank - weight.shape.rank
    if missing < 0 and weight.shape[-1] == 1:
        return tf.squeeze(weight, -1)
    return tf.reshape(weight, tf.concat([tf.shape(weight), [1] * missing], 0))


class PartlyLabelledModel(ReplicatedModel):
    """A `keras.Model` with named outputs whose labels may be missing.

    With `compile(unlabelled=...)`, losses and metrics of a task count labelled
    examples only.
    """

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        *args: Any,
        unlabelled: Any = None,
        **kwargs: Any,
    ) -> None:
        self._unlabelled: dict[str, Marker] | None = _markers(
            unlabelled, list(tasks.flatten(loss))
        )
        self._given = {"unlabelled": unlabelled, "metrics": metrics}
        if self._unlabelled is not None:
            if weighted_metrics:
                raise ValueError(
                    "With `unlabelled`, metrics must be given as `metrics`: "
                    "they count the labelled examples, each with weight 1. "
                    f"Received: weighted_metrics={weighted_metrics!r}."
                )
            _check_reductions(tasks.flatten(loss))
            metrics, weighted_metrics = None, metrics
        super().compile(
            optimizer,
            loss,
            loss_weights,
            metrics,
            weighted_metrics,
            *args,
            **kwargs,
        )
        with self.distribute_strategy.scope():
            self._empty_steps = _Counter()

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if not config or self._unlabelled is None:
            return config
        given = keras.saving.serialize_keras_object(self._given)
        return {**config, **given, "weighted_metrics": None}

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        history = super().fit(*args, **kwargs)
        if empty := self._empty_steps.reset():
            warnings.warn(
                f"{empty} training steps changed nothing: no task had a "
                "label in their batches.",
                stacklevel=2,
            )
        return history

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        if self._unlabelled is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        labels = _find_all(self._unlabelled, y, y_pred, sample_weight)
        step = recording.current()
        if step is not None:
            step.num_labels = {t: found.count for t, found in labels.items()}
        y = _replaced(y, {t: found.y_true for t, found in labels.items()})
        weights = {t: found.sample_weight for t, found in labels.items()}
        trackers = {
            metric.name: (metric, metric.total + 0.0, metric.count + 0.0)
            for metric in self.metrics
            if isinstance(metric, keras.metrics.Mean)
        }
        loss = super().compute_loss(
            x, y, y_pred, _replaced(y_pred, weights), training
        )
        for task, found in labels.items():
            if f"{task}_loss" in trackers:
                _recount(*trackers[f"{task}_loss"], found.count)
        return loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        if self._unlabelled is not None:
            labels = _find_all(self._unlabelled, y, y_pred, sample_weight)
            y = _replaced(y, {t: found.y_true for t, found in labels.items()})
            sample_weight = _replaced(
                y_pred, {t: found.mask for t, found in labels.items()}
            )
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _apply_where_labelled(
        self,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        owners: Sequence[int | None],
        num_labels: Sequence[tf.Tensor],
    ) -> None:
        """Applies the gradients, and puts back what has no labels to move it.

        A zero gradient is not enough for a variable to stay: momentum and
        weight decay move it, too. What is shared stays, and the optimizer with
        it, if no task has a label.
        """
        if not num_labels:
            self.optimizer.apply(gradients, variables)
            return
        if not self.optimizer.built:
            with tf.init_scope():
                self.optimizer.build(variables)
        labelled = sum_over_replicas(tf.stack(num_labels)) > 0
        any_labelled = tf.reduce_any(labelled)
        by_task = tf.unstack(labelled)
        moves = [any_labelled if t is None else by_task[t] for t in owners]
        state = [*variables, *self.optimizer.variables]
        moves += [any_labelled] * (len(state) - len(moves))
        before = [tf.identity(variable.value) for variable in state]
        self.optimizer.apply(gradients, variables)
        for variable, value, moved in zip(state, before, moves, strict=True):
            variable.assign(tf.where(moved, variable.value, value))
        self._empty_steps.add(~any_labelled)


def _find_all(
    markers: Mapping[str, Marker], y: Any, y_pred: Any, sample_weight: Any
) -> dict[str, Labelled]:
    """`find_labels` for every task."""
    labels, predictions = tasks.flatten(y), tasks.flatten(y_pred)
    missing = [task for task in markers if task not in labels]
    if missing:
        raise ValueError(
            "Labels must be a dict that names every task. Received: "
            f"{list(labels)}, without {missing}. Fill in the value of "
            "`unlabelled` where there are none."
        )
    weights = tasks.flatten(sample_weight)
    common = weights.get("")  # one for all outputs
    return {
        task: find_labels(
            tf.convert_to_tensor(labels[task]),
            predictions[task],
            weights.get(task, common),
            marker,
        )
        for task, marker in markers.items()
    }


class _Counter:
    """Counts training steps. Not a part of the model's state."""

    def __init__(self) -> None:
        self._steps = tf.Variable(
            0,
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def add(self, happened: tf.Tensor) -> None:
        self._steps.assign_add(tf.cast(happened, self._steps.dtype))

    def reset(self) -> int:
        steps = int(self._steps.numpy())
        self._steps.assign(0)
        return steps


def _markers(
    unlabelled: Any, task_names: Sequence[str]
) -> dict[str, Marker] | None:
    """What marks a missing label, for each task."""
    if unlabelled is None:
        return None
    if not isinstance(unlabelled, Mapping):
        unlabelled = dict.fromkeys(task_names, unlabelled)
    markers = {t: "nan" if m != m else m for t, m in unlabelled.items()}
    if set(markers) != set(task_names) or not all(
        marker in (None, "nan") or isinstance(marker, (int, float))
        for marker in markers.values()
    ):
        raise ValueError(
            "`unlabelled` must be 'nan', a number, or a dict that gives every "
            "task one of these or `None`. "
            f"Received: {unlabelled!r} for the tasks {list(task_names)}."
        )
    return markers


def _check_reductions(losses: Mapping[str, Any]) -> None:
    for task, loss in losses.items():
        reduction = getattr(loss, "reduction", "sum_over_batch_size")
        if reduction not in ("sum_over_batch_size", "mean"):
            raise ValueError(
                "With `unlabelled`, a loss must have the reduction "
                "'sum_over_batch_size', which becomes the mean over the "
                f"labelled examples. Received: {reduction!r} for task '{task}'."
            )


def _replaced(structure: Any, by_name: Mapping[str, Any]) -> Any:
    return tasks.map_named(lambda name, _: by_name.get(name), structure)


def _recount(
    tracker: keras.metrics.Mean,
    total: tf.Tensor,
    count: tf.Tensor,
    num_labels: tf.Tensor,
) -> None:
    """Weighs the last value of a tracker by its number of labels.

    Keras weighs it by the size of the batch, if that is known at all.
    """
    value = tf.math.divide_no_nan(tracker.total - total, tracker.count - count)
    tracker.total.assign(total + value * num_labels)
    tracker.count.assign(count + num_labels)
