"""The direction of one step: what every variable moves along.

In all modes the shared variables `theta` move along `sum_t w_t dL_t/dtheta` and
a head's own along their plain gradient (Sener & Koltun, 2018, Algorithm 2). The
modes differ in the task gradients whose Gram matrix chooses the weights `w`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_mgda.gradients import (
    Gradient,
    TaskGradients,
    add,
    combine,
    dense,
    may_be_encoder,
    of_total,
    reached,
    stack,
    through_heads,
    values,
)
from keras_mgda.gram import jacobian_gram
from keras_mgda.recording import Recording
from keras_mgda.replicas import (
    replica_shares,
    sum_over_replicas,
    without_collectives,
)
from keras_mgda.weightings import Weighting

Weigh = Callable[[tf.Tensor], tf.Tensor]


class Direction(NamedTuple):
    """The direction of one step.

    Attributes:
        gradients: of each variable.
        task_weights: `[m]`.
        owners: for each variable the index of the one task whose head it is a
            part of; `None` if it is shared, or not reached.
    """

    gradients: list[Gradient]
    task_weights: tf.Tensor
    owners: list[int | None]


def of_step(
    recording: Recording,
    variables: Sequence[keras.Variable],
    total_loss: tf.Tensor,
    *,
    loss_scale: tf.Tensor,
    weighting: Weighting,
    mode: str,
) -> Direction:
    """What the variables move along in one training step.

    With labels counted, the loss of a task that has `N` on this replica and
    `N'` on all of the `r` replicas weighs `r N / N'` here, so that the sum over
    replicas is the mean over all labelled examples.

    Args:
        recording: of the forward pass.
        variables: the trainable variables of the model.
        total_loss: `[]`, what `compute_loss` returned: the task losses times
            their loss weights, and what belongs to no task.
        loss_scale: `[]`, what the gradients are to be multiplied by. The
            weighting sees them without.
        weighting: chooses the task weights.
        mode: which task gradients it sees, a key of `MODES`.

    """
    seeds, remainder = of_total(recording, variables, total_loss, loss_scale)
    if recording.num_labels:
        shares = replica_shares(list(recording.num_labels.values()))
        seeds = [
            seed * tf.cast(share, seed.dtype)
            for seed, share in zip(seeds, tf.unstack(shares), strict=True)
        ]
    task_losses = tf.stack(
        [
            tf.cast(loss, tf.float32) * tf.cast(seed, tf.float32) / loss_scale
            for loss, seed in zip(
                recording.task_losses.values(), seeds, strict=True
            )
        ]
    )
    if weighting.uses_losses:
        task_losses = sum_over_replicas(task_losses)

    def weigh(gram: tf.Tensor) -> tf.Tensor:
        return weighting(gram / loss_scale**2, task_losses)

    # Weights that do not look at the gradients need none of the encoder's.
    direction = MODES[mode if weighting.uses_gram else "representation"]
    found = direction(
        recording, variables, through_heads(recording, variables, seeds), weigh
    )
    # What belongs to no task enters once, outside the simplex.
    return found._replace(gradients=list(map(add, found.gradients, remainder)))


def along_representation(
    recording: Recording,
    variables: Sequence[keras.Variable],
    task_gradients: TaskGradients,
    weigh: Weigh,
) -> Direction:
    """MGDA-UB: weighs by `dL_t/dZ`, and `D_t` where something comes around `Z`.

    Only the weighted sum is pulled back, so the encoder's backward pass runs
    once whatever `m` is. If the weighted sum of these gradients is zero, so is
    that of the `dL_t/dtheta`: the point is Pareto stationary. Elsewhere it
    approximates exact MGDA, and its direction may conflict with a task
    gradient; Theorem 1(b) of the paper does not hold in general.

    Args:
        recording: of the forward pass.
        variables: the trainable variables of the model.
        task_gradients: from the backward passes through the heads.
        weigh: from the Gram matrix `[m, m]` to the task weights `[m]`.

    References:
        Sener & Koltun, 2018, section 3.3, (MGDA-UB).
    """
    at_cut, direct = task_gradients
    m = at_cut[0].shape[0]
    around = {
        i: stack(direct[i], m)
        for i in _shared_around(recording, variables, direct)
    }

    gram = sum_over_replicas(jacobian_gram(at_cut))
    if around:
        # Of these a replica holds a part of each entry, not some of them.
        gram += jacobian_gram(sum_over_replicas(list(around.values())))
    task_weights = weigh(gram)

    weighted = [combine(task_weights, gradients) for gradients in at_cut]
    gradients = _pull_back(recording, weighted, values(variables))
    for i, of_tasks in around.items():
        gradients[i] = add(gradients[i], combine(task_weights, of_tasks))
    return _with_heads(gradients, task_weights, direct)


def along_parameters(
    recording: Recording,
    variables: Sequence[keras.Variable],
    task_gradients: TaskGradients,
    weigh: Weigh,
) -> Direction:
    """Exact MGDA: weighs by `dL_t/dtheta` itself.

    The encoder's backward pass is traced once, and runs once for each task.
    Holds `m` gradients of the shared variables at a time. Arguments and
    returned values are those of `along_representation`.

    References:
        Sener & Koltun, 2018, equation 3.
    """
    at_cut, direct = task_gradients
    m = at_cut[0].shape[0]
    jacobian = _encoder_jacobian(recording, variables, at_cut)
    for i, by_task in enumerate(direct):
        if len(by_task) > 1 or (by_task and i in jacobian):
            jacobian[i] = add(jacobian.get(i), stack(by_task, m))

    # With all that is shared frozen there is nothing to weigh.
    gram = tf.zeros([m, m])
    if jacobian:
        gram = jacobian_gram(sum_over_replicas(list(jacobian.values())))
    task_weights = weigh(gram)

    gradients: list[Gradient] = [None] * len(variables)
    for i, of_tasks in jacobian.items():
        gradients[i] = combine(task_weights, of_tasks)
    return _with_heads(gradients, task_weights, direct)


MODES = {
    "representation": along_representation,
    "parameters": along_parameters,
}


def _with_heads(
    shared: list[Gradient],
    task_weights: tf.Tensor,
    direct: list[dict[int, Gradient]],
) -> Direction:
    """Adds the heads' own gradients to those of the shared variables."""
    gradients = list(shared)
    owners: list[int | None] = [None] * len(shared)
    for i, by_task in enumerate(direct):
        if shared[i] is None and by_task:
            ((owners[i], gradients[i]),) = by_task.items()
    return Direction(gradients, task_weights, owners)


def _encoder_jacobian(
    recording: Recording,
    variables: Sequence[keras.Variable],
    at_cut: list[tf.Tensor],
) -> dict[int, tf.Tensor]:
    """`(dZ/dtheta)' dL_t/dZ` for all tasks: `{variable index: [m, ...]}`."""
    before = may_be_encoder(recording, variables)
    candidates = [i for i, possible in enumerate(before) if possible]
    sources = [variables[i].value for i in candidates]
    if not sources:
        return {}
    encoder: set[int] = set()

    def of_one_task(cotangents: list[tf.Tensor]) -> list[tf.Tensor]:
        gradients = _pull_back(recording, cotangents, sources)
        found = dict(zip(candidates, gradients, strict=True))
        encoder.update(i for i in candidates if found[i] is not None)
        return [
            tf.zeros_like(source) if gradient is None else dense(gradient)
            for source, gradient in zip(sources, gradients, strict=True)
        ]

    # One task after another: memory for one backward pass, not for m.
    with without_collectives("the encoder with `gradients='parameters'`"):
        jacobian = tf.map_fn(
            of_one_task,
            at_cut,
            fn_output_signature=[
                tf.TensorSpec(s.shape, s.dtype) for s in sources
            ],
            parallel_iterations=1,
        )
    by_index = dict(zip(candidates, jacobian, strict=True))
    return {i: by_index[i] for i in candidates if i in encoder}


def _pull_back(
    recording: Recording,
    cotangents: list[tf.Tensor],
    sources: list[tf.Variable],
) -> list[Gradient]:
    """`(dZ/dtheta)' c` for a cotangent `c` of `Z`."""
    with recording.encoder_gate.opened():
        return recording.tape.gradient(
            [z.encoded for z in recording.representations],
            sources,
            output_gradients=cotangents,
        )


def _shared_around(
    recording: Recording,
    variables: Sequence[keras.Variable],
    direct: list[dict[int, Gradient]],
) -> list[int]:
    """The shared variables that some task reaches without passing `Z`."""
    before = may_be_encoder(recording, variables)
    doubtful = [i for i, g in enumerate(direct) if len(g) == 1 and before[i]]
    inside = reached(
        recording,
        [z.encoded for z in recording.representations],
        [variables[i].value for i in doubtful],
    )
    encoder = {i for i, found in zip(doubtful, inside, strict=True) if found}
    return [i for i, g in enumerate(direct) if len(g) > 1 or i in encoder]
