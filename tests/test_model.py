import functools
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from keras_mgda.weightings import MGDA
from tests.support import networks

MODES = ["representation", "parameters"]
each_mode = pytest.mark.parametrize("gradients", MODES)

EXECUTIONS = {
    "graph": {"jit_compile": False},
    "xla": {"jit_compile": True},
    "two steps": {"steps_per_execution": 2},
    "two steps, xla": {"steps_per_execution": 2, "jit_compile": True},
}
ALWAYS = (("xla", "representation"), ("two steps", "parameters"))


def functional(**kwargs):
    x = keras.Input((8,))
    z = layers.BatchNormalization()(networks.dense(4)(x))
    outputs = networks.heads(SharedRepresentation()(z))
    return MGDAModel(x, outputs, **kwargs)


STYLES = [functional, networks.EncoderAndHeads, networks.Functional]


def batch(b=12, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(b, 8)).astype("float32")
    y = {t: scale * rng.normal(size=(b, 1)) for t in "ab"}
    return x, y


def compiled(model, optimizer="sgd", **kwargs):
    model.compile(optimizer, loss={"a": "mse", "b": "mae"}, **kwargs)
    return model


def numbers(model):
    return [v.numpy() for v in model.weights]


def assert_same(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, **({"atol": 1e-5} | tolerance))


def trained(style, **compile_args):
    keras.utils.set_random_seed(0)
    model = compiled(
        style(), keras.optimizers.SGD(0.1, momentum=0.5), **compile_args
    )
    x, y = batch()
    history = model.fit(x, y, batch_size=3, epochs=2, shuffle=False, verbose=0)
    assert model.optimizer.iterations.numpy() == 8
    return numbers(model), history.history["loss"], model.task_weights


@functools.cache
def trained_eagerly(gradients):
    return trained(functional, gradients=gradients, run_eagerly=True)


@pytest.mark.parametrize(
    ("how", "gradients"),
    [
        pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.slow)
        for case in itertools.product(EXECUTIONS, MODES)
    ],
)
@pytest.mark.sample(1)
def test_all_executions_train_alike(how, gradients):
    weights, losses, task_weights = trained(
        functional, gradients=gradients, **EXECUTIONS[how]
    )
    expected = trained_eagerly(gradients)
    assert_same(weights, expected[0])
    np.testing.assert_allclose(losses, expected[1], rtol=1e-4)
    assert task_weights == pytest.approx(expected[2], abs=1e-3)


@each_mode
@pytest.mark.parametrize("style", STYLES[1:], ids=lambda style: style.__name__)
def test_all_styles_train_alike(style, gradients):
    """Also one that was not built before."""
    weights, losses, task_weights = trained(
        style, gradients=gradients, run_eagerly=True
    )
    expected = trained_eagerly(gradients)
    assert_same(weights, expected[0])
    np.testing.assert_allclose(losses, expected[1], rtol=1e-4)
    assert task_weights == pytest.approx(expected[2], abs=1e-3)


def test_styles_live_together_in_one_process():
    """Keras rewrites the bases of a class that is used in both styles."""
    first = compiled(networks.EncoderAndHeads(), run_eagerly=True)
    first.train_on_batch(*batch())
    for style in (*STYLES, *reversed(STYLES)):
        model = compiled(style(), run_eagerly=True)
        model.train_on_batch(*batch())
        assert model.task_names == ["a", "b"]
    first.train_on_batch(*batch())
    assert type(first).__bases__ == (MGDAModel,)


def test_compiled_and_trained_twice():
    model = compiled(functional())
    model.fit(*batch(), verbose=0)
    compiled(model, weighting=[2.0, 3.0], gradients="parameters")
    assert all(math.isnan(w) for w in model.task_weights.values())
    model.fit(*batch(), verbose=0)
    assert model.task_weights == {"a": 2.0, "b": 3.0}


class Counted(layers.Layer):
    """Counts its calls, each of which is a trace in a graph."""

    calls = 0

    def call(self, x):
        if not isinstance(x, keras.KerasTensor):
            type(self).calls += 1
        return x


@each_mode
def test_one_forward_pass_and_one_optimizer_step(gradients):
    applied = []

    class Spy(keras.optimizers.SGD):
        def apply(self, grads, trainable_variables=None):
            applied.append((len(grads), trainable_variables))
            super().apply(grads, trainable_variables)

    x = keras.Input((8,))
    z = SharedRepresentation()(Counted()(networks.dense(4)(x)))
    model = MGDAModel(x, networks.heads(z))
    model.compile(Spy(), loss="mse", gradients=gradients, run_eagerly=True)
    Counted.calls = 0
    model.train_on_batch(*batch())
    assert Counted.calls == 1
    ((num_gradients, variables),) = applied
    assert num_gradients == len(variables)
    assert list(map(id, variables)) == list(map(id, model.trainable_variables))
    assert model.optimizer.iterations.numpy() == 1


@pytest.mark.parametrize(
    "gradients",
    ["representation", pytest.param("parameters", marks=pytest.mark.slow)],
)
def test_nothing_is_traced_again_while_shapes_stay(gradients):
    x = keras.Input((8,))
    z = SharedRepresentation()(Counted()(networks.dense(4)(x)))
    model = MGDAModel(x, networks.heads(z))
    model.compile("adam", loss="mse", gradients=gradients)
    Counted.calls = 0
    # With a last batch that is smaller.
    model.fit(*batch(11), batch_size=4, epochs=1, verbose=0)
    traced = Counted.calls
    assert traced <= 2
    for scale in (1e-3, 1.0, 1e3):
        x, y = batch(11, scale=scale, seed=int(scale))
        model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert Counted.calls == traced


STEPS = f"""
from tests.support import networks
for gradients, jit_compile in zip({MODES}, (False, True)):
    model = networks.mgda_model(
        networks.three_tasks, gradients=gradients, jit_compile=jit_compile
    )
    for step in range(4):
        model.train_on_batch(*networks.data(model, seed=step))
"""


@pytest.mark.slow
def test_nothing_is_compiled_again_while_shapes_stay(count_compilations):
    # The solver for three tasks, and the whole step of the model that asks
    # for it; over four batches that differ.
    assert count_compilations(STEPS) == 2


@each_mode
def test_task_without_gradient_leaves_the_simplex(gradients):
    weights = {}
    for tasks in ("abc", "ac"):
        keras.utils.set_random_seed(0)
        x = keras.Input((8,))
        z = SharedRepresentation()(networks.dense(4)(x))
        h = networks.heads(z, "abc")
        model = MGDAModel(x, h)
        model.compile(
            "sgd",
            loss={t: "mse" if t in tasks else None for t in "abc"},
            gradients=gradients,
            run_eagerly=True,
        )
        rng = np.random.default_rng(0)
        features = rng.normal(size=(9, 8))
        y = {t: rng.normal(size=(9, 1)) for t in "abc"}
        sample_weight = {t: np.full(9, float(t != "b")) for t in "abc"}
        encoder = model.layers[1].kernel
        before = encoder.numpy()
        model.fit(
            features, y, sample_weight=sample_weight, batch_size=9, verbose=0
        )
        assert np.abs(encoder.numpy() - before).max() > 1e-4
        weights[tasks] = model.task_weights
    assert weights["abc"].pop("b") == 0.0
    assert weights["abc"] == pytest.approx(weights["ac"], abs=1e-5)


def test_dead_head_does_not_stop_the_encoder():
    x = keras.Input((8,))
    z = SharedRepresentation()(networks.dense(4)(x))
    never = layers.Dense(
        1,
        activation="relu",
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(-1.0),
    )
    model = MGDAModel(x, {"a": layers.Dense(1)(z), "b": never(z)})
    model.compile("sgd", loss="mse", run_eagerly=True)
    model.train_on_batch(*batch())
    assert model.task_weights == {"a": 1.0, "b": 0.0}


@each_mode
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
def test_task_loss_that_is_not_finite_shows(normalization, bad, gradients):
    model = compiled(
        functional(),
        weighting=MGDA(normalization),
        gradients=gradients,
        run_eagerly=True,
    )
    x, y = batch()
    y["a"][3] = bad
    logs = model.train_on_batch(x, y, return_dict=True)
    assert not math.isfinite(logs["loss"])
    assert all(math.isnan(w) for w in model.task_weights.values())


def test_infinite_loss_with_a_finite_gradient_shows():
    class Infinite(keras.losses.Loss):
        def call(self, y, p):
            return p[:, 0] + math.inf

    for normalization in ("loss", "loss+"):
        x = keras.Input((8,))
        z = SharedRepresentation()(networks.dense(4)(x))
        model = MGDAModel(x, networks.heads(z))
        model.compile(
            "sgd",
            loss={"a": Infinite(), "b": "mse"},
            weighting=MGDA(normalization),
            run_eagerly=True,
        )
        logs = model.train_on_batch(*batch(), return_dict=True)
        assert logs["loss"] == math.inf
        assert all(math.isnan(w) for w in model.task_weights.values())


class Mixup(MGDAModel):
    """Computes its losses twice, with labels of two examples."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        other = {task: labels[::-1] for task, labels in y.items()}
        first, second = (
            super(Mixup, self).compute_loss(
                x, labels, y_pred, sample_weight, training
            )
            for labels in (y, other)
        )
        return 0.3 * first + 0.7 * second


@each_mode
def test_losses_that_are_computed_twice_count_twice(gradients):
    x = keras.Input((8,))
    z = SharedRepresentation()(networks.dense(4)(x))
    model = Mixup(x, networks.heads(z))
    weighting = networks.Constant([1.0, 1.0])
    compiled(
        model,
        keras.optimizers.SGD(1.0),
        weighting=weighting,
        gradients=gradients,
        run_eagerly=True,
    )
    features, y = batch()
    before = [v.numpy() for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(features, y, model(features))
    variables = [v.value for v in model.trainable_variables]
    expected = tape.gradient(loss, variables)
    model.train_on_batch(features, y)
    change = [
        old - v.numpy()
        for old, v in zip(before, model.trainable_variables, strict=True)
    ]
    assert_same(change, expected)
    ((_, task_losses),) = weighting.calls
    assert sum(task_losses.numpy()) == pytest.approx(float(loss), rel=1e-5)
