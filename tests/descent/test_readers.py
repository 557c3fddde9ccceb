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
@pytest.mark.sample(8)
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


def products(cls, mark, mark_tower, num_tasks=4, **options):
    """How many matrix products a step has, of a tower that all but one read."""
    x = keras.Input((8,))
    z = mark(dense(4)(x))
    tower = mark_tower(dense(16)(z))
    outputs = {"first": layers.Dense(1)(z)}
    outputs |= {f"t{k}": layers.Dense(1)(tower) for k in range(1, num_tasks)}
    model = cls(x, outputs)
    model.compile("sgd", loss=dict.fromkeys(outputs, "mse"), **options)
    data = tf.ones((5, 8)), dict.fromkeys(outputs, tf.ones((5, 1)))
    step = tf.function(model.train_step, autograph=False)
    graph = step.get_concrete_function(data).graph
    return sum(op.type == "MatMul" for op in that_run(graph))


def that_run(graph):
    """The operations that a result needs: TensorFlow runs no others."""
    found = set()
    left = [output.op for output in graph.outputs] + graph.control_outputs
    while left:
        op = left.pop()
        if op not in found:
            found.add(op)
            left += [x.op for x in op.inputs] + list(op.control_inputs)
    return found


def nothing(z):
    return z


def test_the_plain_sum_is_one_backward_pass_through_a_shared_tower():
    stock = products(keras.Model, nothing, nothing)
    for weighting in ("uniform", weightings.DWA()):
        ours = products(
            MGDAModel, SharedRepresentation(), nothing, weighting=weighting
        )
        assert ours == stock


@pytest.mark.slow
def test_a_tower_that_is_marked_is_no_part_of_the_heads():
    """One backward pass passes it then, however many tasks read it."""
    stock, between, marked = (
        products(*how, num_tasks=9) - products(*how, num_tasks=4)
        for how in (
            (keras.Model, nothing, nothing),
            (MGDAModel, SharedRepresentation(), nothing),
            (MGDAModel, SharedRepresentation(), SharedRepresentation()),
        )
    )
    assert marked == stock < between
