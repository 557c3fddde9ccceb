"""Which tasks read what, and that a head may begin before `Z`."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation, weightings
from tests.support import networks, oracle
from tests.support.networks import dense, heads


def pyramid(mark):
    """Every level has a layer of its own before the marker, and one task."""
    x = keras.Input((8,))
    h = dense(5)(x)
    u, v = mark()([dense(3)(h), dense(4)(h)])
    return x, heads(u, "a") | heads(v, "b")


def encoder_called_twice(mark):
    x = keras.Input((8,))
    encoder = dense(4)
    return x, heads(mark()(encoder(x)), "a") | heads(mark()(encoder(-x)), "b")


def state_and_sequence(mark):
    """Three outputs of one call, of which one is read by nobody."""
    x = keras.Input((8,))
    sequence, h, c = layers.LSTM(3, return_sequences=True, return_state=True)(
        layers.Reshape((4, 2))(x)
    )
    sequence, h, _ = mark()([sequence, h, c])
    return x, heads(layers.Flatten()(sequence), "a") | heads(h, "b")


STANDARD = {"gradients": "representation"}
STRUCTURES = [
    pyramid,
    encoder_called_twice,
    state_and_sequence,
    networks.partly_shared_branches,
    networks.chained,
    networks.bypass,
    networks.bypass_with_variables,
    networks.layer_in_two_heads,
]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "options",
    [
        STANDARD,
        {"gradients": "parameters"},
        {"weighting": "uniform"},
        {"weighting": {"a": 0.2, "b": 0.7, "c": 3.0}},
        {"weighting": {"a": 0.0, "b": 1e-5, "c": 2.0}},
        {"gradients": "parameters", "update_every": 2},
    ],
)
def test_shared_variables_are_weighted_and_heads_are_not(structure, options):
    options = dict(options)
    x, outputs = structure(SharedRepresentation)
    model = MGDAModel(x, outputs)
    if isinstance(options.get("weighting"), dict):
        options["weighting"] = {t: options["weighting"][t] for t in outputs}
    model.compile(
        keras.optimizers.SGD(1.0),
        loss=dict.fromkeys(outputs, "mse"),
        run_eagerly=True,
        **options,
    )
    x, y = networks.data(model)
    before = [v.numpy() for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        answers = model(x, training=True)
        losses = [tf.reduce_mean((answers[t] - y[t]) ** 2) for t in outputs]
    full = [
        oracle._numpy(tape.gradient(loss, model.trainable_variables))
        for loss in losses
    ]
    apart = structure in STRUCTURES[:3] and options == STANDARD
    with (
        pytest.warns(UserWarning, match="No two tasks read")
        if apart
        else (contextlib.nullcontext())
    ):
        model.train_on_batch(x, y)
    task_weights = [model.task_weights[t] for t in outputs]
    expected = oracle.direction(full, task_weights)
    for old, variable, step in zip(
        before, model.trainable_variables, expected, strict=True
    ):
        np.testing.assert_allclose(
            variable.numpy(), old - step, rtol=2e-4, atol=2e-6
        )


def test_the_plain_sum_is_one_backward_pass_through_a_shared_tower():
    """A tower of three tasks behind the marker, counted by its products."""

    def products(cls, mark, **options):
        x = keras.Input((8,))
        z = mark(dense(4)(x))
        tower = dense(16)(z)
        outputs = {t: layers.Dense(1)(tower) for t in "abc"}
        model = cls(x, outputs | {"d": layers.Dense(1)(z)})
        model.compile("sgd", loss=dict.fromkeys("abcd", "mse"), **options)
        data = tf.ones((5, 8)), {t: tf.ones((5, 1)) for t in "abcd"}
        step = tf.function(model.train_step, autograph=False)
        graph = step.get_concrete_function(data).graph
        return sum(op.type == "MatMul" for op in graph.get_operations())

    stock = products(keras.Model, lambda z: z)
    for weighting in ("uniform", weightings.DWA()):
        ours = products(MGDAModel, SharedRepresentation(), weighting=weighting)
        assert ours == stock
