"""The encoder of one recorded step, by products with its Jacobian.

With `J = dZ/dtheta`, the derivative of the shared representation with respect
to variables of the encoder, a backward pass is a product `J' c`. It is linear
in `c`, and its own derivative is `J`: so the recorded forward pass serves for
products `J v`, too, with the same dropout masks and batch statistics.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_mgda.descent.forward import ForwardPass, values
from keras_mgda.descent.task_gradients import (
    Gradient,
    Rows,
    TableRows,
    TaskGradients,
    dense,
    dense_rows,
)
from keras_mgda.distribution.replicas import num_replicas, without_collectives

# Rows of a variable, from which on it is asked whether it is a table: below,
# a dense gradient for each task costs less than to ask.
_TABLE = 4096


def pull_back(
    forward: ForwardPass,
    cotangents: list[tf.Tensor],
    sources: list[tf.Variable],
) -> list[Gradient]:
    """`J' c`, one gradient for each source; `None` for one outside of it."""
    if not forward.representations:
        return [None] * len(sources)
    with forward.encoder_gate.opened():
        return forward.gradient(
            [z.encoded for z in forward.representations],
            sources,
            output_gradients=cotangents,
        )


def push_forward(
    forward: ForwardPass,
    sources: list[tf.Variable],
    tangents: list[tf.Tensor],
) -> list[tf.Tensor]:
    """`J v`, one derivative for each tensor of `Z`.

    Raises:
        ValueError: if an operation of the encoder has no second derivative.
    """
    anywhere = [tf.zeros_like(z.encoded) for z in forward.representations]
    if not anywhere:
        return []
    try:
        with tf.GradientTape() as tape:
            tape.watch(anywhere)
            pulled = pull_back(forward, anywhere, sources)
            pairs = [
                (dense(gradient), tf.stop_gradient(tangent))
                for gradient, tangent in zip(pulled, tangents, strict=True)
                if gradient is not None
            ]
        return tape.gradient(
            [gradient for gradient, _ in pairs],
            anywhere,
            output_gradients=[tangent for _, tangent in pairs],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    except (LookupError, NotImplementedError) as error:
        raise ValueError(
            "To verify a direction, every operation of the encoder must have "
            f"a second derivative. Received: one that has none: {error}. "
            "Replace it, or train without `verify` and with `gradients` other "
            "than 'verified'."
        ) from error


def jacobian(
    gradients: TaskGradients,
    candidates: Sequence[int],
    *,
    at_once: bool = False,
) -> dict[int, Rows]:
    """`J' dL_t/dZ` for every task `t`.

    Args:
        gradients: the task gradients at `Z`.
        candidates: indices of the variables to be looked at.
        at_once: pull all tasks back side by side where that is possible,
            which is fast and takes the memory of `m` backward passes; or one
            after another.

    Returns:
        `{variable index: rows of all tasks}` for the candidates that are part
        of the encoder.
    """
    forward = gradients.forward
    sources = values([gradients.variables[i] for i in candidates])
    if not (sources and gradients.at_z):
        return {}
    tables = _tables(forward, sources)
    at_z = list(map(dense_rows, gradients.at_z))
    inside: set[int] = set()

    def of_one_task(of_task: list[tf.Tensor]) -> list[Any]:
        pulled = pull_back(forward, of_task, sources)
        inside.update(k for k, g in enumerate(pulled) if g is not None)
        return [
            (tf.cast(gradient.indices, tf.int64), gradient.values)
            if k in tables
            else tf.zeros_like(source)
            if gradient is None
            else dense(gradient)
            for k, (source, gradient) in enumerate(
                zip(sources, pulled, strict=True)
            )
        ]

    # Either way the backward pass is traced once.
    with without_collectives("the encoder with these `gradients`"):
        if at_once and not tables and forward.can_vectorize():
            of_tasks = tf.vectorized_map(of_one_task, at_z)
        else:
            of_tasks = tf.map_fn(
                of_one_task,
                at_z,
                fn_output_signature=[
                    (
                        tf.TensorSpec([None], tf.int64),
                        tf.TensorSpec([None, *s.shape[1:]], s.dtype),
                    )
                    if k in tables
                    else tf.TensorSpec(s.shape, s.dtype)
                    for k, s in enumerate(sources)
                ],
                parallel_iterations=1,
            )
    return {
        candidates[k]: TableRows(rows[0][0], rows[1], sources[k].shape)
        if k in tables
        else rows
        for k, rows in enumerate(of_tasks)
        if k in inside
    }


def _tables(forward: ForwardPass, sources: Sequence[tf.Variable]) -> set[int]:
    """The large sources of which rows are read alone, as embeddings are.

    Of these a gradient holds the rows that were read, and must not be made
    dense for each task.
    """
    large = [
        k
        for k, s in enumerate(sources)
        if len(s.shape) > 1 and s.shape[0] >= _TABLE
    ]
    if not large or num_replicas() > 1:
        return set()
    found: set[int] = set()

    def look() -> None:
        ones = [tf.ones_like(z.encoded) for z in forward.representations]
        pulled = pull_back(forward, ones, [sources[k] for k in large])
        found.update(
            k
            for k, gradient in zip(large, pulled, strict=True)
            if isinstance(gradient, tf.IndexedSlices)
        )

    tf.function(look, autograph=False).get_concrete_function()  # never run
    return found
