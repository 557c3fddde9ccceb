"""Steps that overflow in half precision are skipped, and say whose they are.

(Steps without any label are in `test_labels.py`.)
"""

import contextlib
import warnings

import keras
import numpy as np
import pytest
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from tests.support.dtype_policy import dtype_policy

TASKS = ("a", "b", "c")
MODES = ("representation", "parameters", "last", "verified")
WAYS = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "xla": {"jit_compile": True},
}


@pytest.fixture(autouse=True)
def _mixed_float16():
    with dtype_policy("mixed_float16"):
        yield


def compiled(
    scale=2.0**10,
    scope=contextlib.nullcontext,
    encoder="glorot_uniform",
    **how,
):
    with scope():
        x = keras.Input((8,))
        z = layers.Dense(4, kernel_initializer=encoder)(x)
        z = SharedRepresentation()(z)
        outputs = {t: layers.Dense(1, dtype="float32")(z) for t in TASKS}
        model = MGDAModel(x, outputs)
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.01), initial_scale=scale
        )
        model.compile(optimizer, dict.fromkeys(TASKS, "mse"), **how)
    return model


def data(b=12):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(b, 8)).astype("float32")
    return x, {t: rng.normal(size=(b, 1)).astype("float32") for t in TASKS}


def warnings_of(model, x, y, **how):
    """The warnings of three steps of four examples."""
    how = {"batch_size": 4, "shuffle": False, "verbose": 0} | how
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y, **how)
    return [str(w.message) for w in caught if w.category is UserWarning]


@pytest.mark.parametrize("gradients", MODES)
@pytest.mark.parametrize(
    "way",
    ["eager", pytest.param("xla", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("label", [1e30, 1e6], ids=["loss", "gradient"])
@pytest.mark.sample(3)
def test_the_task_that_overflows_is_named(gradients, way, label):
    """By its loss, and by a gradient in 16 bit whose loss is finite."""
    model = compiled(gradients=gradients, **WAYS[way])
    x, y = data()
    y["b"][[1, 9]] = label  # in the first and in the last step
    before = [v.numpy() for v in model.trainable_variables]
    (message,) = warnings_of(model, x, y)
    assert message.startswith("2 training steps were skipped")
    assert "in 2 for task 'b'." in message
    assert "'a'" not in message
    assert "'c'" not in message
    assert all(np.isfinite(v.numpy()).all() for v in model.weights)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert (variable.numpy() != value).any()  # by the step between them
    assert model.optimizer.dynamic_scale.numpy() == 2.0**8


@pytest.mark.parametrize("way", ["graph", "xla"])
@pytest.mark.sample(1)
def test_in_graphs_and_under_xla(way):
    x, y = data()
    y["c"][5] = 1e6
    (message,) = warnings_of(compiled(**WAYS[way]), x, y)
    assert message.startswith("1 training steps were skipped")
    assert "in 1 for task 'c'." in message


def test_what_overflows_behind_the_tasks_is_the_encoder():
    """`Z` is zero, and `dL/dtheta = x' dL/dZ` too large for 16 bit."""
    model = compiled(encoder="zeros", run_eagerly=True)
    x, y = data()
    x[0] = 6e4
    (message,) = warnings_of(model, x, y)
    assert "in 1 for the encoder." in message
    assert "task" not in message.split("overflowed")[1].split(".")[0]


def test_several_tasks_are_counted_apart():
    model = compiled(run_eagerly=True)
    x, y = data()
    y["a"][0] = y["a"][4] = y["c"][5] = np.nan
    (message,) = warnings_of(model, x, y)
    assert message.startswith("2 training steps")
    assert "in 2 for task 'a', in 1 for task 'c'." in message


@pytest.mark.parametrize("weighting", ["uniform", "dwa"])
def test_whatever_the_weighting_looks_at(weighting):
    model = compiled(weighting=weighting, run_eagerly=True)
    x, y = data()
    y["b"][0] = 1e6
    (message,) = warnings_of(model, x, y)
    assert "in 1 for task 'b'." in message


def test_it_is_told_once_and_not_without_need():
    model = compiled(run_eagerly=True)
    x, y = data()
    assert warnings_of(model, x, y) == []
    y["b"][0] = 1e6
    assert len(warnings_of(model, x, y)) == 1
    assert warnings_of(model, *data()) == []


@pytest.mark.slow
def test_a_replica_that_overflows_is_heard(strategy):
    model = compiled(scope=strategy.scope)
    x, y = data()
    y["b"][3] = 1e6  # the last example of the first batch: second replica
    (message,) = warnings_of(model, x, y)
    assert message.startswith("1 training steps were skipped")
    assert "in 1 for task 'b'." in message


def test_tasks_without_labels_and_an_overflow():
    model = compiled(unlabelled="nan", run_eagerly=True)
    x, y = data()
    for of_task in y.values():
        of_task[:4] = np.nan
    y["b"][5] = 1e6
    empty, overflow = warnings_of(model, x, y)
    assert empty.startswith("1 training steps changed nothing")
    assert "in 1 for task 'b'." in overflow
