"""The step that was really taken: what it did to the loss of each task.

A direction is the optimizer's input. What the variables do is its output:
momentum, Adam's scaling, clipping, weight decay and averages come in between.
With `theta` for what is shared, `h_t` for the head of task `t`, and a prime
for what they are after the update,

    after_t   = L_t(theta', h_t'),    before_t = L_t(theta, h_t),
    encoder_t = L_t(theta', h_t),

all on the same batch in training mode, with the same dropout masks. No
derivative is needed.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.descent.directions import Direction
from keras_mgda.descent.forward import (
    ForwardPass,
    losses_by_task,
    repeat_forward_pass,
)
from keras_mgda.descent.looks import Looks
from keras_mgda.descent.readers import find_readers
from keras_mgda.distribution.replicas import (
    num_replicas,
    replica_shares,
    sum_over_replicas,
    without_collectives,
)
from keras_mgda.internals import (
    global_seed_state,
    half_precisions,
    optimizer_sets,
)

# A relative change of float32 losses that may be rounding alone: the two
# forward passes need not be compiled alike. Where layers compute in half
# precision, operations that are fused in one of them round once instead of
# twice, each by half an epsilon at most.
ROUNDING = 1e-6
_EPSILON = {"float16": 2**-10, "bfloat16": 2**-7}
# Operations on TensorFlow's variables and generators, by how they begin.
_OWN_STATE = (
    "Assign",
    "ResourceScatter",
    "Random",
    "TruncatedNormal",
    "Multinomial",
    "Rng",
)


class TakenStep:
    """A step of a model, to be looked at when it is made.

    To be made before the forward pass, which moves seeds and statistics: the
    passes that are made to look start from the same, and leave no trace.

    Args:
        model: that makes the step.
    """

    def __init__(self, model: keras.Model) -> None:
        self._optimizer = model.optimizer
        self._variables = model.trainable_variables
        self._trained = _read(self._variables)
        state = list(model.non_trainable_variables)
        if num_replicas() == 1:  # several threads have no generator in common
            state.append(global_seed_state())
        self._state = list(zip(state, _read(state), strict=True))
        self._num_updates = tf.identity(self._optimizer.iterations)
        self._rounding = max(
            [ROUNDING]
            + [_EPSILON[dtype] / 2 for dtype in half_precisions(model)]
        )

    def note(
        self,
        looks: Looks,
        forward: ForwardPass,
        direction: Direction,
        run: Callable[[], Any],
        *,
        skips: bool,
    ) -> None:
        """Notes what the step did, once the optimizer has made it.

        Args:
            looks: tells whether to look, and takes what is found.
            forward: the forward pass of the step.
            direction: of the step.
            run: makes that forward pass once more, losses and all.
            skips: whether a step that is not finite is skipped.
        """
        before = losses_by_task(forward, tf.float64)
        due = looks.is_due(before, self._is_update())
        readers = direction.readers or find_readers(forward, self._variables)

        def look() -> tf.Tensor:
            outputs = list(forward.task_losses)
            now = _read(self._variables)
            after, z = self._once_more(run, outputs, now)
            # A head that begins before `Z` moves a part of it.
            given = z if z and not readers.branches else None
            moved = [
                new if readers.is_shared(i) else old
                for i, (new, old) in enumerate(
                    zip(now, self._trained, strict=True)
                )
            ]
            of_encoder, _ = self._once_more(run, outputs, moved, given)
            return tf.stack([after, of_encoder])

        if due is None:
            losses = look()
        else:
            with without_collectives(
                "the model", "or look at every step, `verify_every=1`"
            ):
                losses = tf.cond(due, look, lambda: tf.stack([before] * 2))
        losses = tf.concat([before[None], losses], 0)
        labelled = tf.ones(before.shape, tf.bool)
        if forward.num_labels:
            num_labels = forward.labels_by_task
            labelled = sum_over_replicas(num_labels) > 0
            losses *= tf.cast(replica_shares(num_labels), losses.dtype)
        before, after, of_encoder = tf.unstack(sum_over_replicas(losses))
        found = changes(before, after, of_encoder, labelled, self._rounding)
        if forward.num_labels:
            any_labels = tf.reduce_any(labelled)
            due = any_labels if due is None else due & any_labels
        looks.note(found, due, finite=skips)

    def _is_update(self) -> tf.Tensor | None:
        """Whether the optimizer moved anything, or gathered gradients only."""
        if not optimizer_sets(self._optimizer, "gradient_accumulation_steps"):
            return None
        return tf.not_equal(self._optimizer.iterations, self._num_updates)

    def _once_more(
        self,
        run: Callable[[], Any],
        outputs: Sequence[str],
        trained: Sequence[tf.Tensor],
        z: Sequence[tf.Tensor] | None = None,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The losses, and `Z`, of the same forward pass by other variables.

        Args:
            run: makes it.
            outputs: their names, in order.
            trained: the values of the trainable variables.
            z: what heads shall read for `Z`. Then nothing needs the encoder,
                and TensorFlow does not run it.
        """
        mapping = zip(self._variables, trained, strict=True)
        with (
            _only_keras_state(),
            keras.StatelessScope([*self._state, *mapping]),
            repeat_forward_pass(z) as repeated,
        ):
            run()
        repeated.complete(outputs)
        return losses_by_task(repeated, tf.float64), repeated.read


def changes(
    before: tf.Tensor,
    after: tf.Tensor,
    of_encoder: tf.Tensor,
    labelled: tf.Tensor,
    rounding: float = ROUNDING,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What a step did to the losses of `m` tasks.

    Changes are relative to the loss before; that of a loss which was zero, to
    the loss after. NaN is no fall of a loss, and the worst change there is.

    Args:
        before: `[m]`, the losses before the step.
        after: `[m]`, those after it.
        of_encoder: `[m]`, those with the heads as before.
        labelled: `[m]`, bool: the tasks that count.
        rounding: the relative change that may be rounding alone.

    Returns:
        `[]` each: how many losses rose, by more than rounding; the largest
        change; that of the same task with the heads as before.
    """
    change = _relative(after, before)
    falls = (change <= rounding) | ~labelled
    infinity = tf.constant(float("inf"), change.dtype)
    order = tf.where(tf.math.is_nan(change), infinity, change)
    worst = tf.argmax(tf.where(labelled, order, -infinity))
    return (
        tf.reduce_sum(tf.cast(~falls, tf.int32)),
        tf.gather(change, worst),
        tf.gather(_relative(of_encoder, before), worst),
    )


def _relative(after: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    size = tf.abs(tf.where(before == 0.0, after, before))
    return tf.math.divide_no_nan(after - before, size)


@contextlib.contextmanager
def _only_keras_state() -> Iterator[None]:
    """Raises if state is met here that a `StatelessScope` does not hold.

    A graph tells; eager execution does not.
    """
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    yield
    for operation in graph.get_operations()[before:]:
        if operation.type.startswith(_OWN_STATE):
            raise ValueError(
                "With `verify='step'` all state and randomness of the model "
                "must be Keras's own, or to compute the losses once more "
                "would change them. Received: the operation "
                f"'{operation.name}' of type {operation.type}. Use "
                "`add_weight` in place of `tf.Variable`, and `keras.random` "
                "with a `SeedGenerator` in place of `tf.random`."
            )


def _read(variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
    return [tf.identity(variable.value) for variable in variables]
