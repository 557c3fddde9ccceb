"""The models that are timed: heads on an encoder, here and in stock Keras."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_mgda
from examples import networks


class Network(NamedTuple):
    """What all tasks of a model that is timed are made of.

    Attributes:
        shape: of the input.
        encoder: a function from the input to `Z`.
        head: a function from what a task reads to its output.
        tower: a function from `Z` to what all tasks but the first read; without
            one all of them read `Z`.
        vocabulary: inputs are whole numbers below this; 0: they are real.
    """

    shape: tuple[int, ...]
    encoder: Callable[[Any], Any]
    head: Callable[[Any], Any]
    tower: Callable[[Any], Any] | None = None
    vocabulary: int = 0


def build(
    network, num_tasks, how, loss=None, momentum=0.9, towers_are_marked=False
):
    """A compiled model. After each call all variables start alike.

    Args:
        network: a `Network`.
        num_tasks: how many heads there are.
        how: the arguments of `MGDAModel.compile`; `None` for stock Keras.
        loss: of every task; by default cross-entropy of logits.
        momentum: of SGD.
        towers_are_marked: what the tower returns is a shared representation,
            too, and not `Z` alone.
    """
    keras.utils.set_random_seed(0)
    dtype = "int32" if network.vocabulary else None
    inputs = keras.Input(network.shape, dtype=dtype)
    z = network.encoder(inputs)
    if how is not None:
        z = keras_mgda.SharedRepresentation()(z)
    reads = [z] * num_tasks
    if network.tower is not None:
        of_tower = network.tower(z)
        if towers_are_marked:
            of_tower = keras_mgda.SharedRepresentation()(of_tower)
        reads[1:] = [of_tower] * (num_tasks - 1)
    outputs = {f"task{t:03}": network.head(x) for t, x in enumerate(reads)}
    model = (keras.Model if how is None else keras_mgda.MGDAModel)(
        inputs, outputs
    )
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(0.01, momentum),
        dict.fromkeys(outputs, loss),
        **(how or {}),
    )
    return model


def batches(model, batch_size, vocabulary=0):
    """The same four batches over and over, already in memory."""
    rng = np.random.default_rng(0)
    shape = (4 * batch_size, *model.input_shape[1:])
    if vocabulary:
        x = rng.integers(0, vocabulary, shape, "int32")
    else:
        x = rng.normal(size=shape).astype("float32")
    y = {
        task: rng.integers(0, out.shape[-1], (len(x), *out.shape[1:-1]))
        for task, out in model.output.items()
    }
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    return data.cache().repeat().prefetch(2)


def mobilenet(x):
    return keras.applications.MobileNetV2(
        input_shape=tuple(x.shape[1:]),
        include_top=False,
        weights=None,
        pooling="avg",
    )(x)


def bert(tokens):
    """Four layers, 256 wide."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=8000,
        num_layers=4,
        num_heads=4,
        hidden_dim=256,
        intermediate_dim=1024,
        max_sequence_length=tokens.shape[1],
    )
    given = {
        "token_ids": tokens,
        "segment_ids": keras.ops.zeros_like(tokens),
        "padding_mask": keras.ops.ones_like(tokens),
    }
    return backbone(given)["sequence_output"]


def two_dense(x):
    for _ in range(2):
        x = layers.Dense(256, activation="relu")(x)
    return x


def embedding(tokens):
    vectors = layers.Embedding(1_000_000, 32)(tokens)
    return layers.Dense(64, "relu")(layers.GlobalAveragePooling1D()(vectors))


def classifier(classes):
    return lambda z: layers.Dense(classes)(z)


# The paper's, but the second one thinner.
LENET = Network((28, 28, 1), networks.lenet, networks.lenet_head)
RESNET = Network(
    (64, 64, 3),
    functools.partial(networks.resnet18, width=16),
    classifier(2),
)


def recurrent(tokens):
    x = layers.Embedding(8000, 64)(tokens)
    return layers.Bidirectional(layers.GRU(64))(x)


# As others write them.
MOBILENET = Network((96, 96, 3), mobilenet, classifier(10))
BERT = Network((64,), bert, classifier(10), vocabulary=8000)
BIGRU = Network((40,), recurrent, classifier(10), vocabulary=8000)
TOWER = Network((64,), two_dense, classifier(10), tower=two_dense)
GRU = Network(
    (20, 16),
    lambda x: layers.GRU(64, return_sequences=True)(x),
    lambda z: layers.Dense(10)(z[:, -1] if len(z.shape) == 3 else z),
    tower=lambda z: layers.GRU(64)(z),
)
TABLE = Network((20,), embedding, classifier(10), vocabulary=1_000_000)
