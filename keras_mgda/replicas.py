"""Training on several replicas: what they add up, and what Keras lacks there.

Each replica sees a part of the global batch. What is summed over all of them
before the task weights are chosen makes them choose the same, so that `r`
replicas of `b` examples train as one of `r b` does.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def sum_over_replicas(value: Any) -> Any:
    """The sum of a tensor, or of a list of them, over all replicas.

    To be called by the training step itself: a collective cannot stand in a
    nested `tf.function`, `tf.cond` or `tf.while_loop`.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


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
    refused by `compile`.
    """

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            _check_supported(self)

    def test_step(self, data: Any) -> dict[str, Any]:
        return self._for_reduction(super().test_step(data))

    def _for_reduction(self, logs: dict[str, Any]) -> dict[str, Any]:
        """The logs of one replica, as `fit` can reduce them over the workers.

        It takes the mean over the first axis there, which a scalar lacks.
        """
        if not isinstance(
            self.distribute_strategy,
            tf.distribute.MultiWorkerMirroredStrategy,
        ):
            return logs
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}

    def _maybe_symbolic_build(
        self, iterator: Any = None, data_batch: Any = None
    ) -> None:
        """Overrides a private method, the only place that can be mended.

        To learn the shapes, Keras reduces the first batch to its mean over the
        replicas. That fails if their parts differ in size, and with several
        workers; the part of one replica has the same shapes.
        """
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync > 1 and iterator is not None:
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(
                lambda part: strategy.experimental_local_results(part)[0],
                next(batches),
            )
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)


def check_variables(variables: list[keras.Variable]) -> None:
    """Raises unless the variables are there on every replica."""
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync > 1 and not all(
        strategy.extended.variable_created_in_scope(variable.value)
        for variable in variables
    ):
        raise ValueError(
            "The model must be built under the strategy that trains it. "
            f"Received: a model with variables outside {strategy}. Build "
            "it inside `with strategy.scope():`."
        )


def _check_supported(model: keras.Model) -> None:
    strategy = model.distribute_strategy
    on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    unsupported = {
        "ParameterServerStrategy": isinstance(
            strategy, tf.distribute.ParameterServerStrategy
        ),
        "jit_compile=True": model.jit_compile and not on_tpu,
        "steps_per_execution > 1": model.steps_per_execution > 1 and not on_tpu,
        "gradient_accumulation_steps": optimizer.gradient_accumulation_steps,
        "ema_overwrite_frequency": optimizer.use_ema
        and optimizer.ema_overwrite_frequency,
    }
    for option, received in unsupported.items():
        if received:
            raise ValueError(
                f"{type(strategy).__name__} must train without {option}: "
                "Keras 3 does not support the two together. "
                f"Received: {option} with "
                f"{strategy.num_replicas_in_sync} replicas. Leave it out."
            )
