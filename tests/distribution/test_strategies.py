"""Which strategies and options a model trains with, and what it refuses.

What it does on two replicas is in `test_replicas.py`.
"""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.support import processes, runs
from tests.support.refusal import refused

PLAIN = ("mgda", "representation")


@pytest.mark.slow
@pytest.mark.parametrize("gradients", runs.MODES)
@pytest.mark.sample(1)
def test_a_step_on_two_replicas_is_that_of_one(strategy, gradients):
    x, y = runs.data(24)
    one, two = (
        runs.compiled(where, gradients=gradients) for where in (None, strategy)
    )
    for model in (one, two):
        model.fit(x, y, batch_size=24, verbose=0)
    assert two.task_weights == pytest.approx(one.task_weights, abs=1e-5)
    for a, b in zip(two.get_weights(), one.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [{"jit_compile": True}, {"steps_per_execution": 2}], ids=list
)
def test_one_device_is_as_no_strategy(option):
    """With what several replicas have to do without."""
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    model = runs.compiled(strategy, **option)
    runs.assert_same(runs.fit(model), runs.of_case_on_one(PLAIN))


@pytest.mark.slow
def test_synchronized_layer_in_the_encoder_of_exact_mgda(strategy):
    of_encoder = (lambda: layers.BatchNormalization(synchronized=True),)
    model = runs.compiled(strategy, of_encoder, gradients="parameters")
    with refused("the encoder with .* must not sum over replicas"):
        runs.fit(model)


UNSUPPORTED = {
    "jit_compile=True": {"jit_compile": True},
    "steps_per_execution > 1": {"steps_per_execution": 2},
    "gradient_accumulation_steps": {
        "optimizer": runs.sgd(gradient_accumulation_steps=2)
    },
    "ema_overwrite_frequency": {
        "optimizer": runs.sgd(use_ema=True, ema_overwrite_frequency=2)
    },
}
each_unsupported = pytest.mark.parametrize("option", UNSUPPORTED)


@each_unsupported
def test_what_keras_does_not_support_is_refused(strategy, option):
    with refused(f"must train without {option}"):
        runs.compiled(strategy, **UNSUPPORTED[option])
    runs.compiled(**UNSUPPORTED[option])


@pytest.mark.slow
@each_unsupported
def test_keras_does_not_support_it(strategy, option):
    """If this fails, Keras has learnt it, and the refusal can go."""
    stock = runs.compiled(strategy, make=keras.Model, **UNSUPPORTED[option])
    with pytest.raises((RuntimeError, tf.errors.OpError)):
        stock.fit(*runs.data(), batch_size=24, verbose=0)


def several(optimizer):
    maps = getattr(keras.optimizers, "OptimizerMap", None)
    if maps is None:
        pytest.skip("this version of Keras has no `MultiOptimizer`")
    return keras.optimizers.MultiOptimizer(maps(default_optimizer=optimizer))


@pytest.mark.parametrize("wrap", [keras.optimizers.LossScaleOptimizer, several])
def test_option_of_a_wrapped_optimizer_is_refused(strategy, wrap):
    inner = runs.sgd(gradient_accumulation_steps=2)
    with refused("must train without gradient_accumulation_steps"):
        runs.compiled(strategy, optimizer=lambda: wrap(inner()))


@pytest.mark.slow
def test_what_is_built_outside_of_the_scope_is_refused(strategy):
    message = "must be built under the strategy"
    model = runs.compiled()
    with strategy.scope(), refused(message):
        runs.fit(model)
    with strategy.scope(), refused(message):
        model.compile("sgd", runs.LOSSES)
    assert all(np.isfinite(w).all() for w in model.get_weights())

    model = runs.compiled(strategy)
    with refused(message):
        model.compile(keras.optimizers.SGD(), runs.LOSSES)
    model.compile("sgd", runs.LOSSES)  # Keras makes this one in the scope
    runs.fit(model, epochs=1)
    first, second = runs.on_each_replica(model)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_other_strategies_are_refused():
    refusal, stock, *_ = processes.alone(
        "parameter_server", *processes.free_ports(2)
    ).result
    assert re.search("must be one of .* Received: ParameterServer", refusal)
    assert stock is not None
