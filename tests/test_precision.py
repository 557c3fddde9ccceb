import contextlib

import keras
import networks
import numpy as np
import pytest
from twins import assert_same, normalized, train

from keras_mgda import MGDAModel
from keras_mgda.weightings import MGDA

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
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield
    keras.config.set_dtype_policy(before)


def momentum():
    return SGD(0.05, momentum=0.9)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16"], indirect=True
)
def test_mixed_precision_trains_as_stock_keras(policy):
    ours = train(MGDAModel, momentum, structure=normalized, weighting="uniform")
    plain = train(keras.Model, momentum, structure=normalized)
    assert_same(ours, plain, rtol=1e-3, atol=1e-3)


def overflowing():
    return keras.optimizers.LossScaleOptimizer(SGD(0.01), initial_scale=2.0**20)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_step_that_overflows_is_skipped_and_the_scale_recovers(policy):
    def train_from(cls, **kwargs):
        return train(cls, overflowing, structure=normalized, **kwargs)

    uniform = train_from(MGDAModel, weighting="uniform")
    assert_same(uniform, train_from(keras.Model), rtol=1e-3, atol=1e-3)
    for gradients in ("representation", "parameters"):
        model, history = train_from(MGDAModel, gradients=gradients)
        scale = model.optimizer.dynamic_scale.numpy()
        assert 1.0 < scale < 2.0**20
        assert np.isfinite(history["loss"]).all()
        assert all(np.isfinite(v.numpy()).all() for v in model.weights)
        assert sum(model.task_weights.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
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
