"""Large tables: their task gradients stay the rows that were read."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from keras_mgda.descent import encoder_products, task_gradients
from keras_mgda.descent.task_gradients import TableRows

ROWS = 5000


def build(style):
    keras.utils.set_random_seed(0)
    ids = keras.Input((6,), dtype="int32")
    table = layers.Embedding(ROWS, 3)
    read = layers.GlobalAveragePooling1D()(table(ids))
    if style == "read_twice":
        read = layers.Concatenate()([read, table(ids[:, 1])])
    z = layers.Dense(4, activation="tanh")(read)
    if style != "without_marker":
        z = SharedRepresentation()(z)
    outputs = {t: layers.Dense(1, name=t)(z) for t in "abc"}
    if style == "past_representation":
        around = layers.Flatten()(table(ids))
        outputs["a"] = layers.Dense(1)(layers.Concatenate()([z, around]))
    return MGDAModel(ids, outputs)


def train(style, **options):
    model = build(style)
    model.compile(
        keras.optimizers.SGD(0.1),
        loss=dict.fromkeys("abc", "mse"),
        gradients="parameters",
        **options,
    )
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.integers(0, 9, (7, 6))  # so that rows are read repeatedly
        y = {t: rng.normal(size=(7, 1)) for t in "abc"}
        model.train_on_batch(x, y)
    return model


@pytest.mark.parametrize(
    "jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "style", ["plain", "read_twice", "past_representation", "without_marker"]
)
@pytest.mark.sample(1)
def test_as_dense_gradients(style, jit_compile, monkeypatch):
    ours = train(style, jit_compile=jit_compile)
    monkeypatch.setattr(encoder_products, "_TABLE", 10**9)
    monkeypatch.setattr(
        task_gradients,
        "_rows",
        lambda by_task, variable: tf.stack(
            [
                tf.zeros_like(variable)
                if g is None
                else tf.convert_to_tensor(g)
                for g in by_task
            ]
        ),
    )
    dense = train(style, jit_compile=jit_compile)
    assert ours.task_weights == pytest.approx(dense.task_weights, abs=1e-5)
    for a, b in zip(ours.weights, dense.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)


def test_no_gradient_of_the_step_is_as_large_as_the_table():
    """But for the update itself, which stock Keras has, too."""
    model = build("plain")
    model.compile(
        "sgd", loss=dict.fromkeys("abc", "mse"), gradients="parameters"
    )
    data = tf.ones((7, 6), tf.int32), {t: tf.ones((7, 1)) for t in "abc"}
    step = tf.function(model.train_step, autograph=False)
    graph = step.get_concrete_function(data).graph.as_graph_def()
    nodes = [
        *graph.node,
        *(n for f in graph.library.function for n in f.node_def),
    ]
    zeros = [n for n in nodes if n.op == "UnsortedSegmentSum"]
    assert len(zeros) == 1  # of the Gram matrix, by rows


def test_rows_that_occur_twice_add_up():
    rows = TableRows(
        tf.constant([4, 1, 4, 2], tf.int64),
        tf.reshape(tf.range(16.0), (2, 4, 2)),
        tf.TensorShape([6, 2]),
    )
    dense, summed = rows.dense().numpy(), rows.summed().numpy()
    np.testing.assert_allclose(
        dense[:, 4], rows.values[:, 0] + rows.values[:, 2]
    )
    np.testing.assert_allclose(
        np.einsum("tkd,skd->ts", summed, summed),
        np.einsum("tkd,skd->ts", dense, dense),
    )
