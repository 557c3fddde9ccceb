"""Models as Keras users write them, at small size.

A builder makes a plain functional `keras.Model` with its outputs in a dict, a
batch of data, and the losses. It knows nothing of MGDA.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

BATCH = 4


class Specimen(NamedTuple):
    """A model, and what it trains on.

    Attributes:
        model: functional, not compiled, its outputs a dict.
        x: a batch, as the model takes it.
        y: a label for each output.
        loss: a loss for each output.
    """

    model: keras.Model
    x: Any
    y: dict[str, np.ndarray]
    loss: dict[str, Any]


def dense(units, name=None, activation="tanh"):
    return layers.Dense(units, activation=activation, name=name)


def head(name, units=1, activation=None):
    return layers.Dense(units, activation=activation, name=f"{name}_head")


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def integers(high, *shape):
    return np.random.default_rng(0).integers(high, size=shape)


def specimen(inputs, outputs, x, loss="mse"):
    """With a loss for each output, and labels of its shape."""
    model = keras.Model(inputs, outputs)
    losses = loss if isinstance(loss, dict) else dict.fromkeys(outputs, loss)
    y = {}
    produced = model(x)
    for task, output in produced.items():
        if losses[task] == "binary_crossentropy":
            y[task] = integers(2, *output.shape).astype("float32")
        elif losses[task] == "sparse_categorical_crossentropy":
            y[task] = integers(output.shape[-1], *output.shape[:-1])
        else:
            y[task] = normal(*output.shape)
    return Specimen(model, x, y, losses)


CLASSES = "sparse_categorical_crossentropy"
BINARY = "binary_crossentropy"


def shared_bottom():
    x = keras.Input((8,), name="features")
    z = dense(6, "bottom_2")(dense(6, "bottom_1")(x))
    outputs = {t: head(t)(dense(4, f"{t}_tower")(z)) for t in ("ctr", "cvr")}
    return specimen(x, outputs, normal(BATCH, 8))


def mmoe():
    x = keras.Input((8,), name="features")
    experts = [dense(4, f"expert_{k}")(x) for k in range(3)]
    stacked = keras.ops.stack(experts, axis=1)
    outputs = {}
    for t in ("ctr", "cvr", "dwell"):
        gate = layers.Dense(3, activation="softmax", name=f"{t}_gate")(x)
        mixed = keras.ops.einsum("be,bed->bd", gate, stacked)
        outputs[t] = head(t)(mixed)
    return specimen(x, outputs, normal(BATCH, 8))


@keras.saving.register_keras_serializable("keras_mgda_tests")
class MixtureOfExperts(layers.Layer):
    """All of it in one layer, which returns one tensor for each task."""

    def __init__(self, units, num_experts, num_tasks, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.num_experts = num_experts
        self.num_tasks = num_tasks
        self.experts = layers.Dense(units * num_experts, activation="tanh")
        self.gates = [
            layers.Dense(num_experts, activation="softmax")
            for _ in range(num_tasks)
        ]

    def build(self, shape):
        for layer in (self.experts, *self.gates):
            layer.build(shape)

    def call(self, x):
        shape = (-1, self.num_experts, self.units)
        experts = keras.ops.reshape(self.experts(x), shape)
        return [
            keras.ops.einsum("be,bed->bd", gate(x), experts)
            for gate in self.gates
        ]

    def get_config(self):
        return super().get_config() | {
            "units": self.units,
            "num_experts": self.num_experts,
            "num_tasks": self.num_tasks,
        }


def mmoe_in_one_layer():
    x = keras.Input((8,), name="features")
    stem = dense(6, "stem")(x)
    a, b = MixtureOfExperts(4, 3, 2, name="experts")(stem)
    outputs = {"ctr": head("ctr")(a), "cvr": head("cvr")(b)}
    return specimen(x, outputs, normal(BATCH, 8))


@keras.saving.register_keras_serializable("keras_mgda_tests")
class CrossStitch(layers.Layer):
    """Mixes the activations of as many networks (Misra et al., 2016)."""

    def build(self, shapes):
        m = len(shapes)
        self.mixture = self.add_weight(shape=(m, m), initializer="identity")

    def call(self, activations):
        stacked = keras.ops.stack(activations)
        mixed = keras.ops.tensordot(self.mixture, stacked, 1)
        return [mixed[k] for k in range(len(activations))]


def cross_stitch():
    x = keras.Input((8,), name="features")
    stem = dense(6, "stem")(x)
    columns = [dense(4, f"{t}_1")(stem) for t in "ab"]
    columns = CrossStitch(name="stitch")(columns)
    outputs = {
        t: head(t)(dense(4, f"{t}_2")(column))
        for t, column in zip("ab", columns, strict=True)
    }
    return specimen(x, outputs, normal(BATCH, 8))


def esmm():
    """Conversions are seen after clicks only (Ma et al., 2018)."""
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    z = layers.Concatenate(name="features")(
        [
            layers.Embedding(10, 3, name="users")(user),
            layers.Embedding(12, 3, name="items")(item),
        ]
    )
    click = head("click", activation="sigmoid")(dense(4, "click_tower")(z))
    rate = head("rate", activation="sigmoid")(dense(4, "rate_tower")(z))
    outputs = {
        "click": click,
        "conversion": layers.Multiply(name="both")([click, rate]),
    }
    x = {"user": integers(10, BATCH), "item": integers(12, BATCH)}
    inputs = {"user": user, "item": item}
    return specimen(inputs, outputs, x, BINARY)


def bigru():
    x = keras.Input((None,), dtype="int32", name="tokens")
    h = layers.Embedding(12, 4, mask_zero=True, name="embedding")(x)
    z = layers.Bidirectional(
        layers.GRU(3, return_sequences=True), name="encoder"
    )(h)
    outputs = {
        "tags": head("tags", 5, "softmax")(z),
        "label": head("label", 3, "softmax")(layers.GRU(3, name="last")(z)),
    }
    return specimen(x, outputs, tokens(), CLASSES)


def tokens(length=6):
    found = 1 + integers(11, BATCH, length)
    found[1, 3:] = 0
    found[2, 5:] = 0
    return found


def lstm_with_states():
    """Tags of the sequence, a label of the state; each of one output."""
    x = keras.Input((6, 4), name="sequence")
    sequence, state, _ = layers.LSTM(
        3, return_sequences=True, return_state=True, name="encoder"
    )(x)
    outputs = {
        "tags": head("tags", 5, "softmax")(sequence),
        "label": head("label", 3, "softmax")(state),
    }
    return specimen(x, outputs, normal(BATCH, 6, 4), CLASSES)


def lstm_of_tokens():
    """The same, of tokens: an embedding leads to both tasks."""
    x = keras.Input((6,), dtype="int32", name="tokens")
    h = layers.Embedding(12, 4, name="embedding")(x)
    sequence, state, _ = layers.LSTM(
        3, return_sequences=True, return_state=True, name="encoder"
    )(h)
    outputs = {
        "tags": head("tags", 5, "softmax")(sequence),
        "label": head("label", 3, "softmax")(state),
    }
    return specimen(x, outputs, tokens(), CLASSES)


def two_tower():
    """Both towers tell the click, each one something of its own."""
    user, item = keras.Input((5,), name="user"), keras.Input((4,), name="item")
    u = dense(3, "user_2")(dense(4, "user_1")(user))
    v = dense(3, "item_1")(item)
    outputs = {
        "click": head("click", activation="sigmoid")(
            layers.Multiply(name="match")([u, v])
        ),
        "age": head("age")(u),
        "price": head("price")(v),
    }
    x = {"user": normal(BATCH, 5), "item": normal(BATCH, 4)}
    loss = {"click": BINARY, "age": "mse", "price": "mse"}
    return specimen({"user": user, "item": item}, outputs, x, loss)


def pair():
    inputs = [keras.Input((8,), name=name) for name in ("left", "right")]
    layer_1, layer_2 = dense(6, "encoder_1"), dense(4, "encoder_2")
    return inputs, [layer_2(layer_1(x)) for x in inputs]


def siamese():
    """Each task reads both calls of the encoder."""
    inputs, (za, zb) = pair()
    outputs = {
        "same": head("same")(layers.Subtract(name="difference")([za, zb])),
        "either": head("either")(layers.Add(name="sum")([za, zb])),
    }
    return specimen(inputs, outputs, [normal(BATCH, 8), -normal(BATCH, 8)])


def siamese_and_one():
    """A second task reads one call only."""
    inputs, (za, zb) = pair()
    outputs = {
        "same": head("same")(layers.Subtract(name="difference")([za, zb])),
        "left": head("of_left")(za),
    }
    return specimen(inputs, outputs, [normal(BATCH, 8), -normal(BATCH, 8)])


def one_task_for_each_domain():
    inputs, (za, zb) = pair()
    outputs = {"left": head("of_left")(za), "right": head("of_right")(zb)}
    return specimen(inputs, outputs, [normal(BATCH, 8), -normal(BATCH, 8)])


def siamese_model():
    """The encoder is a nested model."""
    h = keras.Input((8,), name="one")
    encoder = keras.Model(h, dense(4, "z")(dense(6, "h")(h)), name="encoder")
    inputs = [keras.Input((8,), name=name) for name in ("left", "right")]
    za, zb = map(encoder, inputs)
    outputs = {"left": head("of_left")(za), "right": head("of_right")(zb)}
    return specimen(inputs, outputs, [normal(BATCH, 8), -normal(BATCH, 8)])


def autoencoder():
    x = keras.Input((8,), name="features")
    code = dense(3, "code")(dense(6, "encoder_1")(x))
    outputs = {
        "reconstruction": head("reconstruction", 8)(
            dense(6, "decoder_1")(code)
        ),
        "label": head("label", 3, "softmax")(code),
    }
    loss = {"reconstruction": "mse", "label": CLASSES}
    return specimen(x, outputs, normal(BATCH, 8), loss)


@keras.saving.register_keras_serializable("keras_mgda_tests")
class Sampling(layers.Layer):
    """Draws a code, and adds its divergence from the prior to the loss."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs, training=False):
        mean, log_var = inputs
        divergence = keras.ops.square(mean) + keras.ops.exp(log_var) - log_var
        self.add_loss(0.5 * keras.ops.mean(divergence - 1))
        if not training:
            return mean
        noise = keras.random.normal(
            keras.ops.shape(mean), seed=self.seed_generator
        )
        return mean + keras.ops.exp(log_var / 2) * noise

    def compute_output_shape(self, shapes):
        return shapes[0]


def vae():
    x = keras.Input((8,), name="features")
    h = dense(6, "encoder_1")(x)
    mean, log_var = layers.Dense(3, name="mean")(h), layers.Dense(3)(h)
    code = Sampling(name="code")([mean, log_var])
    outputs = {
        "reconstruction": head("reconstruction", 8)(
            dense(6, "decoder_1")(code)
        ),
        "label": head("label", 3, "softmax")(code),
    }
    loss = {"reconstruction": "mse", "label": CLASSES}
    return specimen(x, outputs, normal(BATCH, 8), loss)


def convolution(filters, name=None, **kwargs):
    return layers.Conv2D(
        filters, 3, padding="same", activation="relu", name=name, **kwargs
    )


def unet():
    x = keras.Input((8, 8, 3), name="image")
    above = convolution(3, "down_1")(x)
    below = convolution(4, "down_2", strides=2)(above)
    up = layers.UpSampling2D(name="up")(convolution(4, "bottom")(below))
    z = convolution(4, "joined")(layers.Concatenate()([up, above]))
    outputs = {
        "segmentation": layers.Conv2D(3, 1, activation="softmax")(z),
        "depth": layers.Conv2D(1, 1)(z),
    }
    loss = {"segmentation": CLASSES, "depth": "mse"}
    return specimen(x, outputs, normal(BATCH, 8, 8, 3), loss)


def detection():
    """A pyramid of features, and at each level two heads of its own."""
    x = keras.Input((16, 16, 3), name="image")
    c3 = convolution(4, "c3", strides=2)(x)
    c4 = convolution(4, "c4", strides=2)(c3)
    c5 = convolution(4, "c5", strides=2)(c4)
    p5 = layers.Conv2D(4, 1, name="p5")(c5)
    p4 = layers.Conv2D(4, 1, name="p4")(c4) + layers.UpSampling2D()(p5)
    outputs = {}
    for level, features in (("p4", p4), ("p5", p5)):
        outputs[f"{level}_class"] = layers.Conv2D(3, 1, activation="softmax")(
            convolution(4, f"{level}_classes")(features)
        )
        outputs[f"{level}_box"] = layers.Conv2D(4, 1)(
            convolution(4, f"{level}_boxes")(features)
        )
    loss = {t: CLASSES if "class" in t else "mse" for t in outputs}
    return specimen(x, outputs, normal(BATCH, 16, 16, 3), loss)


def pyramid_model():
    """A nested backbone that returns its levels, with a task for each."""
    h = keras.Input((16, 16, 3), name="pixels")
    c3 = convolution(4, "c3", strides=2)(h)
    c4 = convolution(4, "c4", strides=2)(c3)
    c5 = convolution(4, "c5", strides=2)(c4)
    backbone = keras.Model(h, {"c4": c4, "c5": c5}, name="backbone")
    x = keras.Input((16, 16, 3), name="image")
    levels = backbone(x)
    outputs = {
        level: head(level)(layers.GlobalAveragePooling2D()(features))
        for level, features in levels.items()
    }
    return specimen(x, outputs, normal(BATCH, 16, 16, 3))


def mobilenet():
    backbone = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    x = keras.Input((32, 32, 3), name="image")
    z = backbone(layers.Rescaling(1 / 127.5, -1)(x))
    outputs = {
        "breed": head("breed", 3, "softmax")(z),
        "age": head("age")(layers.Dropout(0.2)(z)),
    }
    loss = {"breed": CLASSES, "age": "mse"}
    return specimen(x, outputs, normal(BATCH, 32, 32, 3), loss)


def frozen_mobilenet():
    """The first phase of transfer learning."""
    found = mobilenet()
    backbone = next(
        layer for layer in found.model.layers if isinstance(layer, keras.Model)
    )
    backbone.trainable = False
    return found


def point_set():
    """A set of points with a mask: what is not there counts for nothing."""
    x = keras.Input((5, 3), name="points")
    h = dense(4, "of_each")(layers.Masking(name="mask")(x))
    z = layers.GlobalAveragePooling1D(name="pooled")(h)
    outputs = {"size": head("size")(z), "kind": head("kind", 3, "softmax")(z)}
    points = normal(BATCH, 5, 3)
    points[1, 2:] = 0.0
    loss = {"size": "mse", "kind": CLASSES}
    return specimen(x, outputs, points, loss)


def text():
    """From strings, with the vocabularies inside."""
    words = keras.Input((), dtype="string", name="words")
    shop = keras.Input((), dtype="string", name="shop")
    ids = layers.TextVectorization(
        vocabulary=["good", "bad", "fish"], output_sequence_length=4
    )(words)
    h = layers.Embedding(6, 4, mask_zero=True, name="embedding")(ids)
    h = layers.GlobalAveragePooling1D()(h)
    of_shop = layers.StringLookup(vocabulary=["a", "b"])(shop)
    of_shop = layers.Embedding(3, 2, name="shops")(of_shop)
    z = dense(4, "z")(layers.Concatenate()([h, of_shop]))
    outputs = {
        "stars": head("stars")(z),
        "fake": head("fake", activation="sigmoid")(z),
    }
    x = {
        "words": tf.constant(["good fish", "bad", "fish fish bad", "good"]),
        "shop": tf.constant(["a", "b", "c", "a"]),
    }
    loss = {"stars": "mse", "fake": BINARY}
    return specimen({"words": words, "shop": shop}, outputs, x, loss)


@keras.saving.register_keras_serializable("keras_mgda_tests")
class MeanOfRows(layers.Layer):
    """The mean over as many elements as there are."""

    def call(self, x):
        return tf.reduce_mean(x, axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], *shape[2:])


def ragged():
    x = keras.Input((None, 3), ragged=True, name="points")
    z = dense(4, "z")(MeanOfRows(name="mean")(x))
    outputs = {"size": head("size")(z), "kind": head("kind", 3, "softmax")(z)}
    points = tf.RaggedTensor.from_row_lengths(
        normal(9, 3), row_lengths=[2, 3, 1, 3]
    )
    loss = {"size": "mse", "kind": CLASSES}
    return specimen(x, outputs, points, loss)


def variable_length():
    x = keras.Input((None, 3), name="signal")
    h = layers.Conv1D(4, 3, padding="causal", name="filter")(x)
    outputs = {
        "next": head("next", 3)(h),
        "kind": head("kind", 3, "softmax")(layers.GlobalMaxPooling1D()(h)),
    }
    loss = {"next": "mse", "kind": CLASSES}
    return specimen(x, outputs, normal(BATCH, 7, 3), loss)


def bert():
    """A class of the pooled output, tags of the sequence."""
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        dropout=0.0,
        max_sequence_length=6,
        name="backbone",
    )
    x = {
        "token_ids": tokens(),
        "segment_ids": np.zeros((BATCH, 6), "int32"),
        "padding_mask": (tokens() != 0).astype("int32"),
    }
    inputs = {name: keras.Input((6,), dtype="int32", name=name) for name in x}
    found = backbone(inputs)
    outputs = {
        "label": head("label", 3, "softmax")(found["pooled_output"]),
        "tags": head("tags", 5, "softmax")(found["sequence_output"]),
    }
    return specimen(inputs, outputs, x, CLASSES)


def vit():
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=8,
        name="backbone",
    )
    x = keras.Input((16, 16, 3), name="image")
    z = backbone(x)
    outputs = {
        "label": head("label", 3, "softmax")(z[:, 0]),
        "patches": head("patches")(z[:, 1:]),
    }
    loss = {"label": CLASSES, "patches": "mse"}
    return specimen(x, outputs, normal(BATCH, 16, 16, 3), loss)


def resnet_pyramid():
    keras_hub = pytest.importorskip("keras_hub")
    resnet = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    backbone = keras.Model(
        resnet.inputs, resnet.pyramid_outputs, name="backbone"
    )
    x = keras.Input((16, 16, 3), name="image")
    outputs = {
        level: head(level)(layers.GlobalAveragePooling2D()(features))
        for level, features in backbone(x).items()
    }
    return specimen(x, outputs, normal(BATCH, 16, 16, 3))


ZOO: tuple[Callable[[], Specimen], ...] = (
    shared_bottom,
    mmoe,
    mmoe_in_one_layer,
    cross_stitch,
    esmm,
    bigru,
    lstm_with_states,
    lstm_of_tokens,
    two_tower,
    siamese,
    siamese_and_one,
    one_task_for_each_domain,
    siamese_model,
    autoencoder,
    vae,
    unet,
    detection,
    pyramid_model,
    mobilenet,
    frozen_mobilenet,
    point_set,
    text,
    ragged,
    variable_length,
    bert,
    vit,
    resnet_pyramid,
)
