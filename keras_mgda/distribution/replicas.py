"""Training on several replicas: what they add up, and what Keras lacks there.

Each replica sees a part of the global batch. What is summed over all of them
before the task weights are chosen makes them choose the same, so that `r`
replicas of `b` examples train as one of `r b` does.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.distribution.workers import (
    SameStart,
    check_same_steps,
    has_workers,
)
from keras_mgda.training.optimizer_slots import has_option


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


def replica_shares(counts: Sequence[tf.Tensor]) -> tf.Tensor:
    """`[m]`: the `r N / N'` of a replica that has `N` of all the `N'`.

    Means over the replicas' parts, weighted by these and summed as gradients
    are, with `1 / r`, are means over the whole. Zero where `N'` is.
    """
    own = tf.stack(counts)
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


class ReplicatedModel(keras.Model):
    """A `keras.Model` that also trains where stock Keras fails on replicas.

    Keras 3 fails under `MultiWorkerMirroredStrategy`, and with a first batch
    that the replicas cannot share evenly. What cannot be mended from here is
    refused by `compile`, or by `fit` before its first step.
    """

    def compile(self, *args: Any, **kwargs: Any) -> None:
        with self.distribute_strategy.scope():  # for the optimizer it makes
            super().compile(*args, **kwargs)
        _check_supported(self)
        _check_scope(self)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if has_workers(self.distribute_strategy):
            # The last one, when the others have loaded their checkpoints.
            callbacks = [callbacks] if callbacks else []
            callbacks = [
                *keras.tree.flatten(callbacks),
                SameStart(self._start),
            ]
        return super().fit(
            x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs
        )

    def _start(self) -> tuple[list[keras.Variable], Any]:
        """What all workers must have in common: variables, and settings."""
        return [*self.weights, *self.optimizer.variables], None

    def test_step(self, data: Any) -> dict[str, Any]:
        return self._for_reduction(super().test_step(data))

    def _for_reduction(self, logs: dict[str, Any]) -> dict[str, Any]:
        """The logs of one replica, as `fit` can reduce them over the workers.

        It takes the mean over the first axis there, which a scalar lacks.
        """
        if not has_workers(self.distribute_strategy):
            return logs
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}

    def _maybe_symbolic_build(
        self, iterator: Any = None, data_batch: Any = None, **kwargs: Any
    ) -> None:
        """Overrides a private method, the only place that can be mended.

        To learn the shapes, Keras reduces the first batch to its mean over the
        replicas. That fails if their parts differ in size, and with several
        workers; the part of one replica has the same shapes. (Keras 3.5 to
        3.15. One that does not call this any more has another way.)
        """
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync > 1 and iterator is not None:
            if has_workers(strategy):
                check_same_steps(strategy, iterator)
            *_, batches = next(iter(iterator))  # after one step, or two
            data_batch = keras.tree.map_structure(
                lambda part: strategy.experimental_local_results(part)[0],
                next(batches),
            )
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch, **kwargs)


def check_replica(model: keras.Model, x: Any) -> None:
    """Raises unless a replica can make its training step. Called by the step.

    Raises:
        ValueError: if the model has variables outside of the strategy's scope.
        tf.errors.InvalidArgumentError: when the step runs, if it takes batch
            statistics and some replica has no examples.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return
    _check_scope(model)
    first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
    # The statistics of no examples are NaN, and spread to all replicas.
    if first.shape[0] is None and _moving_statistics(model):
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
    statistics = _moving_statistics(model)
    if replicas == 1 or not statistics:
        return
    totals = sum_over_replicas([tf.identity(v.value) for v in statistics])
    for variable, total in zip(statistics, totals, strict=True):
        variable.assign(total / replicas)


@contextlib.contextmanager
def without_collectives(place: str) -> Iterator[None]:
    """Says what is wrong if something is summed over replicas in this block."""
    try:
        yield
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise ValueError(
            f"The layers of {place} must not sum over replicas. Received: one "
            "that does, as `BatchNormalization(synchronized=True)` is. Leave "
            "that out, or use `gradients='representation'`."
        ) from error


def _moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Those of batch normalization."""
    return [
        variable
        for variable in model.non_trainable_variables
        if variable.name in ("moving_mean", "moving_variance")
    ]


_SUPPORTED = {
    f"tf.distribute.{name}": getattr(tf.distribute, name)
    for name in (
        "MirroredStrategy",
        "MultiWorkerMirroredStrategy",
        "OneDeviceStrategy",
        "TPUStrategy",
    )
}


def _check_supported(model: keras.Model) -> None:
    strategy = model.distribute_strategy
    with strategy.scope():
        distributed = tf.distribute.has_strategy()
    if distributed and not isinstance(strategy, tuple(_SUPPORTED.values())):
        raise ValueError(
            f"The strategy must be one of {', '.join(_SUPPORTED)}. "
            f"Received: {type(strategy).__name__}, which Keras 3 does not "
            "support. Take one of these."
        )
    if strategy.num_replicas_in_sync == 1:
        return
    unsupported = {
        # A `TPUStrategy` compiles the step on its own account.
        "jit_compile=True": model.jit_compile,
        "steps_per_execution > 1": model.steps_per_execution > 1
        and not isinstance(strategy, tf.distribute.TPUStrategy),
    }
    for option in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
        unsupported[option] = has_option(model.optimizer, option)
    for option, received in unsupported.items():
        if received:
            raise ValueError(
                f"{type(strategy).__name__} must train without {option}: "
                "Keras 3 does not support the two together. "
                f"Received: {option} with "
                f"{strategy.num_replicas_in_sync} replicas. Leave it out."
            )


def _check_scope(model: keras.Model) -> None:
    strategy = model.distribute_strategy
    variables = [*model.variables, *getattr(model.optimizer, "variables", ())]
    if strategy.num_replicas_in_sync > 1 and not all(
        strategy.extended.variable_created_in_scope(variable.value)
        for variable in variables
    ):
        raise ValueError(
            "The model and its optimizer must be built under the strategy that "
            f"trains them. Received: variables outside {strategy}. Build and "
            "compile inside `with strategy.scope():`."
        )
