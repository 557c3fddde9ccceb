"""Small networks, each with a structure that a training step can get wrong.

A structure is a function of `mark`, which makes the layer that marks the
shared representation, and returns `(inputs, outputs)`. All losses are mean
squared errors; the output `"aside"` is no task.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation, weightings


def dense(units=1, **kwargs):
    return layers.Dense(units, activation="tanh", **kwargs)


def heads(z, tasks="ab"):
    return {task: layers.Dense(1)(z) for task in tasks}


def plain(mark):
    x = keras.Input((8,))
    return x, heads(mark()(dense(4)(x)))


def three_tasks(mark):
    x = keras.Input((8,))
    return x, heads(mark()(dense(4)(dense(5)(x))), "abc")


def one_task(mark):
    x = keras.Input((8,))
    return x, heads(mark()(dense(4)(x)), "a")


def bypass(mark):
    """A task reaches the encoder's first layer around the marker, too."""
    x = keras.Input((8,))
    h = dense(5)(x)
    z = mark()(dense(4)(h))
    around = layers.Concatenate()([z, h])
    return x, {"a": layers.Dense(1)(around), "b": layers.Dense(1)(z)}


def bypass_with_variables(mark):
    """The bypass has a layer of its own, which is that task's head."""
    x = keras.Input((8,))
    h = dense(5)(x)
    z = mark()(dense(4)(h))
    around = layers.Concatenate()([z, dense(3)(h)])
    return x, {"a": layers.Dense(1)(around), "b": layers.Dense(1)(z)}


def bypass_of_all(mark):
    """A layer that all tasks read, but none through the marker."""
    x = keras.Input((8,))
    z, h = mark()(dense(4)(x)), dense(3)(x)
    return x, heads(layers.Concatenate()([z, h]))


def layer_in_two_heads(mark):
    x = keras.Input((8,))
    z, common = mark()(dense(4)(x)), dense(3)
    outputs = {task: layers.Dense(1)(common(z)) for task in "ab"}
    return x, outputs | heads(z, "c")


def partly_shared_branches(mark):
    x = keras.Input((8,))
    h = dense(5)(x)
    u, v = mark()(dense(3)(h)), mark()(dense(4)(h))
    both = layers.Concatenate()([u, v])
    return x, heads(u, "a") | heads(both, "b") | heads(v, "c")


def chained(mark):
    """A task reads the first representation, two read one made from it."""
    x = keras.Input((8,))
    u = mark()(dense(5)(x))
    v = mark()(dense(4)(u))
    return x, heads(u, "a") | heads(v, "bc")


def chained_unread(mark):
    """The first representation feeds the second, and no head."""
    x = keras.Input((8,))
    return x, heads(mark()(dense(4)(mark()(dense(5)(x)))))


def several(mark):
    x = keras.Input((8,))
    h = dense(5)(x)
    u, v = mark()(h), mark()(dense(4)(h))
    return x, heads(layers.Concatenate()([u, v]))


def named(mark):
    """The representation is a dict, marked as one."""
    x = keras.Input((8,))
    z = mark()({"u": dense(3)(x), "v": dense(2)(x)})
    return x, heads(layers.Concatenate()([z["u"], z["v"]]))


def tied(mark):
    """One layer, twice in the encoder and once in a head."""
    x, layer = keras.Input((8,)), dense(8)
    z = mark()(layer(layer(x)))
    return x, heads(layer(z), "a") | heads(z, "b")


def nested(mark):
    """The marker is inside of a submodel."""
    x, h = keras.Input((8,)), keras.Input((5,))
    encoder = keras.Model(h, mark()(dense(4)(h)))
    return x, heads(encoder(dense(5)(x)))


def masked(mark):
    x = keras.Input((7,), dtype="int32")
    h = layers.Embedding(10, 6, mask_zero=True)(x)
    z = mark()(layers.LSTM(5, return_sequences=True)(h))
    return x, heads(layers.LSTM(3)(z), "a") | heads(layers.GRU(2)(z), "b")


def embedded(mark):
    """The encoder's gradient is a `tf.IndexedSlices`."""
    x = keras.Input((7,), dtype="int32")
    h = layers.Embedding(10, 6)(x)
    return x, heads(mark()(layers.GlobalAveragePooling1D()(h)))


def tied_embedding(mark):
    """A `tf.IndexedSlices` in encoder and head, which come to one gradient."""
    x, embedding = keras.Input((7,), dtype="int32"), layers.Embedding(10, 6)
    z = mark()(layers.GlobalAveragePooling1D()(embedding(x)))
    around = layers.GlobalMaxPooling1D()(embedding(x))
    return x, {"a": layers.Dense(1)(z + around), "b": layers.Dense(1)(z)}


class FirstRows(layers.Layer):
    """Rows 0, 0, 0, ... of a batch: its gradient is a `tf.IndexedSlices`."""

    def call(self, z):
        return tf.gather(z, tf.zeros(tf.shape(z)[0], tf.int32))


def gathered(mark):
    x = keras.Input((8,))
    z = mark()(dense(4)(x))
    return x, heads(FirstRows()(z), "a") | heads(z, "b")


def frozen_encoder(mark):
    x = keras.Input((8,))
    return x, heads(mark()(dense(4, trainable=False)(x)))


def frozen_head(mark):
    x = keras.Input((8,))
    z = mark()(dense(4)(x))
    frozen = layers.Dense(1, trainable=False)
    return x, {"a": frozen(z)} | heads(z, "b")


def frozen_first_layer(mark):
    x = keras.Input((8,))
    return x, heads(mark()(dense(4)(dense(5, trainable=False)(x))))


def no_encoder(mark):
    x = keras.Input((8,))
    z = mark()(x)
    common = dense(3)(z)
    return x, heads(common) | heads(z, "c")


def nested_outputs(mark):
    x = keras.Input((8,))
    z = mark()(dense(4)(x))
    return x, {"g": heads(z, "ba"), "c": layers.Dense(1)(z)}


def with_output_that_is_no_task(mark):
    x = keras.Input((8,))
    z = mark()(dense(4)(x))
    return x, heads(z, "b") | heads(z, ["aside"]) | heads(z, "a")


def deep_heads(mark):
    x = keras.Input((8,))
    z = mark()(dense(4)(x))
    return x, {t: layers.Dense(2)(dense(3)(z)) for t in "ab"}


STRUCTURES = (
    plain,
    three_tasks,
    bypass,
    bypass_with_variables,
    bypass_of_all,
    layer_in_two_heads,
    partly_shared_branches,
    chained,
    chained_unread,
    several,
    named,
    tied,
    nested,
    masked,
    embedded,
    tied_embedding,
    gathered,
    frozen_encoder,
    frozen_head,
    frozen_first_layer,
    no_encoder,
    nested_outputs,
    with_output_that_is_no_task,
    deep_heads,
)


def each_structure(always, structures=STRUCTURES):
    """All structures; the tests of those that are not named are slow."""
    return pytest.mark.parametrize(
        "structure",
        [
            pytest.param(s, marks=() if s in always else pytest.mark.slow)
            for s in structures
        ],
    )


def losses(outputs):
    """Mean squared errors, in the structure of the outputs."""
    return {
        name: losses(value)
        if isinstance(value, dict)
        else (None if name == "aside" else "mse")
        for name, value in outputs.items()
    }


def task_losses(structure):
    return leaves(losses(structure(unmarked)[1]))


def leaves(structure):
    """Of nested dicts, as they were written: Keras sorts by key."""
    if not isinstance(structure, dict):
        return [structure]
    return [leaf for value in structure.values() for leaf in leaves(value)]


def unmarked():
    return layers.Identity()


def stock_model(structure):
    return keras.Model(*structure(unmarked))


def mgda_model(structure, optimizer="sgd", **compile_args):
    model = MGDAModel(*structure(SharedRepresentation))
    model.compile(optimizer, loss=losses(model.output), **compile_args)
    return model


def data(model, b=6, seed=0):
    """A batch `(x, y)` for a functional model."""
    rng = np.random.default_rng(seed)
    (x,) = model.inputs
    if x.dtype == "int32":
        features = rng.integers(1, 10, size=(b, *x.shape[1:]))
        features[:, 4:] = 0  # what an `Embedding` masks
    else:
        features = rng.normal(size=(b, *x.shape[1:])).astype("float32")
    labels = keras.tree.map_structure(
        lambda z: rng.normal(size=(b, *z.shape[1:])).astype("float32"),
        model.output,
    )
    return features, labels


@keras.saving.register_keras_serializable("keras_mgda_tests")
class Constant(weightings.Fixed):
    """Given task weights that nevertheless ask for the Gram matrix.

    Keeps what it was called with, for tests that run eagerly.
    """

    uses_gram = True
    uses_losses = True

    def __init__(self, task_weights):
        super().__init__(task_weights)
        self.calls = []

    def __call__(self, gram, task_losses=None):
        self.calls.append((gram, task_losses))
        return super().__call__(gram, task_losses)


class EncoderAndHeads(MGDAModel):
    """Subclassed, with layers that no one built."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = dense(4)
        self.normalization = layers.BatchNormalization()
        self.shared = SharedRepresentation()
        self.a, self.b = layers.Dense(1), layers.Dense(1)

    def call(self, x, training=False):
        z = self.normalization(self.encoder(x), training=training)
        z = self.shared(z)
        return {"a": self.a(z), "b": self.b(z)}


class Functional(MGDAModel):
    """A subclass that builds a functional model in its constructor."""

    def __init__(self, **kwargs):
        x = keras.Input((8,))
        z = layers.BatchNormalization()(dense(4)(x))
        super().__init__(x, heads(SharedRepresentation()(z)), **kwargs)
