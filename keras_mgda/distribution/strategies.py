"""Strategies: which ones train a model, and what it needs there."""

import keras
import tensorflow as tf

from keras_mgda.internals import optimizer_sets

_SUPPORTED = {
    f"tf.distribute.{name}": getattr(tf.distribute, name)
    for name in (
        "MirroredStrategy",
        "MultiWorkerMirroredStrategy",
        "OneDeviceStrategy",
        "TPUStrategy",
    )
}


def check_strategy(model: keras.Model) -> None:
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
        unsupported[option] = optimizer_sets(model.optimizer, option)
    for option, received in unsupported.items():
        if received:
            raise ValueError(
                f"{type(strategy).__name__} must train without {option}: "
                "Keras 3 does not support the two together. "
                f"Received: {option} with "
                f"{strategy.num_replicas_in_sync} replicas. Leave it out."
            )


def check_scope(model: keras.Model) -> None:
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
