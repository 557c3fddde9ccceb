"""The update of one step: the optimizer moves what has labels to move it."""

from collections.abc import Sequence

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
        else:  # whose sums cannot stand in a branch of the graph
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
            num_labels = forward.by_task(list(forward.num_labels.values()))
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
        self.skipped.add_without_labels(~tf.reduce_any(has_labels))
        slots = optimizer.variables
        state = [*variables, *slots]
        before = [tf.identity(variable.value) for variable in state]
        num_updates = tf.identity(optimizer.iterations)
        _apply(optimizer, gradients, variables)
        if optimizer_sets(optimizer, "gradient_accumulation_steps"):
            # A task had labels if it had in any step since the last update.
            has_labels |= self._had_labels
            goes_on = num_updates == optimizer.iterations
            self._had_labels.assign(has_labels & goes_on)
        any_labels = tf.reduce_any(has_labels)
        moves = [
            tf.reduce_any(tf.gather(has_labels, of_variable))
            if of_variable
            else any_labels
            for of_variable in readers.of_variables
        ]
        of_columns = {
            i: tf.gather(has_labels, readers.owners(i))
            for i in readers.by_column
        }
        of_slots = variables_of_slots(slots, variables)
        moves += [any_labels if i is None else moves[i] for i in of_slots]
        for place, i in enumerate([*range(len(variables)), *of_slots]):
            if i in of_columns and state[place].shape == variables[i].shape:
                moves[place] = of_columns[i]
        for variable, value, moved in zip(state, before, moves, strict=True):
            variable.assign(tf.where(moved, variable.value, value))


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
