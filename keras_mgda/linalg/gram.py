"""The Gram matrix of the task gradients: what a weighting knows of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# How far a Gram matrix may be from symmetric, in units of `||g_t|| ||g_s||`.
ASYMMETRY = 1e-3


@tf.autograph.experimental.do_not_convert
def gram_matrix(gradients: Sequence[Any]) -> tf.Tensor:
    """Inner products of the task gradients: `G_ts = <g_t, g_s>`.

    A task gradient is a structure of tensors, such as one tensor for each
    shared variable or for each shared representation, and the inner product
    runs over all their entries: `G_ts = sum_l <g_t[l], g_s[l]>` over the
    leaves `l`. The batch axis of a representation is an axis like any other.

    ```
    >>> left = tf.constant([-4.0, 1.0, 1.0])
    >>> right = tf.constant([6.0, 1.0, 1.0])
    >>> gram_matrix([left, right]).numpy().tolist()
    [[18.0, -22.0], [-22.0, 38.0]]

    ```

    Args:
        gradients: list of `m` structures alike, one for each task. A leaf is
            a tensor, a `tf.IndexedSlices` (rows that occur twice add up), or
            `None` where the task does not reach it: a zero.

    Returns:
        `[m, m]`, float32. NaN and infinity in a gradient show in its row and
        column. Products are summed in float32, or in float64 for float64
        gradients. (TensorFlow may round the factors of float32 products, to
        TF32 on a GPU and bfloat16 on a TPU: see
        `tf.config.experimental.enable_tensor_float_32_execution`.)

    Raises:
        ValueError: If there is no task, or if the tasks differ in structure,
            shape or dtype.
    """
    if not isinstance(gradients, (list, tuple)) or not gradients:
        raise ValueError(
            "`gradients` must be a list of gradients, one for each task. "
            f"Received: {gradients}. Pass `list(gradients.values())` of a "
            "dict, and a stacked Jacobian to `jacobian_gram`."
        )
    for task, gradient in enumerate(gradients):
        _check_structure(gradients[0], gradient, task)

    tasks = [tf.nest.flatten(gradient) for gradient in gradients]
    stacked = [_stack(leaves) for leaves in zip(*tasks, strict=True)]
    if all(leaf is None for leaf in stacked):
        return tf.zeros([len(tasks), len(tasks)])
    return jacobian_gram(stacked)


@tf.autograph.experimental.do_not_convert
def jacobian_gram(jacobian: Any) -> tf.Tensor:
    """Gram matrix of task gradients that are stacked already: `G = J J'`.

    Args:
        jacobian: a structure of tensors `[m, ...]`, row `t` of each the
            gradient of task `t`; `None` where no task reaches a leaf.

    Returns:
        `[m, m]`, float32, as `gram_matrix` of the rows. Its range is that of
        squares: norms beyond 1e19 overflow to infinity, and below 1e-19 they
        count as zero.

    Raises:
        ValueError: If no leaf is a tensor or if their first axes differ.
    """
    leaves = [
        tf.convert_to_tensor(leaf)
        for leaf in tf.nest.flatten(jacobian)
        if leaf is not None
    ]
    num_tasks = {leaf.shape[0] if leaf.shape.rank else None for leaf in leaves}
    if len(num_tasks) != 1 or None in num_tasks:
        raise ValueError(
            "`jacobian` must hold tensors with the tasks as their first axis, "
            "the same known number in each. Received: shapes "
            f"{[str(leaf.shape) for leaf in leaves]}."
        )
    # One product for each leaf, however many the tasks; the rows are never
    # concatenated, which would double the memory that the Jacobian takes.
    return tf.add_n([_outer(leaf) for leaf in leaves])


@tf.autograph.experimental.do_not_convert
def square_gram(gram: Any) -> tf.Tensor:
    """A Gram matrix as a floating tensor, a constant to a `tf.GradientTape`.

    Args:
        gram: `[m, m]`, a tensor or what becomes one.

    Returns:
        `[m, m]`, in its own dtype if that is floating, else float32.

    Raises:
        ValueError: If `gram` is not a square matrix whose size is known when
            it is traced.
    """
    gram = tf.convert_to_tensor(gram)
    shape = gram.shape
    if shape.rank != 2 or None in shape or shape[0] != shape[1] or not shape[0]:
        raise ValueError(
            "`gram` must be a square matrix with one row for each task, their "
            f"number known when it is traced. Received: shape {shape}. Set a "
            "lost shape with `tf.ensure_shape`."
        )
    gram = gram if gram.dtype.is_floating else tf.cast(gram, tf.float32)
    # Nobody differentiates the weights, and XLA could not reverse the loops.
    return tf.stop_gradient(gram)


@tf.autograph.experimental.do_not_convert
def symmetric_gram(gram: Any) -> tf.Tensor:
    """As `square_gram`; in eager code also refuses what is not symmetric.

    Raises:
        ValueError: As `square_gram`, and where `gram` and its transpose are
            seen to be apart by more than `ASYMMETRY`.
    """
    gram = square_gram(gram)
    value = tf.get_static_value(gram)  # `None` inside of a graph
    if value is not None and not _nearly_symmetric(value):
        raise ValueError(
            "`gram` must be symmetric: `gram[t, s] = <g_t, g_s>`. "
            f"Received: {value}. Is it `jacobian @ jacobian.T`?"
        )
    return gram


def _nearly_symmetric(gram: Any) -> bool:
    gram = np.asarray(gram, np.float64)
    if not np.isfinite(gram).all():
        return True  # has to show in the task weights
    norms = np.sqrt(np.abs(np.diag(gram)))
    allowed = ASYMMETRY * norms[:, None] * norms
    return bool((np.abs(gram - gram.T) <= allowed).all())


def _outer(leaf: tf.Tensor) -> tf.Tensor:
    rows = tf.reshape(leaf, [leaf.shape[0], -1])
    if rows.dtype != tf.float64:
        rows = tf.cast(rows, tf.float32)
    return tf.cast(tf.matmul(rows, rows, transpose_b=True), tf.float32)


def _stack(leaves: Sequence[Any]) -> tf.Tensor | None:
    """The same leaf of all tasks as `[m, ...]`; `None` if no task has it."""
    tensors = [None if g is None else tf.convert_to_tensor(g) for g in leaves]
    reached = [tensor for tensor in tensors if tensor is not None]
    if not reached:
        return None

    first = reached[0]
    if any(
        not tensor.shape.is_compatible_with(first.shape)
        or tensor.dtype != first.dtype
        for tensor in reached
    ):
        raise ValueError(
            "A leaf must have the same shape and dtype in all tasks. Received: "
            f"{[f'{t.dtype.name} {t.shape}' for t in reached]}."
        )
    zeros = tf.zeros_like(first)
    return tf.stack([zeros if t is None else t for t in tensors])


def _check_structure(first: Any, other: Any, task: int) -> None:
    try:
        tf.nest.assert_same_structure(first, other)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "The gradients of all tasks must have the same structure. "
            f"Received: {_shapes(first)} for task 0 and {_shapes(other)} for "
            f"task {task}. Put `None` where a task does not reach a leaf."
        ) from error


def _shapes(gradient: Any) -> Any:
    return tf.nest.map_structure(
        lambda leaf: getattr(leaf, "shape", leaf), gradient
    )
