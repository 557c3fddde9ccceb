"""What is logged of the losses, where labels may be missing.

With `L_ti` the loss of example `i` for task `t`, an epoch's logs are

    {task}_loss = (sum of L_ti over all labelled i) / (their number),
    loss = sum_t c_t {task}_loss + the mean of what belongs to no task,

with the loss weights `c_t`, whatever the batches and on any number of replicas.
A task without any label has no loss and no metrics: NaN, and none in the sum.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf


class LossLogs:
    """The losses of an epoch, task by task. Not a part of a model's state.

    To be made in the scope of the strategy that trains.

    Args:
        loss_weights: `{task: c_t}`.
    """

    def __init__(self, loss_weights: Mapping[str, float]) -> None:
        self._loss_weights = dict(loss_weights)
        # By labels, as they are logged; by examples, as Keras adds them up.
        self._by_labels = {t: keras.metrics.Mean() for t in loss_weights}
        self._by_examples = {t: keras.metrics.Mean() for t in loss_weights}

    def update(
        self,
        task_losses: Mapping[str, Sequence[tf.Tensor]],
        num_labels: Mapping[str, tf.Tensor],
        num_examples: tf.Tensor,
    ) -> None:
        """Notes the losses of a batch, or of a replica's part of it."""
        for task, of_task in task_losses.items():
            loss = tf.add_n(list(of_task)) / len(of_task)
            # Keras divides by the number of replicas, for gradients add up.
            loss *= tf.distribute.get_strategy().num_replicas_in_sync
            self._by_labels[task].update_state(loss, num_labels[task])
            self._by_examples[task].update_state(loss, num_examples)

    def reset(self) -> None:
        for tracker in (*self._by_labels.values(), *self._by_examples.values()):
            tracker.reset_state()

    def without_labels(self) -> list[str]:
        """The tasks of which no label was met."""
        return [t for t, m in self._by_labels.items() if float(m.count) == 0.0]

    def correct(
        self, logs: Mapping[str, Any], metrics_by_task: Mapping[str, str]
    ) -> dict[str, Any]:
        """Keras's logs, with the losses as they are defined above.

        Args:
            logs: `{name: value}`.
            metrics_by_task: `{name in logs: task}`, whose metrics these are.
        """
        corrected = dict(logs)
        is_labelled = {t: m.count > 0.0 for t, m in self._by_labels.items()}
        for task, tracker in self._by_labels.items():
            value = tracker.result()
            if "loss" in logs:
                added = value - self._by_examples[task].result()
                corrected["loss"] += self._loss_weights[task] * added
            if (name := f"{task}_loss") in logs:
                corrected[name] = tf.where(
                    is_labelled[task], value, float("nan")
                )
        for name, task in metrics_by_task.items():
            value = tf.convert_to_tensor(logs[name])
            missing = tf.cast(float("nan"), value.dtype)
            corrected[name] = tf.where(is_labelled[task], value, missing)
        return corrected


def loss_weights_by_task(
    loss_weights: Any, output_names: Sequence[str], task_names: Sequence[str]
) -> dict[str, float]:
    """The `loss_weights` of `compile`, by task; 1 where none is given."""
    if isinstance(loss_weights, (list, tuple)):
        loss_weights = dict(zip(output_names, loss_weights, strict=False))
    if isinstance(loss_weights, (int, float)):
        loss_weights = dict.fromkeys(task_names, loss_weights)
    given = loss_weights or {}
    return {t: 1.0 if given.get(t) is None else given[t] for t in task_names}
