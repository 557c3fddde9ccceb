"""Training steps that changed nothing, counted where they are made."""

from collections.abc import Sequence

import tensorflow as tf

from keras_mgda.descent.directions import Direction
from keras_mgda.descent.forward import ForwardPass, num_tasks_of
from keras_mgda.descent.readers import Readers, losses
from keras_mgda.distribution.replicas import sum_over_replicas
from keras_mgda.training.tasks import listed


class SkippedSteps:
    """Counts the steps that changed nothing. Not a part of a model's state.

    To be made in the scope of the strategy that trains.

    Args:
        task_names: of the `m` tasks.
    """

    def __init__(self, task_names: Sequence[str]) -> None:
        self._places = [
            *(f"task '{task}'" for task in task_names),
            "the encoder",
        ]
        self._without_labels = _counter([])
        self._overflown = _counter([])
        self._at_place = _counter([len(self._places)])
        self._task_names = list(task_names)
        self._with_labels = _counter([len(task_names)])

    def add_without_labels(self, happened: tf.Tensor) -> None:
        self._without_labels.assign_add(tf.cast(happened, tf.int32))

    def add_labels(self, has_labels: tf.Tensor) -> None:
        """Notes which tasks, `[m]`, had labels in a step."""
        self._with_labels.assign(
            tf.maximum(self._with_labels, tf.cast(has_labels, tf.int32))
        )

    def add_overflow(
        self, forward: ForwardPass, direction: Direction, readers: Readers
    ) -> None:
        """Notes a step, if a `LossScaleOptimizer` skips it, and whose fault.

        A task's, if its loss, its row of the Gram matrix or the gradient of
        its head is not finite; the encoder's, if that is so of no task.
        """
        at_place, skipped = _overflown(losses(forward), direction, readers)
        self._overflown.assign_add(tf.cast(skipped, tf.int32))
        self._at_place.assign_add(tf.cast(skipped & at_place, tf.int32))

    def report(self) -> list[str]:
        """What happened since the last report."""
        messages = []
        if steps := int(self._without_labels.numpy()):
            messages.append(
                f"{steps} training steps changed nothing: no task had a "
                "label in their batches."
            )
        if steps := int(self._overflown.numpy()):
            counts = zip(self._places, self._at_place.numpy(), strict=True)
            at = ", ".join(f"in {n} for {where}" for where, n in counts if n)
            messages.append(
                f"{steps} training steps were skipped, because values "
                f"overflowed: {at}. Each lowered the loss scale; a few of them "
                "are normal. If they go on, look for large or non-finite "
                "labels, or give the layers there the dtype 'float32'."
            )
        with_labels = self._with_labels.numpy()
        if with_labels.any() and not with_labels.all():
            without = [
                name
                for name, met in zip(self._task_names, with_labels, strict=True)
                if not met
            ]
            messages.append(
                f"The training data held no label of {listed(without)}: what "
                "is theirs alone was not trained. Give labels, or leave these "
                "tasks out."
            )
        for variable in (
            self._without_labels,
            self._overflown,
            self._at_place,
            self._with_labels,
        ):
            variable.assign(tf.zeros_like(variable))
        return messages


def _counter(shape: Sequence[int]) -> tf.Variable:
    return tf.Variable(
        tf.zeros(shape, tf.int32),
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def _overflown(
    task_losses: Sequence[list[tf.Tensor]],
    direction: Direction,
    readers: Readers,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Where some replica has values that are not finite.

    Returns:
        `[m + 1]`, bool, for the tasks and the encoder; `[]`, whether any
        gradient is not finite.
    """
    m = readers.num_tasks
    # Where it is computed, and whether any value there is not finite.
    computed, first = [], 0
    for of_output in task_losses:
        tasks = list(range(first, first := first + num_tasks_of(of_output)))
        computed += [(tasks, _not_finite(loss, tasks)) for loss in of_output]
    places = [
        readers.owners(i) or [m] for i in range(len(readers.of_variables))
    ]
    owned = [
        (place, _not_finite(gradient, place))
        for place, gradient in zip(places, direction.gradients, strict=True)
        if gradient is not None
    ]
    both = computed + owned
    at_place = tf.math.unsorted_segment_sum(
        tf.concat([counts for _, counts in both], 0),
        [task for place, _ in both for task in place],
        m + 1,
    )
    skipped = tf.add_n([tf.reduce_sum(counts) for _, counts in owned])
    counts = sum_over_replicas(tf.concat([at_place, skipped[None]], 0))
    found = counts > 0
    of_tasks = found[:m]
    if direction.gram is not None:
        squared_norms = tf.linalg.diag_part(direction.gram)
        of_tasks |= ~tf.math.is_finite(squared_norms)
    encoder = found[m] & ~tf.reduce_any(of_tasks)
    return tf.concat([of_tasks, encoder[None]], 0), found[m + 1]


def _not_finite(
    value: tf.Tensor | tf.IndexedSlices, tasks: Sequence[int]
) -> tf.Tensor:
    """`[1]`, 1 or 0, or `[m]` for a value whose last axis are tasks."""
    finite = tf.math.is_finite(getattr(value, "values", value))
    if len(tasks) > 1:
        finite = tf.reduce_all(tf.reshape(finite, [-1, len(tasks)]), axis=0)
    else:
        finite = tf.reduce_all(finite)[None]
    return 1.0 - tf.cast(finite, tf.float32)
