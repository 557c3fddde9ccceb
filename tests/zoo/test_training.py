"""Every model of the zoo trains, by every kind of task gradients.

Without a look at gradients it makes the steps of stock Keras. With one, each of
its variables moves by the sum of the true task gradients, weighted where two
tasks reach it, whatever chose the weights.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda import MGDAModel, export_saved_model
from tests.support import oracle, zoo

pytestmark = [
    pytest.mark.filterwarnings("ignore:No two tasks read"),
    pytest.mark.filterwarnings("ignore:No tensor of the shared"),
]

# Of which an operation has no second derivative, or none under XLA.
FAST = (
    zoo.shared_bottom,
    zoo.esmm,
    zoo.two_tower,
    zoo.siamese,
    zoo.autoencoder,
)
TEXT_INSIDE = (zoo.text,)

# Whose losses count what is not masked; whose float32 sums through 50 layers,
# at this learning rate, are further apart than the tolerance.
OTHER_LOSSES = (zoo.bigru, zoo.mobilenet, zoo.frozen_mobilenet)
# Stock Keras does not save the states of their random generators.
RANDOM = (zoo.vae, zoo.mobilenet, zoo.frozen_mobilenet)

every_model = pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, marks=[pytest.mark.slow] * (build not in FAST))
        for build in zoo.ZOO
    ],
    ids=lambda build: build.__name__,
)


def marked(plain):
    return MGDAModel.from_model(plain)


def train(model, x, y, steps, **options):
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.SGD(0.05), **options)
    return [model.train_on_batch(x, y) for _ in range(steps)]


def assert_same_weights(a, b, rtol=1e-4, atol=1e-5):
    for one, other in zip(a.weights, b.weights, strict=True):
        np.testing.assert_allclose(
            one.numpy(), other.numpy(), rtol, atol, err_msg=one.path
        )


@every_model
@pytest.mark.sample(2)
def test_the_plain_sum_makes_the_steps_of_stock_keras(build):
    plain, x, y, loss = build()
    # With the states of random generators, which are no weights.
    start = [v.numpy() for v in plain.variables]
    variables = list(plain.variables)
    train(plain, x, y, 10, loss=loss)
    expected = plain.get_weights()
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    ours = marked(plain)
    train(ours, x, y, 10, loss=loss, weighting="uniform")
    for variable, value in zip(ours.weights, expected, strict=True):
        np.testing.assert_allclose(
            variable.numpy(), value, 1e-4, 1e-5, err_msg=variable.path
        )


@every_model
@pytest.mark.parametrize("gradients", ["representation", "parameters"])
def test_shared_variables_are_weighted_and_heads_are_not(build, gradients):
    if build in OTHER_LOSSES:
        pytest.skip("a tape of its own would have to know masks")
    plain, x, y, loss = build()
    model = marked(plain)
    model.compile(
        keras.optimizers.SGD(1.0),
        loss=loss,
        gradients=gradients,
        run_eagerly=True,
    )
    variables = model.trainable_variables
    before = [v.numpy() for v in variables]
    functions = {t: keras.losses.get(loss[t]) for t in loss}
    state = [v.numpy() for v in model.non_trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        answers = model(x, training=True)
        losses = [tf.reduce_mean(functions[t](y[t], answers[t])) for t in loss]
    full = [oracle._numpy(tape.gradient(one, variables)) for one in losses]
    for variable, value in zip(
        model.non_trainable_variables, state, strict=True
    ):
        variable.assign(value)  # the same random masks
    rest = [0.0] * len(variables)
    if model.losses:  # what belongs to no task
        with tf.GradientTape() as tape:
            model(x, training=True)
            extra = tf.add_n(model.losses)
        rest = [
            0.0 if g is None else tf.convert_to_tensor(g).numpy()
            for g in tape.gradient(extra, variables)
        ]
        for variable, value in zip(
            model.non_trainable_variables, state, strict=True
        ):
            variable.assign(value)
    model.train_on_batch(x, y)
    task_weights = [model.task_weights[t] for t in loss]
    assert sum(task_weights) == pytest.approx(1, abs=1e-5)
    expected = oracle.direction(full, task_weights)
    for old, variable, step, of_rest in zip(
        before, variables, expected, rest, strict=True
    ):
        np.testing.assert_allclose(
            variable.numpy(),
            old - step - of_rest,
            rtol=1e-3,
            atol=1e-5,
            err_msg=variable.path,
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gradients", "jit_compile"),
    [("representation", False), ("parameters", True), ("verified", True)],
)
@pytest.mark.parametrize("build", zoo.ZOO, ids=lambda build: build.__name__)
def test_trains_in_a_graph(build, gradients, jit_compile):
    if jit_compile and build is zoo.text:
        pytest.skip("stock Keras cannot compile lookups either")
    plain, x, y, loss = build()
    model = marked(plain)
    before = [v.numpy() for v in model.trainable_variables]
    logs = train(
        model, x, y, 2, loss=loss, gradients=gradients, jit_compile=jit_compile
    )
    assert np.isfinite(logs).all()
    assert any(
        np.abs(old - variable.numpy()).max() > 0
        for old, variable in zip(before, model.trainable_variables, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("build", zoo.ZOO, ids=lambda build: build.__name__)
def test_saves_loads_goes_on_and_serves(build, tmp_path):
    plain, x, y, loss = build()
    model = marked(plain)
    train(model, x, y, 1, loss=loss)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded) if build not in RANDOM else ():
        keras.utils.set_random_seed(1)
        one.train_on_batch(x, y)
    assert_same_weights(model, loaded)
    plain.save_weights(tmp_path / "plain.weights.h5")
    loaded.load_weights(tmp_path / "plain.weights.h5")
    assert_same_weights(loaded, plain, 0, 0)
    if not any(isinstance(t, tf.RaggedTensor) for t in keras.tree.flatten(x)):
        warmup = x
        if not isinstance(x, dict):
            leaves = keras.tree.flatten(x)
            names = [symbol.name for symbol in model.inputs]
            warmup = dict(zip(names, leaves, strict=True))
        export_saved_model(model, tmp_path / "served", warmup=warmup)
