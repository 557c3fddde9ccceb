"""An `MGDAModel` and a stock `keras.Model`, trained on the same data."""

import keras
import numpy as np
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from tests.support import networks


class AddsLoss(layers.Layer):
    def call(self, z):
        self.add_loss(0.1 * keras.ops.mean(z**2))
        return z


def regularized(mark):
    """All that may add to the loss, or keep a state, in encoder and heads."""
    x = keras.Input((8,))
    h = networks.dense(6, kernel_regularizer="l2")(x)
    h = layers.BatchNormalization()(h)
    h = AddsLoss()(layers.Dropout(0.3)(h))
    z = mark()(networks.dense(4, activity_regularizer="l1")(h))
    one = networks.dense(3, activity_regularizer="l2")(z)
    two = layers.BatchNormalization()(layers.Dropout(0.2)(AddsLoss()(z)))
    return x, {
        "two": layers.Dense(1, bias_regularizer="l1", bias_initializer="ones")(
            two
        ),
        "one": layers.Dense(3)(layers.Dropout(0.2)(one)),
    }


def normalized(mark):
    """In 16 bit, Keras cannot add activity regularizers to the loss."""
    x = keras.Input((8,))
    h = layers.BatchNormalization()(networks.dense(6)(x))
    z = mark()(networks.dense(4)(layers.Dropout(0.3)(h)))
    return x, {
        "two": layers.Dense(1, dtype="float32")(z),
        "one": layers.Dense(3, dtype="float32")(networks.dense(3)(z)),
    }


LOSSES = {
    "one": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "two": "mse",
}


def examples(b=30, tasks=("one", "two"), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(b, 8)).astype("float32")
    y = {"one": rng.integers(0, 3, b), "two": rng.normal(size=(b, 1))}
    weights = {t: rng.uniform(size=b) for t in tasks}
    return x, {t: y[t] for t in tasks}, weights


def train(
    cls,
    optimizer,
    tasks=("one", "two"),
    structure=regularized,
    b=30,
    fit=(),
    **compile_args,
):
    """20 steps, the last of each epoch smaller."""
    keras.utils.set_random_seed(0)
    marker = SharedRepresentation if cls is MGDAModel else networks.unmarked
    x, outputs = structure(marker)
    model = cls(x, {task: outputs[task] for task in outputs if task in tasks})
    # Graphs take longer to trace than 20 steps take, and are tested below.
    how = {"run_eagerly": True} if "jit_compile" not in compile_args else {}
    model.compile(
        optimizer() if callable(optimizer) else optimizer,
        loss={task: LOSSES[task] for task in tasks},
        **(how | compile_args),
    )
    x, y, sample_weight = examples(b, tasks)
    history = model.fit(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=8,
        epochs=5,
        verbose=0,
        validation_data=examples(b, tasks, seed=1),
        validation_freq=[1, 5],
        **dict(fit),
    )
    return model, history.history


def assert_same(ours, stock, rtol=1e-4, atol=1e-5):
    (model, history), (stock_model, expected) = ours, stock
    assert list(history) == list(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(
            history[key], values, rtol=rtol, atol=atol, err_msg=key
        )
    got = model.weights + model.optimizer.variables
    want = stock_model.weights + stock_model.optimizer.variables
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(
            a.numpy(), b.numpy(), rtol=rtol, atol=atol, err_msg=b.path
        )
