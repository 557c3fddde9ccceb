"""What is logged of the losses, where labels may be missing.

With `L_ti` the loss of example `i` for task `t`, an epoch's logs are

    {task}_loss = (sum of L_ti over all labelled i) / (their number),
    loss = sum_t c_t {task}_loss + the mean of what belongs to no task,

with the loss weights `c_t`, whatever the batches and on any number of replicas.
A task without any label has no loss and no metrics: NaN, and none in the sum.

Of an output whose columns are tasks it is the sum over them, `{output}_loss =
sum_t c_t L_t`, beside `{output}_mean_loss` and `{output}_worst_loss`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.losses import PerColumn


class LossLogs:
    """The losses of an epoch, output by output. Not a part of a model's state.

    To be made in the scope of the strategy that trains.

    Args:
        loss_weights: `{output: c}`.
        columns: `{output: its loss}` of those whose columns are tasks.
    """

    def __init__(
        self,
        loss_weights: Mapping[str, float],
        columns: Mapping[str, PerColumn] | None = None,
    ) -> None:
        self._loss_weights = dict(loss_weights)
        self._columns = dict(columns or {})
        # By labels, as they are logged; by examples, as Keras adds them up.
        self._by_labels = {o: self._tracker(o) for o in loss_weights}
        self._by_examples = {o: self._tracker(o) for o in loss_weights}

    def _tracker(self, output: str) -> keras.metrics.Metric:
        if output not in self._columns:
            return keras.metrics.Mean()
        return _MeanOfColumns(len(self._columns[output].known_names))

    def update(
        self,
        task_losses: Mapping[str, Sequence[tf.Tensor]],
        num_labels: Mapping[str, tf.Tensor],
        num_examples: tf.Tensor,
    ) -> None:
        """Notes the losses of a batch, or of a replica's part of it."""
        for output, of_output in task_losses.items():
            loss = tf.add_n(list(of_output)) / len(of_output)
            # Keras divides by the number of replicas, for gradients add up.
            loss *= tf.distribute.get_strategy().num_replicas_in_sync
            count = num_labels.get(output, num_examples)
            self._by_labels[output].update_state(loss, count)
            self._by_examples[output].update_state(loss, num_examples)

    def reset(self) -> None:
        for tracker in (*self._by_labels.values(), *self._by_examples.values()):
            tracker.reset_state()

    def without_labels(self) -> list[str]:
        """The outputs and columns of which no label was met."""
        found = []
        for output, tracker in self._by_labels.items():
            counts = keras.ops.convert_to_numpy(tracker.count).reshape(-1)
            names = [output]
            if output in self._columns:
                names = self._columns[output].known_names
            found += [
                name
                for name, count in zip(names, counts, strict=True)
                if count == 0.0
            ]
        return found

    def correct(
        self, logs: Mapping[str, Any], outputs_of_metrics: Mapping[str, str]
    ) -> dict[str, Any]:
        """Keras's logs, with the losses as they are defined above.

        Args:
            logs: `{name: value}`.
            outputs_of_metrics: `{name in logs: output}`, whose these are.
        """
        corrected = dict(logs)
        is_labelled = {
            output: tf.reduce_any(tracker.count > 0.0)
            for output, tracker in self._by_labels.items()
        }
        for output, tracker in self._by_labels.items():
            value = self._total(output, tracker)
            if "loss" in logs:
                added = value - self._total(output, self._by_examples[output])
                corrected["loss"] += self._loss_weights[output] * added
            if (name := f"{output}_loss") in logs:
                corrected[name] = tf.where(
                    is_labelled[output], value, float("nan")
                )
            if output in self._columns:
                corrected |= self._of_columns(output, tracker)
        for name, output in outputs_of_metrics.items():
            value = tf.convert_to_tensor(logs[name])
            missing = tf.cast(float("nan"), value.dtype)
            corrected[name] = tf.where(is_labelled[output], value, missing)
        return corrected

    def _total(self, output: str, tracker: keras.metrics.Metric) -> tf.Tensor:
        value = tracker.result()
        if output in self._columns:
            return self._columns[output].total(value)
        return value

    def _of_columns(
        self, output: str, tracker: keras.metrics.Metric
    ) -> dict[str, tf.Tensor]:
        """The mean and the worst of the labelled tasks, and those asked for."""
        loss = self._columns[output]
        values, has_labels = tracker.result(), tracker.count > 0.0
        number = tf.reduce_sum(tf.cast(has_labels, values.dtype))
        nothing = tf.cast(float("nan"), values.dtype)
        lowest = tf.where(has_labels, values, values.dtype.min)
        worst = tf.where(number > 0, tf.reduce_max(lowest), nothing)
        logs = {
            f"{output}_mean_loss": tf.reduce_sum(values) / number,
            f"{output}_worst_loss": worst,
        }
        values = tf.where(has_labels, values, nothing)
        for task in loss.log:
            k = loss.known_names.index(task)
            logs[f"{task}_loss"] = values[k]
        return logs


class _MeanOfColumns(keras.metrics.Metric):
    """A mean for each column, of values `[m]` with weights `[m]`, or `[]`."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self._sum = self.add_variable([m], "zeros", name="total")
        self._count = self.add_variable([m], "zeros", name="count")

    @property
    def count(self) -> tf.Tensor:
        return tf.convert_to_tensor(self._count)

    def update_state(self, values: tf.Tensor, weight: tf.Tensor) -> None:
        weight = tf.cast(weight, self.dtype) + tf.zeros_like(self.count)
        values = tf.cast(values, self.dtype)
        # What has no labels has no loss either, be it NaN.
        self._sum.assign_add(tf.math.multiply_no_nan(values, weight))
        self._count.assign_add(weight)

    def result(self) -> tf.Tensor:
        return tf.math.divide_no_nan(
            tf.convert_to_tensor(self._sum), self.count
        )


def loss_weights_by_output(
    loss_weights: Any, output_names: Sequence[str], with_loss: Sequence[str]
) -> dict[str, float]:
    """The `loss_weights` of `compile`; 1 where none is given.

    Args:
        loss_weights: as `compile` takes them.
        output_names: of all outputs, in order.
        with_loss: those of the outputs that have a loss.
    """
    if isinstance(loss_weights, (list, tuple)):
        loss_weights = dict(zip(output_names, loss_weights, strict=False))
    if isinstance(loss_weights, (int, float)):
        loss_weights = dict.fromkeys(with_loss, loss_weights)
    given = loss_weights or {}
    return {o: 1.0 if given.get(o) is None else given[o] for o in with_loss}
