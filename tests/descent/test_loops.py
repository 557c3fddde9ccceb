"""Recurrent layers before, behind and around `Z`: right, at stock's price."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation, weightings

TASKS = ("tags", "tone", "topic")


class Around(layers.Layer):
    """Something that another layer is called in."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def build(self, input_shape):
        self.layer.build(input_shape)


class Recomputed(Around):
    """Makes the values of its layer again in the backward pass."""

    def call(self, x):
        return tf.recompute_grad(lambda x: self.layer(x))(x)


class InFunction(Around):
    """Calls its layer in a function, which the step calls."""

    def __init__(self, layer):
        super().__init__(layer)
        self.function = tf.function(lambda x: self.layer(x), autograph=False)

    def call(self, x):
        return self.function(x)


class Mapped(Around):
    """Calls its layer for each example, in a loop."""

    def call(self, x):
        return tf.map_fn(lambda row: self.layer(row[None])[0], x)


ENCODERS = {
    "gru": lambda: layers.GRU(6, return_sequences=True),
    "lstm, both ways": lambda: layers.Bidirectional(
        layers.LSTM(3, return_sequences=True)
    ),
    "cell by cell": lambda: layers.RNN(
        [layers.GRUCell(4), layers.SimpleRNNCell(6)], return_sequences=True
    ),
    "recomputed": lambda: Recomputed(layers.Dense(6, activation="tanh")),
    "a function": lambda: InFunction(layers.GRU(6, return_sequences=True)),
    "mapped": lambda: Mapped(layers.Dense(6, activation="tanh")),
}


def build(encoder, tower_marked=True, make=MGDAModel, **options):
    """A head that reads `Z`, and two behind a recurrent tower."""
    keras.utils.set_random_seed(0)
    marks = make is MGDAModel
    x = keras.Input((5, 3))
    masked = layers.Masking()(x)
    z = encoder()(masked)
    z = SharedRepresentation()(z) if marks else z
    tower = layers.GRU(4)(z)
    tower = SharedRepresentation()(tower) if tower_marked and marks else tower
    outputs = {
        "tags": layers.Dense(2, name="tags")(layers.GRU(3)(z)),
        "tone": layers.Dense(1, name="tone")(tower),
        "topic": layers.Dense(2, name="topic")(tower),
    }
    model = make(x, outputs)
    model.compile(
        keras.optimizers.SGD(0.1), dict.fromkeys(TASKS, "mse"), **options
    )
    return model


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5, 3)).astype("float32")
    x[1, 3:] = 0.0  # masked
    sizes = {"tags": 2, "tone": 1, "topic": 2}
    return x, {
        t: rng.normal(size=(4, size)).astype("float32")
        for t, size in sizes.items()
    }


WEIGHTINGS = {
    "mgda": lambda: "mgda",
    "imtl_g": lambda: "imtl_g",
    # The heads of these tasks need a second pass, in a branch of the graph.
    "zero at times": lambda: weightings.Fixed(
        {"tags": keras.Variable(0.0), "tone": 2.0, "topic": 1e-30}
    ),
    "famo": lambda: "famo",
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_graphs_compute_what_eager_code_does(encoder, weighting):
    """Which asks a tape where a graph is asked itself."""
    x, y = data()
    found = {}
    for eagerly in (False, True):
        model = build(
            ENCODERS[encoder],
            weighting=WEIGHTINGS[weighting](),
            run_eagerly=eagerly,
        )
        before = model.get_weights()
        for _ in range(3):
            model.train_on_batch(x, y)
        found[eagerly] = model.get_weights()
    for start, graph, eager in zip(before, *found.values(), strict=True):
        np.testing.assert_allclose(graph, eager, rtol=1e-4, atol=1e-6)
        assert (start != graph).any()


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", [{}, {"weighting": "famo"}])
def test_loops_run_as_often_as_in_stock_keras(options):
    """A tape that tells several gradients would wrap each, to keep more."""

    def loops(make, **how):
        model = build(ENCODERS["gru"], make=make, **how)
        step = tf.function(model.train_step, autograph=False)
        graph = step.get_concrete_function(data()).graph
        kinds = [op.type for op in graph.get_operations()]
        return kinds.count("While"), kinds.count("StatelessWhile")

    forward, backward = loops(keras.Model)
    assert forward == backward == 3
    assert loops(MGDAModel, **options) == (forward, backward)
    assert loops(MGDAModel, verify=True, **options) == (0, 0)


@pytest.mark.parametrize(("number", "asks"), [(16, "often"), (17, "nested")])
def test_many_outputs_ask_a_tape(number, asks):
    """To ask the graph takes time that grows with their square."""
    z = SharedRepresentation()(layers.Dense(2)(x := keras.Input((3,))))
    outputs = {f"t{k}": layers.Dense(1)(z) for k in range(number)}
    model = MGDAModel(x, outputs)
    model.compile("sgd", dict.fromkeys(outputs, "mse"))
    assert model._asks == asks
