import contextlib

import keras
import numpy as np
import pytest
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from keras_mgda.weightings import MGDA
from tests.support import networks
from tests.support.dtype_policy import dtype_policy
from tests.support.twins import assert_same, normalized, train

SGD = keras.optimizers.SGD


@contextlib.contextmanager
def floats(dtype):
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


@pytest.fixture
def policy(request):
    with dtype_policy(request.param):
        yield


def momentum():
    return SGD(0.05, momentum=0.9)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16"], indirect=True
)
@pytest.mark.sample(1)
def test_mixed_precision_trains_as_stock_keras(policy):
    ours = train(MGDAModel, momentum, structure=normalized, weighting="uniform")
    plain = train(keras.Model, momentum, structure=normalized)
    assert_same(ours, plain, rtol=1e-3, atol=1e-3)


def overflowing():
    return keras.optimizers.LossScaleOptimizer(SGD(0.01), initial_scale=2.0**20)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
@pytest.mark.slow
def test_step_that_overflows_is_skipped_and_the_scale_recovers(policy):
    def train_from(cls, **kwargs):
        return train(cls, overflowing, structure=normalized, **kwargs)

    with pytest.warns(UserWarning, match="steps were skipped.*task 'two'"):
        uniform = train_from(MGDAModel, weighting="uniform")
    assert_same(uniform, train_from(keras.Model), rtol=1e-3, atol=1e-3)
    for gradients in ("representation", "parameters"):
        with pytest.warns(UserWarning, match="steps were skipped.*task 'two'"):
            model, history = train_from(MGDAModel, gradients=gradients)
        scale = model.optimizer.dynamic_scale.numpy()
        assert 1.0 < scale < 2.0**20
        assert np.isfinite(history["loss"]).all()
        assert all(np.isfinite(v.numpy()).all() for v in model.weights)
        assert sum(model.task_weights.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
@pytest.mark.slow
def test_task_weights_do_not_depend_on_the_loss_scale(policy):
    found = []
    for scale in (1.0, 2.0**10):
        model, _ = train(
            MGDAModel,
            lambda scale=scale: keras.optimizers.LossScaleOptimizer(
                SGD(1e-6), initial_scale=scale
            ),
            structure=normalized,
            weighting=MGDA("loss+"),
        )
        found.append(model.task_weights)
    assert found[0] == pytest.approx(found[1], rel=0.02, abs=0.01)


def three_heads(mark):
    x = keras.Input((8,))
    h = layers.Dense(64, activation="relu")(x)
    z = mark()(layers.Dense(32, activation="relu")(h))
    return x, {
        task: layers.Dense(1, dtype="float32")(
            layers.Dense(16, activation="relu")(z)
        )
        for task in "abc"
    }


def run(policy, seed, **how):
    """The task weights and variables after each of 10 steps."""
    with dtype_policy(policy):
        keras.utils.set_random_seed(seed)
        model = MGDAModel(*three_heads(SharedRepresentation))
        optimizer = SGD(0.05, momentum=0.9)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=2.0**8
            )
        model.compile(optimizer, dict.fromkeys("abc", "mse"), **how)
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(8, 3))
    task_weights = []
    for _ in range(10):
        x = rng.normal(size=(32, 8))
        y = np.tanh(x @ directions)
        y = {task: y[:, [t]] for t, task in enumerate("abc")}
        model.train_on_batch(x, y)
        task_weights.append(list(model.task_weights.values()))
    flat = np.concatenate([v.numpy().ravel() for v in model.weights])
    return np.array(task_weights), flat


MIXED = ("mixed_bfloat16", "mixed_float16")


@pytest.mark.parametrize("policy", MIXED)
@pytest.mark.parametrize(
    ("gradients", "seed"),
    [("representation", 0)]
    + [
        pytest.param(gradients, seed, marks=pytest.mark.slow)
        # Not "verified", which is no continuous function of the gradients.
        for gradients in ("representation", "parameters", "last")
        for seed in range(1, 3)
    ],
)
def test_trains_within_2_percent_of_float32(policy, gradients, seed):
    how = {"gradients": gradients, "run_eagerly": True}
    expected_weights, expected = run("float32", seed, **how)
    task_weights, found = run(policy, seed, **how)
    # The min-norm point of a single step can be more sensitive than that.
    assert np.abs(task_weights - expected_weights).mean() <= 0.02
    distance = np.linalg.norm(found - expected)
    assert distance <= 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("policy", MIXED)
@pytest.mark.parametrize("gradients", ["representation", "parameters", "last"])
def test_the_gram_matrix_is_summed_in_float32(policy, gradients):
    """Of 4096 products of 1 / 64 each, a sum in 16 bit would stop growing; the
    square of 2^-14 would be zero."""
    with dtype_policy(policy):
        z = keras.Input((4096,))
        weighting = networks.Constant([1.0, 1.0])
        model = MGDAModel(
            z,
            {
                task: layers.Dense(
                    1,
                    dtype="float32",
                    use_bias=False,
                    kernel_initializer=keras.initializers.Constant(size),
                )(marked)
                for marked in [SharedRepresentation()(Scaled()(z))]
                for task, size in (("a", 1 / 8), ("b", 2.0**-14))
            },
        )
        model.compile(
            SGD(1e-3),
            {task: lambda y, p: p for task in "ab"},
            weighting=weighting,
            gradients=gradients,
            run_eagerly=True,
        )
    weighting.calls.clear()
    y = {task: np.zeros((1, 1)) for task in "ab"}
    model.train_on_batch(np.ones((1, 4096)), y)
    ((gram, _),) = weighting.calls
    assert gram.dtype == "float32"
    size = np.array([1 / 8, 2.0**-14])
    np.testing.assert_allclose(gram, 4096 * np.outer(size, size), rtol=1e-3)


class Scaled(layers.Layer):
    """As many variables as the representation has numbers, all 1."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[1:], initializer="ones")

    def call(self, x):
        return x * self.scale


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_float_types(dtype):
    """Of variables and losses alike."""
    with floats(dtype):
        model = networks.mgda_model(networks.bypass, run_eagerly=True)
        model.train_on_batch(*networks.data(model))
    assert sum(model.task_weights.values()) == pytest.approx(1, abs=1e-6)
    assert model.weights[0].dtype == dtype


def test_gradients_in_float64_stay_so():
    with floats("float64"):
        model = networks.mgda_model(
            networks.plain, weighting="uniform", run_eagerly=True
        )
        stock = networks.stock_model(networks.plain)
        stock.compile("sgd", loss=networks.losses(stock.output))
        stock.set_weights(model.get_weights())
        x, y = networks.data(model)
        x, y = keras.tree.map_structure(lambda a: a.astype("float64"), (x, y))
        for each in (model, stock):
            each.train_on_batch(x, y)
    for a, b in zip(model.weights, stock.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-14)
