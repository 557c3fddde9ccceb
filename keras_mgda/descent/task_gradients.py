"""The task gradients: one backward pass through the heads for each task.

Symbols: `m` tasks with losses `L_t`; `Z` the shared representation, of one or
several tensors; `theta` the shared variables: those that two or more tasks
reach. A task's gradient with respect to them has two parts,

    dL_t/dtheta = (dZ/dtheta)' dL_t/dZ + S_t,

where `S_t` does not pass `Z`: it comes by a skip connection, or by a layer that
several heads share. Without those `S_t` is zero.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mgda.descent.columns import RowBlocks, through_columns
from keras_mgda.descent.forward import ForwardPass, num_tasks_of, values
from keras_mgda.descent.readers import Readers, readers_of_reached

Gradient = Any  # tf.Tensor, tf.IndexedSlices or None


class TableRows(NamedTuple):
    """The task gradients of a table, such as an embedding, by the rows read.

    Attributes:
        indices: `[k]`, the rows; one that was read twice is there twice.
        values: `[m, k, ...]`, the gradients of these.
        shape: of the table.
    """

    indices: tf.Tensor
    values: tf.Tensor
    shape: tf.TensorShape

    def summed(self) -> tf.Tensor:
        """`[m, k, ...]`: each row once, in sum; zeros for the other places."""
        order = tf.argsort(self.indices, stable=True)
        ordered = tf.gather(self.indices, order)
        is_new = tf.cast(ordered[1:] != ordered[:-1], tf.int32)
        place = tf.concat([[0], tf.cumsum(is_new)], axis=0)[: tf.size(ordered)]
        by_row = tf.experimental.numpy.swapaxes(self.values, 0, 1)
        summed = tf.math.unsorted_segment_sum(
            tf.gather(by_row, order), place, tf.size(ordered)
        )
        return tf.experimental.numpy.swapaxes(summed, 0, 1)

    def dense(self) -> tf.Tensor:
        """`[m, ...]`."""
        of_tasks = [
            tf.convert_to_tensor(
                tf.IndexedSlices(values, self.indices, self.shape)
            )
            for values in tf.unstack(self.values)
        ]
        return tf.stack(of_tasks)


# The gradients of all tasks: `[m, ...]`, a `TableRows` or a `RowBlocks`.
Rows = Any


class TaskGradients(NamedTuple):
    """What the backward passes through the heads found.

    Attributes:
        forward: the forward pass that they started from.
        variables: the trainable variables of the model.
        readers: which tasks read what.
        at_z: `dL_t/dZ`, one `[m, b, ...]` for each tensor of `Z`; a
            `RowBlocks` where tasks are columns of a layer that reads it.
        past_z: `S_t`, `{variable index: rows}`, of the shared variables that
            some task reaches without passing `Z`.
        own: `{variable index: gradient}`, the plain gradient of the heads.
    """

    forward: ForwardPass
    variables: Sequence[keras.Variable]
    readers: Readers
    at_z: list[Rows]
    past_z: dict[int, Rows]
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
        seeds: for each output what its losses are multiplied by, of the same
            shapes.
    """
    reads = [z.read for z in forward.representations]
    sources = reads + values(variables)
    found = [
        through_columns(forward, output, of_output, sources, seed)
        if output in forward.column_heads
        else forward.gradient(of_output, sources, seed)
        for (output, of_output), seed in zip(
            forward.task_losses.items(), seeds, strict=True
        )
    ]
    readers = readers_of_reached(
        forward,
        variables,
        [
            [gradient is not None for gradient in of_output]
            for of_output in found
        ],
    )
    by_source = list(zip(*found, strict=True))
    stack: Callable[..., Rows] = _stack
    rows: Callable[..., Rows] = _rows
    if forward.column_heads:
        stack = rows = functools.partial(_stack_blocks, forward)
    at_z = [
        stack(gradients, read)
        for gradients, read in zip(by_source, reads, strict=False)
    ]
    past_z, own = {}, {}
    for i, gradients in enumerate(by_source[len(reads) :]):
        if not readers.past_z[i]:
            continue
        if readers.is_shared(i):
            past_z[i] = rows(gradients, variables[i].value)
        else:
            own[i] = next(g for g in gradients if g is not None)
    branches = readers.branches
    if branches:
        with forward.encoder_gate.opened():
            pulled = forward.gradient(
                [z.encoded for z in forward.representations],
                values([variables[i] for i in branches]),
                output_gradients=[
                    combine(tf.ones([forward.num_tasks]), g) for g in at_z
                ],
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
        For each output the derivatives of `loss_scale * total_loss` with
        respect to its losses; and the gradient of the variables that comes from
        regularisation and `add_loss`, which belong to no task.

    Raises:
        ValueError: if the total loss does not depend on a task's loss.
    """
    summands = list(forward.summands.values())
    with forward.encoder_gate.opened():
        seeds, rest = forward.gradient(
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


def combine(task_weights: tf.Tensor, rows: Rows) -> Gradient:
    """`sum_t w_t g_t`, summed in float32 at least."""
    if isinstance(rows, TableRows):
        values = combine(task_weights, rows.values)
        return tf.IndexedSlices(values, rows.indices, rows.shape)
    if isinstance(rows, RowBlocks):
        return rows.combine(task_weights)
    wide = tf.float32 if rows.dtype.size < 4 else rows.dtype
    total = tf.tensordot(tf.cast(task_weights, wide), tf.cast(rows, wide), 1)
    return tf.cast(total, rows.dtype)


def add(left: Gradient, right: Gradient) -> Gradient:
    """The sum of two gradients, of which either may be missing."""
    if left is None or right is None:
        return right if left is None else left
    if isinstance(left, tf.IndexedSlices) and isinstance(
        right, tf.IndexedSlices
    ):
        return tf.IndexedSlices(
            tf.concat([left.values, right.values], axis=0),
            tf.concat(
                [tf.cast(g.indices, tf.int64) for g in (left, right)], axis=0
            ),
            left.dense_shape,
        )
    return dense(left) + dense(right)


def add_rows(left: Rows | None, right: Rows) -> Rows:
    """The sum of the rows of all tasks, of which the left may be missing."""
    if left is None:
        return right
    if isinstance(left, TableRows) and isinstance(right, TableRows):
        return TableRows(
            tf.concat([left.indices, right.indices], axis=0),
            tf.concat([left.values, right.values], axis=1),
            left.shape,
        )
    return dense_rows(left) + dense_rows(right)


def dense(gradient: Gradient) -> tf.Tensor:
    """A gradient that may be a `tf.IndexedSlices`, as a tensor."""
    return tf.convert_to_tensor(gradient)


def dense_rows(rows: Rows) -> tf.Tensor:
    """Rows that may be those of a table, or of columns, as `[m, ...]`."""
    return rows if isinstance(rows, tf.Tensor) else rows.dense()


def _rows(by_task: Sequence[Gradient], variable: tf.Variable) -> Rows:
    """`[m, ...]`, or those of a table if all that reaches it reads rows."""
    reached = [gradient for gradient in by_task if gradient is not None]
    if not all(isinstance(g, tf.IndexedSlices) for g in reached):
        return _stack(by_task, like=variable)
    none = tf.zeros_like(reached[0].values[:0])
    values = [none if g is None else g.values for g in by_task]
    # Each task has rows of its own, and zeros in those of the others.
    blocks = [
        tf.concat(
            [
                of_task if s == t else tf.zeros_like(of_task)
                for s, of_task in enumerate(values)
            ],
            axis=0,
        )
        for t in range(len(values))
    ]
    indices = [tf.cast(g.indices, tf.int64) for g in reached]
    return TableRows(
        tf.concat(indices, axis=0), tf.stack(blocks), variable.shape
    )


def _stack(by_task: Sequence[Gradient], like: Any) -> tf.Tensor:
    """`[m, ...]`, zero for the tasks that do not reach."""
    zeros = tf.zeros(tf.shape(like), like.dtype)
    stacked = tf.stack([zeros if g is None else dense(g) for g in by_task])
    stacked.set_shape([len(by_task), *like.shape])
    return stacked


def _stack_blocks(
    forward: ForwardPass, by_output: Sequence[Gradient | Rows], like: Any
) -> Rows:
    """The same where the columns of some outputs are rows already."""
    blocks = []
    for (output, of_output), rows in zip(
        forward.task_losses.items(), by_output, strict=True
    ):
        m = num_tasks_of(of_output)
        if rows is None:
            rows = tf.zeros(tf.concat([[m], tf.shape(like)], 0), like.dtype)
        elif output not in forward.column_heads:
            rows = dense(rows)[None]
        if isinstance(rows, tf.Tensor):
            rows.set_shape([m, *like.shape])
        blocks.append(rows)
    if all(isinstance(block, tf.Tensor) for block in blocks):
        return tf.concat(blocks, axis=0)
    return RowBlocks(blocks, like)


def check_representation(gradients: TaskGradients) -> None:
    """Raises a `ValueError` unless `Z` is where tasks part.

    Every task has to pass it. Each tensor of it has to be read by two tasks, to
    be marked together with others that are, or to be made from variables that
    two tasks share, as the outputs of one encoder are that is called for each
    task on its own.
    """
    forward = gradients.forward
    forward.require_representation()
    tasks = forward.output_of_task
    for t, task in enumerate(tasks):
        if not any(t in of_tensor for of_tensor in gradients.readers.of_z):
            raise ValueError(
                "Every task must run through a `SharedRepresentation`. "
                f"Received: task '{task}' passes none of the "
                f"{len(forward.representations)} in the model. Place one on "
                "its path, give its output the loss `None`, or use "
                "`gradients='parameters'`."
            )
    shared = values(
        [
            gradients.variables[i]
            for i in gradients.in_encoder()
            if len(gradients.readers.of_variables[i]) > 1
        ]
    )
    of_group: dict[int, set[int]] = {}
    for z, of_tensor in zip(
        forward.representations, gradients.readers.of_z, strict=True
    ):
        of_group.setdefault(id(z.group), set()).update(of_tensor)
    for k, of_tensor in enumerate(gradients.readers.of_z):
        encoded, read, group = forward.representations[k]
        if len(of_group[id(group)]) >= min(2, len(tasks)):
            continue
        if not any(forward.reaching([encoded], shared)):
            raise ValueError(
                "A `SharedRepresentation` must be read by at least two tasks. "
                f"Received: number {k + 1} of {len(forward.representations)}, "
                f"of shape {tuple(read.shape)}, is read by "
                f"{list(dict.fromkeys(tasks[t] for t in of_tensor)) or 'none'}."
                " Move it to where the tasks part, or remove it."
            )


def check_tasks_are_trained(gradients: TaskGradients) -> None:
    """Raises a `ValueError` if a task depends on nothing that is trained."""
    readers = gradients.readers
    for t, task in enumerate(gradients.forward.output_of_task):
        if not any(t in read for read in (*readers.of_z, *readers.past_z)):
            raise ValueError(
                "Every task must depend on a trainable variable. Received: "
                f"task '{task}' depends on none. Give its output the loss "
                "`None`, or unfreeze what it is made by."
            )
