"""The update of one step: applied once, and not to what no label trains."""

from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf

from keras_mgda.descent.directions import Direction
from keras_mgda.descent.forward import ForwardPass
from keras_mgda.descent.readers import Readers, find_readers
from keras_mgda.descent.task_gradients import Gradient
from keras_mgda.distribution.replicas import (
    num_replicas,
    share_overflow,
    sum_over_replicas,
)
from keras_mgda.internals import optimizer_sets, variables_of_slots
from keras_mgda.training.skipped_steps import SkippedSteps


class Update:
    """Applies directions, once each, in the order of the variables.

    To be made in the scope of the strategy that trains. Not a part of a model's
    state.

    Args:
        task_names: of the `m` tasks.

    Attributes:
        skipped: counts the steps that changed nothing.
    """

    def __init__(self, task_names: Sequence[str]) -> None:
        self.skipped = SkippedSteps(task_names)
        # For as long as the optimizer gathers gradients.
        self._had_labels = tf.Variable(
            tf.zeros([len(task_names)], tf.bool),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        forward: ForwardPass,
        direction: Direction,
        variables: Sequence[keras.Variable],
    ) -> None:
        """Moves the variables along the direction.

        Args:
            optimizer: keeps its slots by the order of the variables.
            forward: the forward pass that the direction comes from.
            direction: of the step.
            variables: the trainable variables of the model.
        """
        if not optimizer.built:
            with tf.init_scope():
                optimizer.build(variables)
        if direction.admitted is None:
            self._apply(optimizer, forward, direction, variables)
        elif num_replicas() == 1:
            tf.cond(
                direction.admitted,
                lambda: self._apply(optimizer, forward, direction, variables),
                lambda: None,
            )
        else:  # sums over replicas cannot stand in a branch of a graph
            state = [*variables, *optimizer.variables]
            before = [tf.identity(variable.value) for variable in state]
            self._apply(optimizer, forward, direction, variables)
            for variable, value in zip(state, before, strict=True):
                kept = tf.where(direction.admitted, variable.value, value)
                variable.assign(kept)

    def _apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        forward: ForwardPass,
        direction: Direction,
        variables: Sequence[keras.Variable],
    ) -> None:
        gradients = direction.gradients
        if not (skips_overflow(optimizer) or forward.num_labels):
            _apply(optimizer, gradients, variables)
            return
        readers = direction.readers or find_readers(forward, variables)
        if skips_overflow(optimizer):
            self.skipped.add_overflow(forward, direction, readers)
            gradients = share_overflow(gradients)
        if forward.num_labels:
            num_labels = forward.labels_by_task
            has_labels = sum_over_replicas(num_labels) > 0
            self.skipped.add_labels(has_labels)
            self._apply_where_labelled(
                optimizer, gradients, variables, readers, has_labels
            )
        else:
            _apply(optimizer, gradients, variables)

    def _apply_where_labelled(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: list[Gradient],
        variables: Sequence[keras.Variable],
        readers: Readers,
        has_labels: tf.Tensor,
    ) -> None:
        """Applies the gradients, and puts back what has no labels to move it.

        A zero gradient is not enough for a variable to stay: momentum and
        weight decay move it, too. Its slots stay as well, or its momentum
        would fade. The rest of the optimizer stays if no task has a label. Of
        a variable whose columns are tasks, and of its slots of the same shape,
        each column moves or stays on its own.
        """
        any_labels = tf.reduce_any(has_labels)
        self.skipped.add_without_labels(~any_labels)
        state = [*variables, *optimizer.variables]
        of_slots = variables_of_slots(optimizer.variables, variables)
        # The variable that each is, or is a slot of; or the optimizer's own.
        places = [*range(len(variables)), *of_slots]

        def kept(some: Iterable[int]) -> dict[int, tf.Tensor]:
            return {k: tf.identity(state[k].value) for k in some}

        def put_back(before: dict[int, tf.Tensor], labels: tf.Tensor) -> None:
            for k, value in before.items():
                moved = _moves(state[k], places[k], variables, readers, labels)
                state[k].assign(tf.where(moved, state[k].value, value))

        accumulates = optimizer_sets(optimizer, "gradient_accumulation_steps")
        if num_replicas() == 1 and not accumulates:

            def apply() -> None:
                # What moves with any task is the most of it, and not copied.
                before = kept(
                    k
                    for k, i in enumerate(places)
                    if i is not None and not _moves_with_any(i, readers)
                )
                _apply(optimizer, gradients, variables)
                put_back(before, has_labels)

            tf.cond(any_labels, apply, lambda: None)
            return
        # Sums over replicas cannot stand in a branch of the graph.
        before = kept(range(len(state)))
        num_updates = tf.identity(optimizer.iterations)
        _apply(optimizer, gradients, variables)
        if accumulates:
            # A task had labels if it had in any step since the last update.
            has_labels |= self._had_labels
            goes_on = num_updates == optimizer.iterations
            self._had_labels.assign(has_labels & goes_on)
        put_back(before, has_labels)


def _moves_with_any(i: int, readers: Readers) -> bool:
    """Whether a variable moves as soon as one task has labels."""
    of_variable = readers.of_variables[i]
    return i not in readers.by_column and (
        len(of_variable) in (0, readers.num_tasks)
    )


def _moves(
    variable: keras.Variable,
    i: int | None,
    variables: Sequence[keras.Variable],
    readers: Readers,
    has_labels: tf.Tensor,
) -> tf.Tensor:
    """Whether a variable moves, `[]`, or which columns of it, `[m]`.

    Args:
        variable: one of the model, or a slot of it.
        i: the number of that of the model; `None` for the optimizer's own.
        variables: of the model.
        readers: which tasks read these.
        has_labels: `[m]`, bool.
    """
    if i is None or _moves_with_any(i, readers):
        return tf.reduce_any(has_labels)
    if i in readers.by_column and variable.shape == variables[i].shape:
        return tf.gather(has_labels, readers.owners(i))
    return tf.reduce_any(tf.gather(has_labels, readers.of_variables[i]))


def skips_overflow(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether a step whose gradients are not finite changes nothing."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _apply(
    optimizer: keras.optimizers.Optimizer,
    gradients: list[Gradient],
    variables: Sequence[keras.Variable],
) -> None:
    # As the step of stock Keras does, for optimizers that override it.
    optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
