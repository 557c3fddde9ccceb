"""A Keras model that trains on examples not labelled for every task."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.descent import forward as recording
from keras_mgda.distribution.replicas import ReplicatedModel, sum_over_replicas
from keras_mgda.training import tasks
from keras_mgda.training.labels import (
    Labelled,
    Marker,
    check_reductions,
    find_all,
    markers_by_task,
)
from keras_mgda.training.optimizer_slots import (
    gathers_gradients,
    variables_of_slots,
)
from keras_mgda.training.skipped_steps import SkippedSteps


class PartlyLabelledModel(ReplicatedModel):
    """A `keras.Model` with named outputs whose labels may be missing.

    With `compile(unlabelled=...)`, losses and metrics of a task count labelled
    examples only. `fit` warns of steps that changed nothing.
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
        losses = tasks.of_loss(loss)
        self._unlabelled: dict[str, Marker] | None = markers_by_task(
            unlabelled, list(losses)
        )
        # Keras would track it, and take the metrics in it once more.
        given = {"unlabelled": unlabelled, "metrics": metrics}
        object.__setattr__(self, "_given", given)
        if self._unlabelled is not None:
            if weighted_metrics:
                raise ValueError(
                    "With `unlabelled`, metrics must be given as `metrics`: "
                    "they count the labelled examples, each with weight 1. "
                    f"Received: weighted_metrics={weighted_metrics!r}."
                )
            check_reductions(losses)
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
            self._skipped = SkippedSteps(list(losses))
            # For as long as the optimizer gathers gradients. Not a part of the
            # model's state.
            had_labels = tf.Variable(
                tf.zeros([len(losses)], tf.bool),
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            object.__setattr__(self, "_had_labels", had_labels)

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if not config or self._unlabelled is None:
            return config
        given = keras.saving.serialize_keras_object(self._given)
        return {**config, **given, "weighted_metrics": None}

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        history = super().fit(*args, **kwargs)
        for message in self._skipped.report():
            warnings.warn(message, stacklevel=2)
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
        labels = find_all(self._unlabelled, y, y_pred, sample_weight)
        step = recording.current()
        if step is not None:
            step.num_labels = {t: found.count for t, found in labels.items()}
        y = _with_zeros(y, labels)
        weights = {t: found.sample_weight for t, found in labels.items()}
        before = {
            tracker: (tracker.total + 0.0, tracker.count + 0.0)
            for tracker in self._loss_trackers(labels)
        }
        loss = super().compute_loss(
            x, y, y_pred, _like(y_pred, weights), training
        )
        # The first call makes them.
        for tracker, task in self._loss_trackers(labels).items():
            total, count = before.get(tracker, (0.0, 0.0))
            _recount(tracker, total, count, labels[task].count)
        return loss

    def _loss_trackers(
        self, labels: Mapping[str, Labelled]
    ) -> dict[keras.metrics.Mean, str]:
        """The metrics that log the losses, and the tasks whose these are."""
        names = {f"{task}_loss": task for task in labels}
        return {
            metric: names[metric.name]
            for metric in self.metrics
            if isinstance(metric, keras.metrics.Mean) and metric.name in names
        }

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        if self._unlabelled is not None:
            labels = find_all(self._unlabelled, y, y_pred, sample_weight)
            y = _with_zeros(y, labels)
            sample_weight = _like(
                y_pred, {t: found.mask for t, found in labels.items()}
            )
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _apply_where_labelled(
        self,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        readers: Sequence[Sequence[int]],
        num_labels: Sequence[tf.Tensor],
    ) -> None:
        """Applies the gradients, and puts back what has no labels to move it.

        A zero gradient is not enough for a variable to stay: momentum and
        weight decay move it, too. Its slots stay as well, or its momentum
        would fade. The rest of the optimizer stays if no task has a label.

        Args:
            gradients: of the variables.
            variables: the trainable variables of the model.
            readers: for each the tasks that it learns from.
            num_labels: of each task on this replica; empty if nobody counts.
        """
        if not num_labels:
            self.optimizer.apply(gradients, variables)
            return
        if not self.optimizer.built:
            with tf.init_scope():
                self.optimizer.build(variables)
        has_labels = sum_over_replicas(tf.stack(num_labels)) > 0
        self._skipped.add_without_labels(~tf.reduce_any(has_labels))
        slots = self.optimizer.variables
        state = [*variables, *slots]
        before = [tf.identity(variable.value) for variable in state]
        has_labels = self._apply_gathered(gradients, variables, has_labels)
        any_labels = tf.reduce_any(has_labels)
        moves = [
            tf.reduce_any(tf.gather(has_labels, of_variable))
            for of_variable in readers
        ]
        moves += [
            any_labels if i is None else moves[i]
            for i in variables_of_slots(slots, variables)
        ]
        for variable, value, moved in zip(state, before, moves, strict=True):
            variable.assign(tf.where(moved, variable.value, value))

    def _apply_gathered(
        self,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        has_labels: tf.Tensor,
    ) -> tf.Tensor:
        """Applies the gradients.

        Returns:
            `[m]`, bool: which tasks had labels since the optimizer last moved
            the variables. It may gather the gradients of several steps.
        """
        num_updates = tf.identity(self.optimizer.iterations)
        self.optimizer.apply(gradients, variables)
        if not gathers_gradients(self.optimizer):
            return has_labels
        has_labels |= self._had_labels
        goes_on = num_updates == self.optimizer.iterations
        self._had_labels.assign(has_labels & goes_on)
        return has_labels


def _with_zeros(y: Any, labels: Mapping[str, Labelled]) -> Any:
    """The same labels, with zero for those that are missing."""
    return tasks.map_named(
        lambda name, given: labels[name].y_true if name in labels else given, y
    )


def _like(structure: Any, by_name: Mapping[str, Any]) -> Any:
    """The values in this structure, `None` where there are none."""
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
    num_labels = tf.cast(num_labels, value.dtype)
    tracker.total.assign(total + value * num_labels)
    tracker.count.assign(count + num_labels)
