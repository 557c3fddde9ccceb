"""What a step consists of grows as the number of tasks, and no faster.

(How long it takes to trace and to run: `benchmarks/many_tasks.py`.)
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation


def compiled(cls, m, **how):
    x = keras.Input((3,))
    # In fewer dimensions `m` gradients are Pareto stationary by chance.
    z = layers.Dense(m, activation="tanh")(x)
    z = SharedRepresentation()(z) if cls is MGDAModel else z
    model = cls(x, {f"t{t:03}": layers.Dense(1)(z) for t in range(m)})
    model.compile("sgd", dict.fromkeys(model.output, "mse"), **how)
    model.optimizer.build(model.trainable_variables)
    return model


def batch(model, b=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(b, 3)).astype("float32")
    y = {t: rng.normal(size=(b, 1)).astype("float32") for t in model.output}
    return x, y


def num_nodes(model):
    """Of the graph of a training step, and the functions that it calls."""
    data = keras.tree.map_structure(tf.constant, batch(model))
    model.train_on_batch(*batch(model))  # makes the metrics
    step = tf.function(model.train_step, autograph=False)
    graph = step.get_concrete_function(data).graph.as_graph_def()
    functions = [f.node_def for f in graph.library.function]
    return sum(map(len, [graph.node, *functions]))


@pytest.mark.parametrize(
    "gradients",
    [
        "representation",
        pytest.param("parameters", marks=pytest.mark.slow),
        pytest.param("verified", marks=pytest.mark.slow),
    ],
)
def test_the_graph_grows_linearly(gradients):
    few, more, most = (
        num_nodes(compiled(MGDAModel, m, gradients=gradients, run_eagerly=True))
        for m in (3, 6, 12)
    )
    assert most - more <= 2.1 * (more - few)


@pytest.mark.slow
def test_each_task_adds_little_more_than_in_stock_keras():
    few, more = 3, 9
    added = [
        num_nodes(compiled(cls, more, run_eagerly=True))
        - num_nodes(compiled(cls, few, run_eagerly=True))
        for cls in (MGDAModel, keras.Model)
    ]
    assert added[0] <= 1.5 * added[1]


@pytest.mark.parametrize(
    "m", [20, *(pytest.param(m, marks=pytest.mark.slow) for m in (100, 500))]
)
def test_many_tasks_train(m):
    model = compiled(MGDAModel, m, run_eagerly=True)
    before = [v.numpy() for v in model.trainable_variables]
    logs = model.train_on_batch(*batch(model), return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    weights = list(model.task_weights.values())
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1, abs=1e-4)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert (variable.numpy() != value).any()
