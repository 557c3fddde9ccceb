"""The direction of one step: what every variable moves along.

In all modes the shared variables `theta` move along `sum_t w_t dL_t/dtheta` and
a head's own along their plain gradient (Sener & Koltun, 2018, Algorithm 2). The
modes differ in the task gradients whose Gram matrix chooses the weights `w`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_mgda.descent import encoder_products as encoder
from keras_mgda.descent.forward import Recording
from keras_mgda.descent.task_gradients import (
    Gradient,
    add,
    combine,
    may_be_encoder,
    reached,
    stack,
)
from keras_mgda.distribution.replicas import sum_over_replicas
from keras_mgda.linalg.gram import jacobian_gram


class Step(NamedTuple):
    """What a direction is made from.

    Attributes:
        recording: of the forward pass.
        variables: the trainable variables of the model.
        at_cut: `dL_t/dZ`, one `[m, b, ...]` for each tensor of `Z`.
        direct: for each variable `{task index: gradient}` of the tasks that
            reach it without passing `Z`.
        weigh: from the Gram matrix `[m, m]` to the task weights `[m]`.
    """

    recording: Recording
    variables: Sequence[keras.Variable]
    at_cut: list[tf.Tensor]
    direct: list[dict[int, Gradient]]
    weigh: Callable[[tf.Tensor], tf.Tensor]

    @property
    def num_tasks(self) -> int:
        return len(self.recording.task_losses)


class Verification(NamedTuple):
    """How the tasks do along a direction, to first order.

    Attributes:
        num_conflicts: `[]`, how many tasks were in conflict with the direction
            of the weighting, before any correction.
        num_corrections: `[]`, how many corrections were made.
        min_cosine: `[]`, the smallest cosine between the direction taken and
            a task gradient. The norms of the task gradients are estimated: by
            those that the weighting saw, on the scale on which the norm of
            the direction is right.
    """

    num_conflicts: tf.Tensor
    num_corrections: tf.Tensor
    min_cosine: tf.Tensor


class Direction(NamedTuple):
    """The direction of one step.

    Attributes:
        gradients: of each variable.
        task_weights: `[m]`.
        owners: for each variable the index of the one task whose head it is a
            part of; `None` if it is shared, or not reached.
        readers: for each variable the indices of the tasks that it learns from.
        gram: `[m, m]`, what the task weights were chosen by.
        verification: if the direction was looked at.
    """

    gradients: list[Gradient]
    task_weights: tf.Tensor
    owners: list[int | None]
    readers: list[list[int]]
    gram: tf.Tensor
    verification: Verification | None = None


def along_representation(step: Step) -> Direction:
    """MGDA-UB: weighs by `dL_t/dZ`, and `D_t` where something comes around `Z`.

    Only the weighted sum is pulled back, so the encoder's backward pass runs
    once whatever `m` is. If the weighted sum of these gradients is zero, so is
    that of the `dL_t/dtheta`: the point is Pareto stationary. Elsewhere it
    approximates exact MGDA, and its direction may conflict with a task
    gradient; Theorem 1(b) of the paper does not hold in general.

    References:
        Sener & Koltun, 2018, section 3.3, (MGDA-UB).
    """
    around = around_representation(step)
    return _along(step, around, gram_of_representation(step, around))


def along_parameters(step: Step) -> Direction:
    """Exact MGDA: weighs by `dL_t/dtheta` itself.

    The encoder's backward pass is traced once, and runs once for each task.
    Holds `m` gradients of the shared variables at a time.

    References:
        Sener & Koltun, 2018, equation 3.
    """
    before = may_be_encoder(step.recording, step.variables)
    candidates = [i for i, possible in enumerate(before) if possible]
    # One task after another: memory for one backward pass, not for m.
    rows = encoder.jacobian(
        step.recording, step.variables, candidates, step.at_cut
    )
    for i, by_task in enumerate(step.direct):
        if len(by_task) > 1 or (by_task and i in rows):
            rows[i] = add(rows.get(i), stack(by_task, step.num_tasks))

    gram = _gram_of_rows(step, rows)
    task_weights = step.weigh(gram)
    gradients: list[Gradient] = [None] * len(step.variables)
    for i, of_tasks in rows.items():
        gradients[i] = combine(task_weights, of_tasks)
    return with_heads(step, gradients, task_weights, gram)


def along_layers(step: Step, find: Callable[[Step], list[int]]) -> Direction:
    """Weighs by the gradients of some of the encoder's layers.

    They tell what examples have in common, which `dL_t/dZ` does not: for a
    dense layer `Z = X theta` the Gram matrix is `sum_ij (X X')_ij <dL_t/dZ_i,
    dL_s/dZ_j>`, and MGDA-UB is the case `X X' = I`. The task gradients are
    pulled back as far as these layers, and only their weighted sum further.

    Args:
        step: what the direction is made from.
        find: the indices of the layers' variables.
    """
    around = around_representation(step)
    return _along(step, around, gram_of_layers(step, around, find(step)))


def around_representation(step: Step) -> dict[int, tf.Tensor]:
    """`D_t`, `{variable index: [m, ...]}`: what comes around `Z`."""
    before = may_be_encoder(step.recording, step.variables)
    doubtful = [
        i for i, g in enumerate(step.direct) if len(g) == 1 and before[i]
    ]
    inside = reached(
        step.recording,
        [z.encoded for z in step.recording.representations],
        [step.variables[i].value for i in doubtful],
    )
    in_encoder = {i for i, found in zip(doubtful, inside, strict=True) if found}
    return {
        i: stack(by_task, step.num_tasks)
        for i, by_task in enumerate(step.direct)
        if len(by_task) > 1 or i in in_encoder
    }


def gram_of_representation(
    step: Step, around: dict[int, tf.Tensor]
) -> tf.Tensor:
    """Over `Z`, batch axis and all, and what comes around it."""
    gram = sum_over_replicas(jacobian_gram(step.at_cut))
    if around:
        # Of these a replica holds a part of each entry, not some of them.
        gram += jacobian_gram(sum_over_replicas(list(around.values())))
    return gram


def gram_of_layers(
    step: Step, around: dict[int, tf.Tensor], chosen: Sequence[int]
) -> tf.Tensor:
    """Over the chosen variables of the encoder, and what comes around `Z`."""
    rows = encoder.jacobian(
        step.recording, step.variables, chosen, step.at_cut, at_once=True
    )
    for i, of_tasks in around.items():
        rows[i] = add(rows.get(i), of_tasks)
    return _gram_of_rows(step, rows)


def shared_gradients(
    step: Step, around: dict[int, tf.Tensor], task_weights: tf.Tensor
) -> list[Gradient]:
    """`sum_t w_t dL_t/dtheta`, by one backward pass through the encoder."""
    weighted = [combine(task_weights, gradients) for gradients in step.at_cut]
    gradients = encoder.pull_back(
        step.recording, weighted, [v.value for v in step.variables]
    )
    for i, of_tasks in around.items():
        gradients[i] = add(gradients[i], combine(task_weights, of_tasks))
    return gradients


def with_heads(
    step: Step,
    shared: list[Gradient],
    task_weights: tf.Tensor,
    gram: tf.Tensor,
) -> Direction:
    """Adds the heads' own gradients to those of the shared variables."""
    gradients = list(shared)
    owners: list[int | None] = [None] * len(shared)
    for i, by_task in enumerate(step.direct):
        if shared[i] is None and by_task:
            ((owners[i], gradients[i]),) = by_task.items()
    # What stands before `Z` learns from all tasks; so does what none reaches.
    before = may_be_encoder(step.recording, step.variables)
    readers = [
        list(by_task)
        if by_task and (owner is not None or not possible)
        else list(range(step.num_tasks))
        for possible, owner, by_task in zip(
            before, owners, step.direct, strict=True
        )
    ]
    return Direction(gradients, task_weights, owners, readers, gram)


def _along(
    step: Step, around: dict[int, tf.Tensor], gram: tf.Tensor
) -> Direction:
    task_weights = step.weigh(gram)
    gradients = shared_gradients(step, around, task_weights)
    return with_heads(step, gradients, task_weights, gram)


def _gram_of_rows(step: Step, rows: dict[int, tf.Tensor]) -> tf.Tensor:
    if not rows:  # all that is shared is frozen: there is nothing to weigh
        return tf.zeros([step.num_tasks, step.num_tasks])
    return jacobian_gram(sum_over_replicas(list(rows.values())))
