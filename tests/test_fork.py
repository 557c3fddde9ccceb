"""The fork in stock Keras makes the steps of `MGDAModel`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda import GradientFork, weightings

TASKS = ("a", "b", "c")
LOSS = {"a": "mse", "b": "mae", "c": "huber"}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 6)).astype("float32")
    return x, {t: rng.normal(size=(48, 2)).astype("float32") for t in TASKS}


def heads(copies):
    return {
        task: layers.Dense(2)(layers.Dense(4, activation="tanh")(z))
        for task, z in zip(TASKS, copies, strict=True)
    }


def encoder():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh")(inputs)
    return inputs, layers.Dense(5, activation="tanh")(x)


def forked(weighting="mgda"):
    keras.utils.set_random_seed(0)
    inputs, z = encoder()
    fork = keras_mgda.GradientFork(len(TASKS), weighting)
    return keras.Model(inputs, heads(fork(z)))


def marked():
    keras.utils.set_random_seed(0)
    inputs, z = encoder()
    z = keras_mgda.SharedRepresentation()(z)
    return keras_mgda.MGDAModel(inputs, heads([z] * len(TASKS)))


def fitted(model, data, **compile_options):
    # Graphs take longer to trace than these steps take.
    how = {"optimizer": "sgd", "loss": LOSS, "run_eagerly": True}
    model.compile(**how | compile_options)
    model.fit(*data, batch_size=16, epochs=3, shuffle=False, verbose=0)
    return model


def assert_same_variables(model, other, rtol=1e-5):
    for one, two in zip(
        model.trainable_variables, other.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    "weighting",
    [
        "mgda",
        "uniform",
        weightings.MGDA("l2", total="tasks"),
        weightings.Fixed([0.2, 0.5, 0.3]),
    ],
    ids=["mgda", "uniform", "l2", "fixed"],
)
@pytest.mark.sample(1)
def test_stock_fit_makes_the_steps_of_mgda_model(weighting, data):
    assert_same_variables(
        fitted(forked(weighting), data),
        fitted(marked(), data, weighting=weighting),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"jit_compile": True, "run_eagerly": False},
        pytest.param(
            {"steps_per_execution": 3, "run_eagerly": False},
            marks=pytest.mark.slow,
        ),
        {"loss_weights": {"a": 2.0, "b": 0.5, "c": 1.0}},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.sample(1)
def test_in_every_mode_of_fit(options, data):
    assert_same_variables(
        fitted(forked(), data, **options), fitted(marked(), data, **options)
    )


def test_with_gradient_accumulation(data):
    def sgd():
        return keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)

    assert_same_variables(
        fitted(forked(), data, optimizer=sgd()),
        fitted(marked(), data, optimizer=sgd()),
    )


@pytest.mark.slow
def test_under_a_loss_scale(data):
    def adam():
        inner = keras.optimizers.Adam(1e-2)
        return keras.optimizers.LossScaleOptimizer(inner)

    assert_same_variables(
        fitted(forked(), data, optimizer=adam()),
        fitted(marked(), data, optimizer=adam()),
        rtol=1e-4,
    )


@pytest.mark.parametrize("how", [{}, {"training": True}, {"training": False}])
def test_in_a_hand_written_loop(data, how):
    """One step by a tape, against one by `MGDAModel`."""
    x, y = data
    model, other = forked(), marked()
    other.compile(keras.optimizers.SGD(0.1), LOSS, run_eagerly=True)
    other.train_on_batch(x, y)

    with tf.GradientTape() as tape:
        y_pred = model(x, **how)
        loss = tf.add_n(
            [
                tf.reduce_mean(keras.losses.get(LOSS[t])(y[t], y_pred[t]))
                for t in TASKS
            ]
        )
    optimizer = keras.optimizers.SGD(0.1)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply(gradients, model.trainable_variables)
    assert_same_variables(model, other)


def test_save_and_load_keep_the_weighting(data, tmp_path):
    model = fitted(forked(weightings.Fixed([0.2, 0.5, 0.3])), data)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    loaded.fit(*data, batch_size=16, shuffle=False, verbose=0)
    model.fit(*data, batch_size=16, shuffle=False, verbose=0)
    assert_same_variables(model, loaded, rtol=0)


def test_masks_pass_through():
    tokens = keras.Input((5,), dtype="int32")
    z = layers.Embedding(7, 3, mask_zero=True)(tokens)
    copies = keras_mgda.GradientFork(2)(z)
    sums = [layers.GlobalAveragePooling1D()(copy) for copy in copies]
    model = keras.Model(tokens, sums)
    padded = np.array([[3, 4, 0, 0, 0]])
    short = np.array([[3, 4, 0, 0, 0]])[:, :2]
    embedding = model.layers[1].embeddings.numpy()
    expected = embedding[short[0]].mean(axis=0)
    for found in model(padded):
        np.testing.assert_allclose(found[0], expected, rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [0, -1, 2.0, None])
def test_refuses_a_wrong_number_of_tasks(num_tasks):
    with pytest.raises(ValueError, match="must be a positive integer"):
        keras_mgda.GradientFork(num_tasks)


def test_refuses_a_weighting_that_needs_the_losses():
    with pytest.raises(ValueError, match="must choose by the Gram matrix"):
        keras_mgda.GradientFork(2, weightings.MGDA("loss"))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_copy_that_no_head_reads_is_noticed(jit_compile):
    """Both heads on one copy would train the plain sum."""
    inputs = keras.Input((4,))
    z = layers.Dense(3)(inputs)
    first, _ = GradientFork(2)(z)
    model = keras.Model(inputs, {t: layers.Dense(1)(first) for t in "ab"})
    model.compile(
        "sgd", loss=dict.fromkeys("ab", "mse"), jit_compile=jit_compile
    )
    x, y = np.ones((2, 4)), {t: np.ones((2, 1)) for t in "ab"}
    with pytest.raises(ValueError, match=r"copies \[1\] of 2 that no loss"):
        model.train_on_batch(x, y)


def test_float16_needs_a_weighting_that_knows_no_scale():
    z = tf.ones((2, 3), tf.float16)
    for weighting in (weightings.NashMTL(), weightings.FairGrad()):
        with pytest.raises(ValueError, match="Use 'mixed_bfloat16'"):
            GradientFork(2, weighting)(z)
        GradientFork(2, weighting)(tf.cast(z, tf.bfloat16))
    for weighting in ("mgda", "upgrad", "uniform"):
        GradientFork(2, weighting)(z)
