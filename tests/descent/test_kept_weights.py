"""Task weights that are used for several steps: `update_every`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda.descent.kept_weights import check_update_every
from keras_mgda.weightings import FAMO, GradVac
from tests.support import networks
from tests.support.refusal import refused


def model(update_every, optimizer="adam", **options):
    keras.utils.set_random_seed(0)
    return networks.mgda_model(
        networks.bypass,
        optimizer,
        update_every=update_every,
        **options,
    )


def train(model, steps=range(7)):
    """The task weights of each step, on batches that differ."""
    found = []
    for seed in steps:
        model.train_on_batch(*networks.data(model, seed=seed))
        found.append(list(model.task_weights.values()))
    return np.array(found)


def assert_same(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_one_is_every_step():
    every, always = model(1, run_eagerly=True), model(1)
    losses = networks.losses(always.output)
    always.compile("adam", losses, run_eagerly=True)
    np.testing.assert_array_equal(train(every), train(always))
    assert_same(every, always)


@pytest.mark.parametrize(
    ("gradients", "options"),
    [
        ("representation", {"run_eagerly": True}),
        ("parameters", {"jit_compile": False}),
        ("last", {"run_eagerly": True}),
    ]
    + [
        pytest.param(mode, {"jit_compile": jit}, marks=pytest.mark.slow)
        for mode in ("representation", "parameters", "last")
        for jit in (False, True)
        if (mode, jit) != ("parameters", False)
    ],
)
@pytest.mark.sample(1)
def test_weights_of_a_step_serve_for_three(gradients, options):
    kept = model(3, gradients=gradients, **options)
    task_weights = train(kept)
    for first in (0, 3):
        for later in (1, 2):
            np.testing.assert_array_equal(
                task_weights[first], task_weights[first + later]
            )
    assert np.abs(np.diff(task_weights[::3], axis=0)).min() > 1e-3

    # Each step is that with fixed weights, and the first that without keeping.
    fixed = model(1, run_eagerly=True)
    optimizer = fixed.optimizer
    for seed, of_step in enumerate(task_weights):
        fixed.compile(
            optimizer,
            networks.losses(fixed.output),
            weighting=of_step.tolist(),
            run_eagerly=True,
        )
        fixed.train_on_batch(*networks.data(fixed, seed=seed))
    assert_same(kept, fixed)
    once = train(model(1, gradients=gradients, run_eagerly=True), range(1))
    np.testing.assert_allclose(once[0], task_weights[0], rtol=1e-4)


@pytest.mark.parametrize("make", [FAMO, lambda: GradVac(seed=1)])
def test_a_weighting_that_remembers_sees_the_steps_that_choose(make):
    kept = model(2, weighting=make(), run_eagerly=True)
    task_weights = train(kept, range(6))
    np.testing.assert_array_equal(task_weights[::2], task_weights[1::2])
    state = kept._descent.weighting.state
    count = [v for v in state.variables if v.name == "num_steps"]
    # FAMO knows of a change from its second step on.
    assert count[0].numpy() == (2 if make is FAMO else 3)


def has_loop(nodes, functions):
    """Whether there is one in these operations, or in what they call."""
    for node in nodes:
        called = [value.func.name for value in node.attr.values()]
        if "While" in node.op or any(
            has_loop(functions[name].node_def, functions)
            for name in called
            if name in functions
        ):
            return True
    return False


@pytest.mark.slow
def test_steps_between_have_no_loop_over_the_tasks():
    kept = model(3, gradients="parameters", run_eagerly=True)
    x, y = networks.data(kept)
    kept.train_on_batch(x, y)  # makes all variables
    kept.run_eagerly = False
    step = tf.function(lambda x, y: kept.train_step((x, y)))
    graph = step.get_concrete_function(
        tf.constant(x), keras.tree.map_structure(tf.constant, y)
    ).graph.as_graph_def()
    functions = {f.signature.name: f for f in graph.library.function}
    (cond,) = (node for node in graph.node if node.op.endswith("If"))
    chooses, keeps = (
        functions[cond.attr[branch].func.name].node_def
        for branch in ("then_branch", "else_branch")
    )
    assert has_loop(chooses, functions)
    assert not has_loop(keeps, functions)
    around = [node for node in graph.node if node is not cond]
    assert not has_loop(around, functions)


def test_weights_that_are_not_finite_are_not_kept():
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01), initial_scale=2.0**10
    )
    kept = model(3, optimizer, run_eagerly=True)
    x, y = networks.data(kept)
    kept.train_on_batch(x, {**y, "b": np.full_like(y["b"], np.nan)})
    assert np.isnan(list(kept.task_weights.values())).all()
    after = train(kept, range(4))
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(after[:2], after[1:3])
    assert np.any(after[2] != after[3])


def test_weights_of_a_step_without_labels_are_not_kept():
    kept, other = (
        model(3, unlabelled="nan", run_eagerly=True) for _ in range(2)
    )
    x, y = networks.data(kept)
    nothing = {task: np.full_like(labels, np.nan) for task, labels in y.items()}
    kept.train_on_batch(x, nothing)
    np.testing.assert_array_equal(train(kept), train(other))


@pytest.mark.parametrize("update_every", [0, -1, 1.5, True, None])
def test_update_every_is_a_number_of_steps(update_every):
    with refused("`update_every` must be a whole number of steps"):
        model(update_every)


def test_verified_directions_choose_at_every_step():
    with refused("must choose the task weights at every"):
        model(2, gradients="verified")


def test_replicas_choose_at_every_step():
    check_update_every(1, "parameters", num_replicas=2)
    with refused("`update_every` must be 1 on several replicas"):
        check_update_every(2, "parameters", num_replicas=2)
