import functools
import itertools

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from keras import layers

from benchmarks.gram_matrices import weights_by_nnls
from keras_mgda import MGDAModel, SharedRepresentation
from tests.support import networks, oracle

MODES = ["representation", "parameters"]
GIVEN = [0.3, 1.1, 0.6]

each_mode = pytest.mark.parametrize("gradients", MODES)
each_structure = pytest.mark.parametrize("structure", networks.STRUCTURES)


def step(structure, **compile_args):
    """One step of gradient descent: gradients of the oracle, and the change."""
    keras.utils.set_random_seed(1)
    model = networks.mgda_model(
        structure, keras.optimizers.SGD(1.0), **compile_args
    )
    x, y = networks.data(model)
    of_tasks = oracle.task_gradients(model, structure, x, y)
    before = [v.numpy() for v in model.trainable_variables]
    model.train_on_batch(x, y)
    change = [
        old - v.numpy()
        for old, v in zip(before, model.trainable_variables, strict=True)
    ]
    return model, of_tasks, change


@functools.cache
def step_with_given_weights(structure, gradients):
    m = len([loss for loss in networks.task_losses(structure) if loss])
    weighting = networks.Constant(GIVEN[:m])
    model, of_tasks, change = step(
        structure, weighting=weighting, gradients=gradients, run_eagerly=True
    )
    ((gram, _),) = weighting.calls
    return model, of_tasks, change, gram


def assert_same(change, expected):
    for got, want in zip(change, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6)


@each_mode
@each_structure
@pytest.mark.sample(5)
def test_heads_move_plainly_and_shared_variables_by_the_weighted_sum(
    structure, gradients
):
    model, of_tasks, change, _ = step_with_given_weights(structure, gradients)
    given = GIVEN[: len(of_tasks.full)]
    expected = oracle.direction(of_tasks.full, given)
    assert_same(change, expected)
    assert list(model.task_weights.values()) == pytest.approx(given)


@pytest.mark.parametrize("given", [GIVEN, [0.0, 1.1, 1e-6]], ids=str)
@networks.each_structure(
    always=(
        networks.three_tasks,
        networks.layer_in_two_heads,
        networks.tied_embedding,
    )
)
def test_so_they_do_by_weights_that_no_gradient_chose(structure, given):
    """A head learns its task whatever the weight of that, zero included."""
    m = len([loss for loss in networks.task_losses(structure) if loss])
    _, of_tasks, change = step(structure, weighting=given[:m], run_eagerly=True)
    assert_same(change, oracle.direction(of_tasks.full, given))


@each_structure
@pytest.mark.sample(8)
def test_gram_matrix_of_the_representation_keeps_the_batch_axis(structure):
    _, of_tasks, _, gram = step_with_given_weights(structure, "representation")
    expected = oracle.gram_of_representation(of_tasks)
    np.testing.assert_allclose(gram, expected, rtol=1e-4, atol=1e-6)


@each_structure
@pytest.mark.sample(14)
def test_gram_matrix_of_the_parameters_is_of_all_that_is_shared(structure):
    _, of_tasks, _, gram = step_with_given_weights(structure, "parameters")
    expected = oracle.gram_of_parameters(of_tasks)
    np.testing.assert_allclose(gram, expected, rtol=1e-4, atol=1e-6)


@each_mode
# Elsewhere it is enough that the Gram matrix is right, and what follows it.
@networks.each_structure(
    always=(
        networks.three_tasks,
        networks.bypass_with_variables,
        networks.layer_in_two_heads,
        networks.chained,
        networks.frozen_encoder,
        networks.nested_outputs,
    )
)
def test_mgda_takes_the_min_norm_point_of_its_gram_matrix(structure, gradients):
    model, of_tasks, change = step(
        structure, gradients=gradients, run_eagerly=True
    )
    task_weights = np.array(list(model.task_weights.values()))
    assert task_weights.min() >= 0
    assert task_weights.sum() == pytest.approx(1, abs=1e-6)
    assert_same(change, oracle.direction(of_tasks.full, task_weights))

    gram = oracle.GRAM[gradients](of_tasks)
    moving = np.diag(gram) > 0
    if moving.any():
        gram, task_weights = gram[moving][:, moving], task_weights[moving]
        best = weights_by_nnls(gram)
        np.testing.assert_allclose(task_weights, best, atol=1e-4)


GRAPHS = {"graph": {"jit_compile": False}, "xla": {"jit_compile": True}}
# A loop over tasks around the backward pass of a loop over time is the hardest
# to trace; the bypass has every kind of gradient.
ALWAYS = {
    (networks.bypass, "graph", "parameters"),
    (networks.masked, "xla", "parameters"),
}


@pytest.mark.parametrize(
    ("structure", "graph", "gradients"),
    [
        pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.slow)
        for case in itertools.product(networks.STRUCTURES, GRAPHS, MODES)
    ],
)
@pytest.mark.sample(1)
def test_graphs_compute_what_eager_code_does(structure, graph, gradients):
    eager, _, expected = step(structure, gradients=gradients, run_eagerly=True)
    model, _, change = step(structure, gradients=gradients, **GRAPHS[graph])
    assert_same(change, expected)
    assert model.task_weights == pytest.approx(eager.task_weights, abs=1e-4)


def test_step_worked_out_by_hand():
    """Linear encoder `E`, linear heads `h`, mean squared errors."""
    rng = np.random.default_rng(4)
    X, E = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    h, y = rng.normal(size=(2, 3, 1)), rng.normal(size=(2, 5, 1))
    Z = X @ E
    residuals = [2 * (Z @ h[t] - y[t]) / 5 for t in range(2)]
    at_z = [residuals[t] @ h[t].T for t in range(2)]
    of_parameters = [X.T @ g for g in at_z]

    for mode, (g1, g2) in zip(MODES, (at_z, of_parameters), strict=True):
        # Equation 4 of the paper.
        w = np.vdot(g2 - g1, g2) / np.vdot(g1 - g2, g1 - g2)
        assert 0.05 < w < 0.95
        expected = [
            E - 0.1 * X.T @ (w * at_z[0] + (1 - w) * at_z[1]),
            h[0] - 0.1 * Z.T @ residuals[0],
            h[1] - 0.1 * Z.T @ residuals[1],
        ]

        x = keras.Input((4,))
        encoder = layers.Dense(3, use_bias=False)
        one, two = (layers.Dense(1, use_bias=False) for _ in range(2))
        z = SharedRepresentation()(encoder(x))
        model = MGDAModel(x, {"one": one(z), "two": two(z)})
        for layer, value in zip((encoder, one, two), (E, *h), strict=True):
            layer.set_weights([value])
        model.compile(
            keras.optimizers.SGD(0.1),
            loss="mse",
            gradients=mode,
            run_eagerly=True,
        )
        model.train_on_batch(X, {"one": y[0], "two": y[1]})

        assert model.task_weights == pytest.approx(
            {"one": w, "two": 1 - w}, abs=1e-5
        )
        got = [layer.kernel.numpy() for layer in (encoder, one, two)]
        assert_same(got, expected)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
    m=st.integers(2, 5),
    widths=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    scale=st.integers(-3, 3),
    seed=st.integers(0, 10**6),
)
def test_exact_mgda_conflicts_with_no_task(m, widths, scale, seed):
    """`<d, g_t> >= ||d||^2`, whatever the scale of the tasks."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)

    def structure(mark):
        z = x = keras.Input((4,))
        for width in widths:
            z = networks.dense(width)(z)
        z = mark()(z)
        return x, {str(t): layers.Dense(1)(z) for t in range(m)}

    model = networks.mgda_model(
        structure,
        keras.optimizers.SGD(1.0),
        gradients="parameters",
        run_eagerly=True,
    )
    x = rng.normal(size=(7, 4)).astype("float32")
    scales = 10.0 ** (scale * rng.uniform(size=m))
    y = {
        str(t): (scales[t] * rng.normal(size=(7, 1))).astype("float32")
        for t in range(m)
    }
    full = oracle.task_gradients(model, structure, x, y).full
    shared = range(2 * len(widths))
    before = [model.trainable_variables[i].numpy() for i in shared]
    model.train_on_batch(x, y)
    d = [
        before[i].astype("float64") - model.trainable_variables[i].numpy()
        for i in shared
    ]
    for of_task in full:
        inner = sum(np.vdot(d[i], of_task[i]) for i in shared)
        norm = np.sqrt(sum(np.vdot(of_task[i], of_task[i]) for i in shared))
        length = np.sqrt(sum(np.vdot(a, a) for a in d))
        assert inner >= length**2 - 1e-5 * norm * max(length, 1.0)


def traced_ops(model, structure, op):
    """How many ops of this kind a training step has, and how many in loops."""
    x, y = networks.data(model)
    x, y = keras.tree.map_structure(tf.constant, (x, y))
    graph = (
        tf.function(model.train_step, autograph=False)
        .get_concrete_function((x, y))
        .graph.as_graph_def()
    )
    in_loops = [
        node
        for function in graph.library.function
        for node in function.node_def
        if node.op == op
    ]
    return sum(node.op == op for node in graph.node), len(in_loops)


def convolutional(m):
    def structure(mark):
        x = keras.Input((6, 6, 2))
        z = layers.Conv2D(3, 3)(layers.Conv2D(3, 3, padding="same")(x))
        z = mark()(layers.Flatten()(z))
        return x, {str(t): layers.Dense(1)(z) for t in range(m)}

    return structure


@each_mode
@pytest.mark.parametrize("m", [1, 2, 7])
@pytest.mark.sample(2)
def test_backward_pass_of_the_encoder_is_there_once(m, gradients):
    structure = convolutional(m)
    model = networks.mgda_model(structure, gradients=gradients)
    outside, in_loops = traced_ops(model, structure, "Conv2DBackpropFilter")
    # A loop over the tasks traces its body once, whatever their number.
    expected = (2, 0) if gradients == "representation" else (0, 2)
    assert (outside, in_loops) == expected
    assert traced_ops(model, structure, "Conv2D") == (2, 0)


def test_task_weights_that_ignore_the_gradients_cost_no_loop():
    model = networks.mgda_model(
        convolutional(2), gradients="parameters", weighting=[0.5, 0.5]
    )
    ops = traced_ops(model, convolutional(2), "Conv2DBackpropFilter")
    assert ops == (2, 0)
