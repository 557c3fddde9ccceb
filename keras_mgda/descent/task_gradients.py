"""The task gradients: one backward pass through the heads for each task.

Symbols: `m` tasks with losses `L_t`; `Z` the shared representations; `theta`
the shared variables: those that two or more tasks reach. A task's gradient with
respect to them has two parts,

    dL_t/dtheta = (dZ/dtheta)' dL_t/dZ + D_t,

where `D_t` came around `Z`: by a skip connection, or by a layer that several
heads share. Without those `D_t` is zero.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mgda.descent.forward import Recording

Gradient = Any  # tf.Tensor, tf.IndexedSlices or None


class TaskGradients(NamedTuple):
    """What the backward passes through the heads found.

    Attributes:
        representations: `dL_t/dZ`, one `[m, b, ...]` for each tensor of `Z`.
        direct: for each variable `{task index: gradient}`, of the tasks that
            reach it without passing `Z`: `D_t`, or a head's own gradient.
    """

    representations: list[tf.Tensor]
    direct: list[dict[int, Gradient]]


def through_heads(
    recording: Recording,
    variables: Sequence[keras.Variable],
    seeds: Sequence[list[tf.Tensor]],
) -> TaskGradients:
    """Each task's gradient at `Z`, and of what it reaches without passing `Z`.

    Args:
        recording: of the forward pass.
        variables: the trainable variables of the model.
        seeds: for each task what its losses are multiplied by, each `[]`.

    Raises:
        ValueError: if a task does not pass `Z`, or a part of `Z` is not shared.
    """
    reads = [z.read for z in recording.representations]
    sources = reads + values(variables)
    at_cut: list[dict[int, Gradient]] = [{} for _ in reads]
    direct: list[dict[int, Gradient]] = [{} for _ in variables]
    for t, losses in enumerate(recording.task_losses.values()):
        found = recording.tape.gradient(losses, sources, seeds[t])
        for by_task, gradient in zip(at_cut + direct, found, strict=True):
            if gradient is not None:
                by_task[t] = gradient
    _check_shared(recording, at_cut)
    for by_task, read in zip(at_cut, reads, strict=True):
        by_task.setdefault(0, tf.zeros_like(read))  # `Z` that feeds `Z` only
    return TaskGradients([stack(g, len(seeds)) for g in at_cut], direct)


def of_total(
    recording: Recording,
    variables: Sequence[keras.Variable],
    total_loss: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[list[list[tf.Tensor]], list[Gradient]]:
    """Gradient of the total loss: at the task losses, and of all the rest.

    Returns:
        For each task the derivatives of `seed * total_loss` with respect to its
        losses; and the gradient of the variables that comes from regularisation
        and `add_loss`, which belong to no task.

    Raises:
        ValueError: if the total loss does not depend on a task's loss.
    """
    summands = list(recording.summands.values())
    with recording.encoder_gate.opened():
        seeds, remainder = recording.tape.gradient(
            total_loss,
            [summands, values(variables)],
            tf.cast(seed, total_loss.dtype),
        )
    for task, of_task in zip(recording.summands, seeds, strict=True):
        if any(of_loss is None for of_loss in of_task):
            raise ValueError(
                "`compute_loss` must return a sum that contains every task's "
                f"loss. Received: one without that of '{task}'. Return "
                "`super().compute_loss(...)` plus what you add."
            )
    return seeds, remainder


def may_be_encoder(
    recording: Recording, variables: Sequence[keras.Variable]
) -> list[bool]:
    """Which variables were read before `Z`, as those of the encoder are."""
    before = {variable.ref() for variable in recording.read_before}
    return [value.ref() in before for value in values(variables)]


def reached(
    recording: Recording, targets: list[tf.Tensor], sources: list[Any]
) -> list[bool]:
    """Which sources the targets depend on, read off the tape."""
    if not targets or not sources:
        return [False] * len(sources)
    found: list[bool] = []

    def look() -> None:
        gradients = recording.tape.gradient(targets, sources)
        found.extend(gradient is not None for gradient in gradients)

    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        look()  # may hold sums over replicas, which no other graph can
    else:
        # Traced, and never run.
        tf.function(look, autograph=False).get_concrete_function()
    return found


def values(variables: Sequence[keras.Variable]) -> list[tf.Variable]:
    """The TensorFlow variables, which a tape knows."""
    return [variable.value for variable in variables]


def stack(by_task: dict[int, Gradient], num_tasks: int) -> tf.Tensor:
    """`[m, ...]`, zero for the tasks that do not reach."""
    tensors = {t: dense(gradient) for t, gradient in by_task.items()}
    zeros = tf.zeros_like(next(iter(tensors.values())))
    return tf.stack([tensors.get(t, zeros) for t in range(num_tasks)])


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


def _check_shared(
    recording: Recording, at_cut: Sequence[dict[int, Gradient]]
) -> None:
    """Every task has to pass `Z`, and every part of `Z` to serve two tasks."""
    tasks = list(recording.task_losses)
    for t, task in enumerate(tasks):
        if not any(t in by_task for by_task in at_cut):
            raise ValueError(
                "Every task must run through a `SharedRepresentation`. "
                f"Received: task '{task}' passes none of the {len(at_cut)} in "
                "the model. Place one on its path, or give its output the "
                "loss `None`."
            )
    together: dict[int, set[int]] = {}  # the readers of each group
    for z, by_task in zip(recording.representations, at_cut, strict=True):
        if z.group is not None:
            together.setdefault(id(z.group), set()).update(by_task)
    for k, by_task in enumerate(at_cut):
        group = recording.representations[k].group
        readers = together.get(id(group), by_task)
        if len(readers) >= min(2, len(tasks)):
            continue
        # One that feeds a later one serves the tasks of that one, too.
        read = recording.representations[k].read
        later = [z.encoded for z in recording.representations[k + 1 :]]
        if not any(reached(recording, later, [read])):
            raise ValueError(
                "A `SharedRepresentation` must be read by at least two tasks. "
                f"Received: number {k + 1} of {len(at_cut)}, of shape "
                f"{tuple(read.shape)}, is read by "
                f"{[tasks[t] for t in by_task] or 'none'}. Move it to where "
                "the tasks part, or remove it."
            )
