"""The direction of one step: from task gradients to what each variable follows.

The shared variables `theta` move along `sum_t w_t dL_t/dtheta` and a head's own
along their plain gradient (Sener & Koltun, 2018, Algorithm 2). The functions
here differ in the task gradients whose Gram matrix chooses the weights `w`;
those at the end need none.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.descent.columns import RowBlocks
from keras_mgda.descent.encoder_layers import FindLayers
from keras_mgda.descent.encoder_products import jacobian, pull_back
from keras_mgda.descent.forward import ForwardPass, values
from keras_mgda.descent.readers import Readers, find_readers, losses
from keras_mgda.descent.task_gradients import (
    Gradient,
    Rows,
    TableRows,
    TaskGradients,
    add,
    add_rows,
    check_representation,
    check_tasks_are_trained,
    combine,
    dense,
    of_total_loss,
)
from keras_mgda.distribution.replicas import num_replicas, sum_over_replicas
from keras_mgda.linalg.gram import jacobian_gram

# From the Gram matrix `[m, m]` to the task weights `[m]`.
Weigh = Callable[[tf.Tensor], tf.Tensor]

# A task weight smaller than this, or larger than its inverse, would cost digits
# where a half-precision gradient is multiplied by it and divided again.
_DIVISIBLE = 1e-3


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
        readers: which tasks read what; `None` if nobody had to know.
        gram: `[m, m]`, of the task gradients that were looked at: those that
            the task weights were chosen by, or for a verified direction those
            at `Z`, before corrections. `None` if nobody looked at any.
        verification: if the direction was looked at.
        looked: `[]`, bool: whether it was, in this step. `None`: it was.
        admitted: `[]`, bool: whether the weighting is defined for the task
            losses. Where it is not, nothing must move. `None`: it always is.
    """

    gradients: list[Gradient]
    task_weights: tf.Tensor
    readers: Readers | None = None
    gram: tf.Tensor | None = None
    verification: Verification | None = None
    looked: tf.Tensor | None = None
    admitted: tf.Tensor | None = None


def along_representation(gradients: TaskGradients, weigh: Weigh) -> Direction:
    """MGDA-UB: weighs by `dL_t/dZ`, and by `S_t` of what does not pass `Z`.

    Only the weighted sum is pulled back, so the encoder's backward pass runs
    once whatever `m` is. If the weighted sum of these gradients is zero, so is
    that of the `dL_t/dtheta`: the point is Pareto stationary. Elsewhere it
    approximates exact MGDA, and its direction may conflict with a task
    gradient; Theorem 1(b) of the paper does not hold in general.

    References:
        Sener & Koltun, 2018, section 3.3, (MGDA-UB).
    """
    check_representation(gradients)
    _warn_if_apart(gradients)
    gram = gram_of_representation(gradients)
    return along(gradients, weigh(gram), gram)


def _warn_if_apart(gradients: TaskGradients) -> None:
    """Warns if the Gram matrix at `Z` is diagonal, whatever the data."""
    of_z = gradients.readers.of_z
    if (
        gradients.num_tasks > 1
        and all(len(of_tensor) < 2 for of_tensor in of_z)
        and not gradients.past_z
    ):
        warnings.warn(
            "No two tasks read the same tensor of the shared representation, "
            "so that MGDA-UB sees no conflict between them. Compile with "
            "`gradients='parameters'` or 'verified', which look at the "
            "variables that they share.",
            stacklevel=2,
        )


def along_parameters(gradients: TaskGradients, weigh: Weigh) -> Direction:
    """Exact MGDA: weighs by `dL_t/dtheta` itself.

    The encoder's backward pass is traced once, and runs once for each task.
    Holds `m` gradients of the shared variables at a time. Without a `Z` all of
    them come from the backward passes through the heads, which then run
    through the whole model.

    References:
        Sener & Koltun, 2018, equation 3.
    """
    check_tasks_are_trained(gradients)
    gram, rows = gram_of_parameters(gradients)
    task_weights = weigh(gram)
    shared = {i: combine(task_weights, of_i) for i, of_i in rows.items()}
    return with_heads(gradients, shared, task_weights, gram)


def along_layers(
    gradients: TaskGradients, weigh: Weigh, find: FindLayers
) -> Direction:
    """Weighs by the gradients of some of the encoder's layers.

    They tell what examples have in common, which `dL_t/dZ` does not: for a
    dense layer `Z = X theta` the Gram matrix is `sum_ij (X X')_ij <dL_t/dZ_i,
    dL_s/dZ_j>`, and MGDA-UB is the case `X X' = I`. The task gradients are
    pulled back as far as these layers, and only their weighted sum further.
    """
    check_representation(gradients)
    gram = gram_of_layers(gradients, find(gradients))
    return along(gradients, weigh(gram), gram)


def along(
    gradients: TaskGradients,
    task_weights: tf.Tensor,
    gram: tf.Tensor | None,
) -> Direction:
    """The direction of given task weights."""
    shared = shared_gradients(gradients, task_weights)
    return with_heads(gradients, shared, task_weights, gram)


def gram_of_representation(gradients: TaskGradients) -> tf.Tensor:
    """Over `Z`, batch axis and all, and over what does not pass it."""
    m = gradients.num_tasks
    gram = tf.zeros([m, m])
    blocks = [rows for rows in gradients.at_z if isinstance(rows, RowBlocks)]
    stacked = [r for r in gradients.at_z if not isinstance(r, RowBlocks)]
    if stacked or blocks:
        grams = [rows.gram() for rows in blocks]
        if stacked:
            grams.append(jacobian_gram(stacked))
        gram = sum_over_replicas(tf.add_n(grams))
    if gradients.past_z:
        gram += _gram(gradients.past_z)
    return gram


def gram_of_parameters(
    gradients: TaskGradients,
) -> tuple[tf.Tensor, dict[int, Rows]]:
    """Over all shared variables, and the rows `{variable index: rows}`."""
    # One task after another: memory for one backward pass, not for m.
    rows = jacobian(gradients, gradients.in_encoder())
    return _gram_of_rows(gradients, rows)


def gram_of_layers(
    gradients: TaskGradients, chosen: Sequence[int]
) -> tf.Tensor:
    """Over the chosen variables of the encoder, and what does not pass `Z`."""
    rows = jacobian(gradients, chosen, at_once=True)
    gram, _ = _gram_of_rows(gradients, rows)
    return gram


def shared_gradients(
    gradients: TaskGradients, task_weights: tf.Tensor
) -> dict[int, Gradient]:
    """`sum_t w_t dL_t/dtheta`, by one backward pass through the encoder.

    Returns:
        `{variable index: gradient}` of the shared variables.
    """
    inside = gradients.in_encoder()
    pulled = pull_back(
        gradients.forward,
        [combine(task_weights, at_z) for at_z in gradients.at_z],
        values([gradients.variables[i] for i in inside]),
    )
    shared = dict(zip(inside, pulled, strict=True))
    for i, of_tasks in gradients.past_z.items():
        shared[i] = add(shared.get(i), combine(task_weights, of_tasks))
    return shared


def with_heads(
    gradients: TaskGradients,
    shared: Mapping[int, Gradient],
    task_weights: tf.Tensor,
    gram: tf.Tensor | None,
) -> Direction:
    """Adds the heads' own gradients to those of the shared variables."""
    by_index = {**gradients.own, **shared}
    return Direction(
        [by_index.get(i) for i in range(len(gradients.variables))],
        task_weights,
        gradients.readers,
        gram,
    )


def _gram_of_rows(
    gradients: TaskGradients, rows: Mapping[int, Rows]
) -> tuple[tf.Tensor, dict[int, Rows]]:
    """The Gram matrix of encoder rows with what does not pass `Z` added."""
    rows = dict(rows)
    for i, of_tasks in gradients.past_z.items():
        rows[i] = add_rows(rows.get(i), of_tasks)
    if not rows:  # all that is shared is frozen: there is nothing to weigh
        return tf.zeros([gradients.num_tasks] * 2), rows
    return _gram(rows), rows


def _gram(rows: Mapping[int, Rows]) -> tf.Tensor:
    """The Gram matrix of all replicas.

    Each replica holds a summand of every entry of a gradient, not some of the
    entries, so that gradients are summed before products are taken.
    """
    tables = [r for r in rows.values() if isinstance(r, TableRows)]
    others = [r for r in rows.values() if not isinstance(r, TableRows)]
    if num_replicas() > 1:
        others, tables = others + [table.dense() for table in tables], []
    summed = sum_over_replicas(others) if others else []
    return jacobian_gram([*summed, *(table.summed() for table in tables)])


def along_sum(
    forward: ForwardPass,
    variables: Sequence[keras.Variable],
    total_loss: tf.Tensor,
    loss_scale: tf.Tensor,
) -> Direction:
    """The gradient of the total loss, in one backward pass, as in stock Keras.

    Raises:
        ValueError: as `of_total_loss`.
    """
    with forward.loss_gate.opened():
        _, found = of_total_loss(forward, variables, total_loss, loss_scale)
    return Direction(found, tf.ones([forward.num_tasks]))


def along_losses(
    forward: ForwardPass,
    variables: Sequence[keras.Variable],
    seeds: Sequence[list[tf.Tensor]],
    task_weights: tf.Tensor,
) -> Direction:
    """By weights that no task gradient chose, in one backward pass.

    The pass starts from the weighted losses, which is right for what is shared.
    What a head got is divided by its task's weight: `(w_t g) / w_t = g`. Where
    a weight is too small or too large for that, as zero is, a second pass goes
    through the heads alone.
    """
    readers = find_readers(forward, variables)
    task_weights = tf.cast(task_weights, tf.float32)

    def of_losses(
        factors: tf.Tensor, chosen: list[int], *, past_z: bool = False
    ) -> list[Any]:
        # A tape walks through the encoder, even if nobody asks for it.
        gate = forward.encoder_gate
        with contextlib.nullcontext() if past_z else gate.opened():
            return forward.gradient(
                losses(forward),
                values([variables[i] for i in chosen]),
                [
                    [seed * tf.cast(factor, seed.dtype) for seed in of_output]
                    for of_output, factor in zip(
                        seeds, forward.by_output(factors), strict=True
                    )
                ],
            )

    found = of_losses(task_weights, list(range(len(variables))))
    heads = [
        i
        for i, gradient in enumerate(found)
        if gradient is not None and not readers.is_shared(i)
    ]
    weighted = [dense(found[i]) for i in heads]

    def divided() -> list[tf.Tensor]:
        # A kernel whose columns are tasks by a weight for each of them.
        owners = [readers.owners(i) for i in heads]
        own = [
            tf.gather(task_weights, of_i if len(of_i) > 1 else of_i[0])
            for of_i in owners
        ]
        return [
            g / tf.cast(w, g.dtype) for g, w in zip(weighted, own, strict=True)
        ]

    def again() -> list[tf.Tensor]:
        ones = tf.ones_like(task_weights)
        past_z = not readers.branches
        return list(map(dense, of_losses(ones, heads, past_z=past_z)))

    known = tf.get_static_value(task_weights)
    if num_replicas() > 1:  # whose sums cannot stand in a branch of the graph
        plain = again()
    elif known is not None:
        plain = divided() if bool(_divisible(known)) else again()
    else:
        plain = tf.cond(_divisible(task_weights), divided, again)
    for i, gradient in zip(heads, plain, strict=True):
        found[i] = gradient
    return Direction(found, task_weights, readers)


def _divisible(task_weights: Any) -> Any:
    size = abs(task_weights)
    inside = (size > _DIVISIBLE) & (size < 1 / _DIVISIBLE)
    return (
        inside.all() if isinstance(size, np.ndarray) else tf.reduce_all(inside)
    )
