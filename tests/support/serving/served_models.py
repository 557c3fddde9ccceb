"""Models to publish: each a way in which a served model can go wrong.

`MODELS` maps a name to a function that builds the model and rows for it. The
weights are random, with biases and statistics that are not their defaults.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda.serving import artifact


def randomized(model, seed=0):
    """The model with weights whose loss or exchange would show."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype in ("float32", "float16", "bfloat16"):
            # Positive, since a variance may be among them.
            variable.assign(rng.uniform(0.1, 1.0, variable.shape) * 0.5)
    return model


def mlp():
    features = keras.Input((4,), name="features")
    z = layers.Dense(8, activation="tanh")(features)
    heads = {"left": layers.Dense(3)(z), "right": layers.Dense(1)(z)}
    model = randomized(keras.Model(features, heads))
    return model, {"features": normal(8, 4)}


def convolutional():
    image = keras.Input((12, 12, 3), name="image")
    z = layers.Conv2D(4, 3, padding="same")(image)
    z = layers.BatchNormalization()(z)
    z = layers.Dropout(0.5)(layers.ReLU()(z))
    heads = {
        "pixels": layers.Conv2D(2, 1)(z),
        "label": layers.Dense(5)(layers.GlobalAveragePooling2D()(z)),
    }
    model = randomized(keras.Model(image, heads))
    return model, {"image": normal(8, 12, 12, 3)}


def lookups():
    """Strings and integers in, tables and statistics in the graph."""
    word = keras.Input((), dtype="string", name="word")
    code = keras.Input((1,), dtype="int64", name="code")
    size = keras.Input((2,), name="size")
    normalization = layers.Normalization()
    normalization.adapt(normal(50, 2) * 3 + 1)
    word_id = layers.StringLookup(vocabulary=["cat", "dog", "emu"])(word)
    code_id = layers.IntegerLookup(vocabulary=[7, 11, 13])(code)
    z = layers.Concatenate()(
        [
            layers.Embedding(4, 5)(word_id),
            layers.Flatten()(layers.Embedding(4, 5)(code_id)),
            normalization(size),
        ]
    )
    z = layers.Dense(6, activation="tanh")(z)
    heads = {"a": layers.Dense(2)(z), "b": layers.Dense(1)(z)}
    model = keras.Model([word, code, size], heads)
    rows = {
        "word": np.array([b"dog", b"cat", b"emu", b"eel"] * 2, object),
        "code": np.array([7, 13, 5, 11, 7, 7, 2, 13])[:, None],
        "size": normal(8, 2),
    }
    return model, rows


def mixed_float16():
    policy = keras.mixed_precision.DTypePolicy("mixed_float16")
    features = keras.Input((6,), name="features")
    z = layers.Dense(8, activation="relu", dtype=policy)(features)
    heads = {
        "half": layers.Dense(3, dtype=policy)(z),
        "single": layers.Dense(2, dtype="float32")(z),
    }
    model = randomized(keras.Model(features, heads))
    return model, {"features": normal(8, 6)}


def two_inputs():
    """`bypass` skips the encoder, and only one task reads it."""
    image = keras.Input((4, 4, 1), name="image")
    bypass = keras.Input((2,), name="bypass")
    z = layers.Dense(6, activation="tanh")(layers.Flatten()(image))
    heads = {
        "with_bypass": layers.Dense(2)(layers.Concatenate()([z, bypass])),
        "without": layers.Dense(3)(z),
    }
    model = randomized(keras.Model({"image": image, "bypass": bypass}, heads))
    return model, {"image": normal(8, 4, 4, 1), "bypass": normal(8, 2)}


def subclassed():
    @keras.saving.register_keras_serializable("tests")
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = layers.Dense(8, activation="tanh")
            self.heads = {"a": layers.Dense(2), "b": layers.Dense(1)}

        def call(self, features, training=True):  # Trains unless told not to.
            z = self.encoder(features)
            if training:
                z = z + 100.0
            return {task: head(z) for task, head in self.heads.items()}

    model = Subclassed()
    rows = normal(8, 4)
    model(rows)
    return randomized(model), {"features": rows}


def subclassed_dict():
    """Integers and a mask in a dict: Keras exports them as floats."""

    class Tagger(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed = layers.Embedding(10, 6, mask_zero=True)
            self.encoder = layers.LSTM(5)
            self.heads = {"topic": layers.Dense(3), "mood": layers.Dense(1)}

        def call(self, inputs):
            z = self.encoder(self.embed(inputs["tokens"]))
            z = z * inputs["scale"]
            return {task: head(z) for task, head in self.heads.items()}

    model = Tagger()
    rng = np.random.default_rng(1)
    rows = {
        "tokens": rng.integers(0, 10, (8, 7)).astype("int32"),
        "scale": normal(8, 1),
    }
    model(rows)
    return randomized(model), rows


def masked_sequence():
    """A mask that bypasses the encoder, and heads that are recurrent."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    z = layers.Embedding(9, 4, mask_zero=True)(tokens)
    z = layers.LSTM(5, return_sequences=True)(z)
    heads = {
        "first": layers.LSTM(3)(z),
        "second": layers.Dense(2)(layers.GRU(3)(z)),
    }
    model = randomized(keras.Model(tokens, heads))
    rows = np.random.default_rng(2).integers(0, 9, (8, 6)).astype("int32")
    return model, {"tokens": rows}


def tree():
    """Two of three tasks share more, and all heads share their last layer."""
    features = keras.Input((4,), name="features")
    backbone = keras.Sequential([layers.Dense(6, "tanh"), layers.Dense(6)])
    z = backbone(features)
    near = layers.Dense(5, activation="tanh", name="near")(z)
    far = layers.Dense(5, activation="tanh", name="far")(z)
    last = layers.Dense(2)
    heads = {"near_1": last(near), "near_2": last(near * 2.0), "far": last(far)}
    model = randomized(keras.Model(features, heads))
    return model, {"features": normal(8, 4)}


def one_task():
    features = keras.Input((3,), name="features")
    model = keras.Model(features, {"only": layers.Dense(2)(features)})
    return randomized(model), {"features": normal(8, 3)}


def odd_names():
    """Names that TensorFlow would cut, change, or not take."""
    features = keras.Input((3,), name="Input-Features.1")
    lamda = keras.Input((3,), name="lambda")
    z = layers.Add()([features, lamda])
    heads = {
        "5 o'clock/shadow": layers.Dense(2)(z),
        "Left-Eye": layers.Dense(1)(z),
    }
    model = randomized(keras.Model([features, lamda], heads))
    return model, {"Input-Features.1": normal(8, 3), "lambda": normal(8, 3)}


def normal(*shape):
    rng = np.random.default_rng(np.prod(shape))
    return rng.normal(size=shape).astype("float32")


MODELS = {
    build.__name__: build
    for build in (
        mlp,
        convolutional,
        lookups,
        mixed_float16,
        two_inputs,
        subclassed,
        subclassed_dict,
        masked_sequence,
        tree,
        one_task,
        odd_names,
    )
}


# Recurrent ones take the time of several others to trace.
PARAMETERS = [
    pytest.param(
        name,
        marks=[pytest.mark.slow]
        if name in ("subclassed_dict", "masked_sequence")
        else [],
    )
    for name in MODELS
]


def answers_of(model, rows):
    """What Keras answers, as float32."""
    inputs = rows
    if len(rows) == 1:
        inputs = only(rows)
    elif isinstance(getattr(model, "input", None), list):
        inputs = list(rows.values())
    outputs = model(tf.nest.map_structure(tf.constant, inputs), training=False)
    return {
        task: tf.cast(output, tf.float32).numpy()
        for task, output in outputs.items()
    }


def only(rows):
    """The rows of a single input."""
    (array,) = rows.values()
    return array


class Function(layers.Layer):
    """A function of TensorFlow as a layer that keeps the shape."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def with_layer(function, batch_size=None):
    """A model of two tasks with `function` in its encoder."""
    features = keras.Input((4,), batch_size=batch_size, name="features")
    z = Function(function)(layers.Dense(4)(features))
    heads = {"a": layers.Dense(1)(z), "b": layers.Dense(2)(z)}
    return randomized(keras.Model(features, heads))


def ask(published, signature, inputs):
    """What an artifact answers, in a session of this process."""
    with artifact.loaded(published) as answer:
        return answer(signature, inputs)
