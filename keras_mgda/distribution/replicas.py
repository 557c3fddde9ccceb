"""Replicas: what they sum before a step, and what Keras lacks there.

Each replica sees a part of the global batch. What is summed over all of them
before the task weights are chosen makes them choose the same, so that `r`
replicas of `b` examples train as one of `r b` does.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.distribution.strategies import check_scope
from keras_mgda.internals import moving_statistics


def sum_over_replicas(value: Any) -> Any:
    """The sum of a tensor, or of a list of them, over all replicas.

    To be called by the training step itself: a collective cannot stand in a
    nested `tf.function`, `tf.cond` or `tf.while_loop`.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def num_replicas() -> int:
    """How many replicas make this step together."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def replica_shares(own: tf.Tensor) -> tf.Tensor:
    """`[m]`: the `r N / N'` of a replica that has `N` of all the `N'`.

    Means over the replicas' parts, weighted by these and summed as gradients
    are, with `1 / r`, are means over the whole. Zero where `N'` is.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return tf.math.divide_no_nan(own * replicas, sum_over_replicas(own))


def share_overflow(gradients: list[Any]) -> list[Any]:
    """Makes the gradients NaN on all replicas if they overflowed on one.

    Keras's `LossScaleOptimizer` skips a step with gradients that are not
    finite, but asks the first replica only.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradients
    finite = [
        tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(gradient)))
        for gradient in gradients
        if gradient is not None
    ]
    overflown = tf.cast(~tf.reduce_all(finite), tf.float32)
    marker = tf.where(sum_over_replicas(overflown) > 0, float("nan"), 0.0)
    return [
        None
        if gradient is None
        else tf.convert_to_tensor(gradient) + tf.cast(marker, gradient.dtype)
        for gradient in gradients
    ]


def check_replica(model: keras.Model, x: Any) -> None:
    """Raises unless a replica can make its training step. Called by the step.

    Raises:
        ValueError: if the model has variables outside of the strategy's scope.
        tf.errors.InvalidArgumentError: when the step runs, if it takes batch
            statistics and some replica has no examples.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return
    check_scope(model)
    first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
    # The statistics of no examples are NaN, and spread to all replicas.
    if first.shape[0] is None and moving_statistics(model):
        empty = tf.cast(tf.shape(first)[0] == 0, tf.float32)
        tf.debugging.assert_equal(
            sum_over_replicas(empty),
            0.0,
            "With batch normalization every replica must have examples in "
            "every batch. Received: a batch of fewer examples than there are "
            "replicas. Drop the last one, as by `dataset.batch(size, "
            "drop_remainder=True)`.",
        )


def share_statistics(model: keras.Model) -> None:
    """Sets moving statistics to their mean over the replicas.

    Keras's batch normalization lets each replica have its own, of which
    evaluation and checkpoints would take the first.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    statistics = moving_statistics(model)
    if replicas == 1 or not statistics:
        return
    totals = sum_over_replicas([tf.identity(v.value) for v in statistics])
    for variable, total in zip(statistics, totals, strict=True):
        variable.assign(total / replicas)


@contextlib.contextmanager
def without_collectives(
    place: str, way_out: str = "or use `gradients='representation'`"
) -> Iterator[None]:
    """Says what is wrong if something is summed over replicas in this block."""
    try:
        yield
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise ValueError(
            f"The layers of {place} must not sum over replicas. Received: one "
            "that does, as `BatchNormalization(synchronized=True)` is. Leave "
            f"that out, {way_out}."
        ) from error
