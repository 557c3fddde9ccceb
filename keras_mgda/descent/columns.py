"""Tasks that are the columns of one output: their gradients, all at once.

Such an output ends in one layer, `X W + b`, with `X [n, d]`, a row for each
example, and `W [d, m]`. With `D [n, m]` the derivatives at the logits, column
`t` that of task `t`, which depends on no other,

    dL_t/dX = D_t W_t',     <dL_t/dX, dL_s/dX> = (D'D)_ts (W'W)_ts,
    sum_t w_t dL_t/dX = D diag(w) W'.

So where the layer reads `Z` itself, the Gram matrix takes `O(m^2 (n + d))`, and
no task gradient is ever made. Columns of `W` and `b` are the tasks' own, with
the plain gradients `X'D` and `1'D`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_mgda.descent.forward import ForwardPass
from keras_mgda.distribution.replicas import without_collectives


class LinearRows(NamedTuple):
    """`D_t W_t'` of every task, as factors.

    Attributes:
        at_logits: `D [n, m]`, float32 at least.
        kernel: `W [d, m]`, as that.
    """

    at_logits: tf.Tensor
    kernel: tf.Tensor

    def gram(self) -> tf.Tensor:
        """`[m, m]`."""
        return self.inner(self)

    def inner(self, other: "LinearRows | tf.Tensor") -> tf.Tensor:
        """`[m, s]`, the inner products with the rows of `s` other tasks."""
        D, W = self
        if isinstance(other, LinearRows):
            products = tf.matmul(D, other.at_logits, transpose_a=True)
            return products * tf.matmul(W, other.kernel, transpose_a=True)
        rows = tf.reshape(other, [other.shape[0], -1, W.shape[0]])
        return tf.einsum("nt,dt,snd->ts", D, W, tf.cast(rows, D.dtype))

    def combine(self, task_weights: tf.Tensor) -> tf.Tensor:
        """`sum_t w_t D_t W_t'`, `[n, d]`."""
        D, W = self
        weighted = D * tf.cast(task_weights, D.dtype)
        return tf.matmul(weighted, W, transpose_b=True)

    def dense(self) -> tf.Tensor:
        """`[m, n, d]`."""
        return tf.einsum("nt,dt->tnd", *self)


class RowBlocks(NamedTuple):
    """Task gradients at a tensor of `Z`, the blocks of tasks one by one.

    Attributes:
        blocks: for each its rows, `[m_k, b, ..., d]` or a `LinearRows`.
        like: `[b, ..., d]`, the tensor.
    """

    blocks: Sequence[Any]
    like: tf.Tensor

    def gram(self) -> tf.Tensor:
        """`[m, m]`, float32."""
        rows = [
            [_inner(left, right) for right in self.blocks]
            for left in self.blocks
        ]
        gram = tf.concat([tf.concat(row, axis=1) for row in rows], axis=0)
        return tf.cast(gram, tf.float32)

    def combine(self, task_weights: tf.Tensor) -> tf.Tensor:
        """`sum_t w_t g_t`, like the tensor."""
        parts = tf.split(task_weights, [_size(b) for b in self.blocks])
        totals = [
            block.combine(part)
            if isinstance(block, LinearRows)
            else tf.tensordot(tf.cast(part, wide.dtype), wide, 1)
            for block, wide, part in zip(
                self.blocks, map(_wide, self.blocks), parts, strict=True
            )
        ]
        shape = tf.shape(self.like)
        total = tf.add_n([tf.reshape(total, shape) for total in totals])
        total = tf.ensure_shape(total, self.like.shape)
        return tf.cast(total, self.like.dtype)

    def along(self, direction: tf.Tensor) -> tf.Tensor:
        """`<g_t, direction>` of every task, `[m]`, float32."""
        direction = tf.cast(direction, tf.float32)[None]
        found = [_inner(block, direction)[:, 0] for block in self.blocks]
        return tf.cast(tf.concat(found, axis=0), tf.float32)

    def dense(self) -> tf.Tensor:
        """`[m, b, ..., d]`: as many copies of the tensor as there are tasks."""
        shape = tf.shape(self.like)
        rows = [
            tf.reshape(block.dense(), tf.concat([[_size(block)], shape], 0))
            if isinstance(block, LinearRows)
            else block
            for block in self.blocks
        ]
        dense = tf.concat([tf.cast(r, self.like.dtype) for r in rows], axis=0)
        dense.set_shape([dense.shape[0], *self.like.shape])
        return dense


def _size(block: Any) -> int:
    columns = block.kernel.shape[1] if isinstance(block, LinearRows) else None
    return int(block.shape[0] if columns is None else columns)


def _inner(left: Any, right: Any) -> tf.Tensor:
    """`[m_left, m_right]`."""
    if isinstance(left, LinearRows):
        return left.inner(right)
    if isinstance(right, LinearRows):
        return tf.transpose(right.inner(left))
    left, right = (
        tf.reshape(rows, [rows.shape[0], -1])
        for rows in (_wide(left), _wide(right))
    )
    return tf.matmul(left, right, transpose_b=True)


def _wide(tensor: Any) -> Any:
    """In float32 at least."""
    if isinstance(tensor, LinearRows) or tensor.dtype.size >= 4:
        return tensor
    return tf.cast(tensor, tf.float32)


def through_columns(
    forward: ForwardPass,
    output: str,
    losses: list[tf.Tensor],
    sources: Sequence[Any],
    seeds: list[tf.Tensor],
) -> list[Any]:
    """The gradients of all tasks that are columns of an output.

    Args:
        forward: the forward pass.
        output: its name.
        losses: of its columns, each `[m]`.
        sources: the tensors of `Z`, as they are read, and the variables.
        seeds: `[m]`, what these losses are multiplied by.

    Returns:
        For each source the rows of the tasks, `[m, ...]` or a `LinearRows`;
        for the kernel and the bias the plain gradient; `None` for what the
        output does not reach.
    """
    head = forward.column_heads[output]
    D = forward.gradient(losses, head.logits, seeds)
    own = {v.value.ref() for v in head.variables}
    places = [
        k
        for k, source in enumerate(sources)
        if isinstance(source, tf.Variable) and source.ref() in own
    ]
    found: list[Any] = [None] * len(sources)
    plain = forward.gradient(
        head.logits, [sources[k] for k in places], output_gradients=D
    )
    for k, gradient in zip(places, plain, strict=True):
        found[k] = gradient
    direct = [
        k for k, z in enumerate(forward.representations) if z.group is head.of_z
    ]
    if len(direct) == 1:
        m = head.logits.shape[-1]
        wide = tf.float64 if D.dtype == tf.float64 else tf.float32
        found[direct[0]] = LinearRows(
            tf.cast(tf.reshape(D, [-1, m]), wide), tf.cast(head.kernel, wide)
        )
        return found
    others = [k for k in range(len(sources)) if k not in places]
    reached = forward.reaching([head.logits], [sources[k] for k in others])
    others = [k for k, reaches in zip(others, reached, strict=True) if reaches]
    rows = _one_by_one(forward, head.logits, D, [sources[k] for k in others])
    for k, of_source in zip(others, rows, strict=True):
        found[k] = of_source
    return found


def _one_by_one(
    forward: ForwardPass,
    logits: tf.Tensor,
    D: tf.Tensor,
    sources: Sequence[Any],
) -> list[tf.Tensor]:
    """Each column pulled back on its own, by a backward pass traced once."""
    if not sources:
        return []
    m = logits.shape[-1]

    def of_one_task(column: tf.Tensor) -> list[tf.Tensor]:
        pulled = forward.gradient(
            logits, list(sources), output_gradients=D * column
        )
        return [tf.convert_to_tensor(gradient) for gradient in pulled]

    columns = tf.eye(m, dtype=D.dtype)
    with without_collectives("a head whose columns are tasks"):
        if forward.can_vectorize():
            return list(tf.vectorized_map(of_one_task, columns))
        return list(
            tf.map_fn(
                of_one_task,
                columns,
                fn_output_signature=[
                    tf.TensorSpec(s.shape, s.dtype) for s in sources
                ],
                parallel_iterations=1,
            )
        )
