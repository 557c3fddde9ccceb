"""The task gradients: one backward pass through the heads for each task.

Symbols: `m` tasks with losses `L_t`; `Z` the shared representation, of one or
several tensors; `theta` the shared variables: those that two or more tasks
reach. A task's gradient with respect to them has two parts,

    dL_t/dtheta = (dZ/dtheta)' dL_t/dZ + D_t,

where `D_t` does not pass `Z`: it comes by a skip connection, or by a layer that
several heads share. Without those `D_t` is zero.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mgda.descent.forward import ForwardPass, values
from keras_mgda.descent.readers import Readers, losses, readers_of_reached

Gradient = Any  # tf.Tensor, tf.IndexedSlices or None


class TaskGradients(NamedTuple):
    """What the backward passes through the heads found.

    Attributes:
        forward: the forward pass that they started from.
        variables: the trainable variables of the model.
        readers: which tasks read what.
        at_z: `dL_t/dZ`, one `[m, b, ...]` for each tensor of `Z`.
        past_z: `D_t`, `{variable index: [m, ...]}`, of the shared variables
            that some task reaches without passing `Z`.
        own: `{variable index: gradient}`, the plain gradient of the heads.
    """

    forward: ForwardPass
    variables: Sequence[keras.Variable]
    readers: Readers
    at_z: list[tf.Tensor]
    past_z: dict[int, tf.Tensor]
    own: dict[int, Gradient]

    @property
    def num_tasks(self) -> int:
        return self.forward.num_tasks

    def in_encoder(self) -> list[int]:
        """The shared variables that may be the encoder's."""
        before = self.forward.before_representation(self.variables)
        return [
            i
            for i, possible in enumerate(before)
            if possible and self.readers.is_shared(i)
        ]


def through_heads(
    forward: ForwardPass,
    variables: Sequence[keras.Variable],
    seeds: Sequence[list[tf.Tensor]],
) -> TaskGradients:
    """Each task's gradient at `Z`, and of what it reaches without passing `Z`.

    Args:
        forward: the forward pass.
        variables: the trainable variables of the model.
        seeds: for each task what its losses are multiplied by, each `[]`.
    """
    reads = [z.read for z in forward.representations]
    found = [
        forward.tape.gradient(of_task, reads + values(variables), seed)
        for of_task, seed in zip(losses(forward), seeds, strict=True)
    ]
    readers = readers_of_reached(
        forward,
        variables,
        [[gradient is not None for gradient in of_task] for of_task in found],
    )
    by_source = list(zip(*found, strict=True))
    at_z = [
        _stack(gradients, like=read)
        for gradients, read in zip(by_source, reads, strict=False)
    ]
    past_z, own = {}, {}
    for i, gradients in enumerate(by_source[len(reads) :]):
        if not readers.past_z[i]:
            continue
        if readers.is_shared(i):
            past_z[i] = _stack(gradients, like=variables[i].value)
        else:
            own[i] = next(g for g in gradients if g is not None)
    # A head may begin before `Z`: a branch of the encoder that one task reads.
    before = forward.before_representation(variables)
    branches = [
        i
        for i, possible in enumerate(before)
        if possible and not readers.is_shared(i)
    ]
    if branches:
        with forward.encoder_gate.opened():
            pulled = forward.tape.gradient(
                [z.encoded for z in forward.representations],
                values([variables[i] for i in branches]),
                output_gradients=[tf.reduce_sum(g, axis=0) for g in at_z],
            )
        for i, gradient in zip(branches, pulled, strict=True):
            own[i] = add(own.get(i), gradient)
    return TaskGradients(forward, variables, readers, at_z, past_z, own)


def of_total_loss(
    forward: ForwardPass,
    variables: Sequence[keras.Variable],
    total_loss: tf.Tensor,
    loss_scale: tf.Tensor,
) -> tuple[list[list[tf.Tensor]], list[Gradient]]:
    """Gradient of the total loss: at the task losses, and of all the rest.

    Returns:
        For each task the derivatives of `loss_scale * total_loss` with respect
        to its losses; and the gradient of the variables that comes from
        regularisation and `add_loss`, which belong to no task.

    Raises:
        ValueError: if the total loss does not depend on a task's loss.
    """
    summands = list(forward.summands.values())
    with forward.encoder_gate.opened():
        seeds, rest = forward.tape.gradient(
            total_loss,
            [summands, values(variables)],
            tf.cast(loss_scale, total_loss.dtype),
        )
    for task, of_task in zip(forward.summands, seeds, strict=True):
        if any(of_loss is None for of_loss in of_task):
            raise ValueError(
                "`compute_loss` must return a sum that contains every task's "
                f"loss. Received: one without that of '{task}'. Return "
                "`super().compute_loss(...)` plus what you add."
            )
    return seeds, rest


def combine(task_weights: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """`sum_t w_t g_t` of `[m, ...]`, summed in float32 at least."""
    wide = tf.float32 if gradients.dtype.size < 4 else gradients.dtype
    total = tf.tensordot(
        tf.cast(task_weights, wide), tf.cast(gradients, wide), 1
    )
    return tf.cast(total, gradients.dtype)


def add(left: Gradient, right: Gradient) -> Gradient:
    """The sum of two gradients, of which either may be missing."""
    if left is None or right is None:
        return right if left is None else left
    return dense(left) + dense(right)


def dense(gradient: Gradient) -> tf.Tensor:
    """A gradient that may be a `tf.IndexedSlices`, as a tensor."""
    return tf.convert_to_tensor(gradient)


def _readers_of_representation(
    forward: ForwardPass, at_z: Sequence[dict[int, Gradient]]
) -> list[set[int]]:
    """For each tensor of `Z` the tasks that read it, or what it feeds."""
    readers = [set(by_task) for by_task in at_z]
    # The last first: one that feeds a later one serves the tasks of that, too.
    for k in reversed(range(len(readers))):
        later = [
            j
            for j in range(k + 1, len(readers))
            if not readers[j] <= readers[k]
        ]
        for j in later:
            encoded = forward.representations[j].encoded
            if any(
                forward.reaching([encoded], [forward.representations[k].read])
            ):
                readers[k] |= readers[j]
    return readers


def _readers(
    forward: ForwardPass,
    variables: Sequence[keras.Variable],
    past_z: Sequence[dict[int, Gradient]],
    readers_of_z: Sequence[set[int]],
) -> list[list[int]]:
    """For each variable the tasks that reach it."""
    every = set(range(forward.num_tasks))
    readers = [set(by_task) for by_task in past_z]
    before = forward.before_representation(variables)
    # Only what cannot be told otherwise is looked up, for that is a trace of
    # the encoder's backward pass: mostly all tasks read all of `Z`.
    open_to_all = all(of_z == every for of_z in readers_of_z)
    candidates = [
        i
        for i, possible in enumerate(before)
        if possible and (readers[i] or not open_to_all)
    ]
    for i, possible in enumerate(before):
        if possible and i not in candidates:
            readers[i] = set(every)
    groups: dict[frozenset[int], list[tf.Tensor]] = {}
    for of_z, z in zip(readers_of_z, forward.representations, strict=True):
        groups.setdefault(frozenset(of_z), []).append(z.encoded)
    for of_group, encoded in groups.items():
        unknown = [i for i in candidates if not readers[i] >= of_group]
        found = forward.reaching(
            encoded, values([variables[i] for i in unknown])
        )
        for i, reached in zip(unknown, found, strict=True):
            if reached:
                readers[i] |= of_group
    return [sorted(of_variable or every) for of_variable in readers]


def _stack(by_task: Sequence[Gradient], like: Any) -> tf.Tensor:
    """`[m, ...]`, zero for the tasks that do not reach."""
    zeros = tf.zeros(tf.shape(like), like.dtype)
    stacked = tf.stack([zeros if g is None else dense(g) for g in by_task])
    stacked.set_shape([len(by_task), *like.shape])
    return stacked


def check_representation(gradients: TaskGradients) -> None:
    """Raises a `ValueError` unless `Z` is where tasks part.

    Every task has to pass it. Each tensor of it has to be read by two tasks, or
    to be made from variables that two tasks share, as the outputs of one
    encoder are that is called for each task on its own.
    """
    forward = gradients.forward
    forward.require_representation()
    tasks = list(forward.task_losses)
    for t, task in enumerate(tasks):
        if not any(t in of_tensor for of_tensor in gradients.readers.of_z):
            raise ValueError(
                "Every task must run through a `SharedRepresentation`. "
                f"Received: task '{task}' passes none of the "
                f"{len(forward.representations)} in the model. Place one on "
                "its path, give its output the loss `None`, or use "
                "`gradients='parameters'`."
            )
    shared = values([gradients.variables[i] for i in gradients.in_encoder()])
    for k, of_tensor in enumerate(gradients.readers.of_z):
        if len(of_tensor) >= min(2, len(tasks)):
            continue
        encoded, read = forward.representations[k]
        if not any(forward.reaching([encoded], shared)):
            raise ValueError(
                "A `SharedRepresentation` must be read by at least two tasks. "
                f"Received: number {k + 1} of {len(forward.representations)}, "
                f"of shape {tuple(read.shape)}, is read by "
                f"{[tasks[t] for t in of_tensor] or 'none'}. Move it to where "
                "the tasks part, or remove it."
            )
