"""An `MGDAModel` is a `keras.Model`: with one task, or the plain sum, it does
what stock Keras does, step by step."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from tests.support import networks
from tests.support.twins import (
    LOSSES,
    assert_same,
    examples,
    normalized,
    regularized,
    train,
)

SGD = keras.optimizers.SGD
Adam, AdamW = keras.optimizers.Adam, keras.optimizers.AdamW


@functools.cache
def stock(optimizer, tasks=("one", "two")):
    return train(keras.Model, optimizer, tasks)


OPTIMIZERS = {
    "momentum, clipnorm": lambda: SGD(
        0.05, momentum=0.9, nesterov=True, clipnorm=0.05
    ),
    "weight_decay, global_clipnorm, schedule": lambda: AdamW(
        keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.5),
        weight_decay=0.1,
        global_clipnorm=0.1,
        epsilon=1e-3,
    ),
    "accumulation, ema, clipvalue": lambda: SGD(
        0.05, gradient_accumulation_steps=3, use_ema=True, clipvalue=0.01
    ),
}
MOMENTUM, DECAY, _ = OPTIMIZERS.values()
ONE_BY_ONE = {
    "momentum": lambda: SGD(0.05, momentum=0.9),
    "adam": lambda: Adam(0.01, epsilon=1e-3),
    "weight_decay": lambda: AdamW(0.01, weight_decay=0.1, epsilon=1e-3),
    "clipvalue": lambda: SGD(0.05, clipvalue=0.01),
    "clipnorm": lambda: SGD(0.05, clipnorm=0.05),
    "global_clipnorm": lambda: SGD(0.05, global_clipnorm=0.1),
    "ema": lambda: SGD(0.05, use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: SGD(0.05, gradient_accumulation_steps=3),
}


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(
            optimizer,
            id=name,
            marks=() if optimizer is DECAY else pytest.mark.slow,
        )
        for name, optimizer in (OPTIMIZERS | ONE_BY_ONE).items()
    ],
)
def test_plain_sum_trains_as_stock_keras(optimizer):
    ours = train(MGDAModel, optimizer, weighting="uniform")
    assert_same(ours, stock(optimizer))
    assert ours[0].task_weights == {"one": 1.0, "two": 1.0}


@pytest.mark.parametrize(
    ("task", "gradients", "optimizer"),
    [
        ("one", "representation", DECAY),
        pytest.param("two", "parameters", MOMENTUM, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_one_task_trains_as_stock_keras(task, gradients, optimizer):
    ours = train(MGDAModel, optimizer, (task,), gradients=gradients)
    assert_same(ours, stock(optimizer, (task,)))
    assert ours[0].task_weights == {task: 1.0}


@pytest.mark.slow
def test_task_gradients_that_are_all_weighed_1_sum_up_to_the_plain_sum():
    ours = train(
        MGDAModel,
        MOMENTUM,
        weighting=networks.Constant([1.0, 1.0]),
        gradients="parameters",
    )
    assert_same(ours, stock(MOMENTUM))


@pytest.mark.parametrize(
    ("structure", "optimizer"),
    [
        (networks.embedded, lambda: Adam(0.01, clipnorm=0.1, epsilon=1e-3)),
        # Keras adds up the rows of a sparse gradient later than its squares
        # and norms, so that only rules linear in the gradient agree.
        (networks.tied_embedding, lambda: SGD(0.1, momentum=0.9)),
    ],
)
@pytest.mark.sample(1)
def test_sparse_gradients_train_as_in_stock_keras(structure, optimizer):
    ours = networks.mgda_model(
        structure, optimizer(), weighting="uniform", run_eagerly=True
    )
    plain = networks.stock_model(structure)
    plain.compile(optimizer(), networks.losses(plain.output), run_eagerly=True)
    plain.set_weights(ours.get_weights())
    histories = [
        model.fit(
            *networks.data(ours, b=12),
            batch_size=4,
            epochs=3,
            shuffle=False,
            verbose=0,
        ).history
        for model in (ours, plain)
    ]
    assert_same((ours, histories[0]), (plain, histories[1]))


COMPILE_ARGS = {
    "metrics": {
        "loss_weights": {"one": 2.0, "two": 0.3},
        "metrics": {"one": ["accuracy"], "two": ["mae", "mse"]},
        "weighted_metrics": {"one": ["accuracy"], "two": ["mae"]},
    },
    # A program for every size of a batch: all of these are of 8 examples.
    "xla": {"jit_compile": True, "structure": normalized, "b": 32},
    "steps_per_execution": {"jit_compile": False, "steps_per_execution": 3},
}


@pytest.mark.parametrize(
    "compile_args",
    [
        pytest.param(
            compile_args,
            id=name,
            marks=() if name == "xla" else pytest.mark.slow,
        )
        for name, compile_args in COMPILE_ARGS.items()
    ],
)
@pytest.mark.slow
def test_compile_arguments_mean_what_they_do_in_stock_keras(compile_args):
    ours = train(MGDAModel, MOMENTUM, weighting="uniform", **compile_args)
    assert_same(ours, train(keras.Model, MOMENTUM, **compile_args))


def overriding(cls, takes_training):
    """A model with a `compute_loss` of its own, as users write it."""

    class WithTraining(cls):
        def compute_loss(
            self, x=None, y=None, y_pred=None, sample_weight=None, training=True
        ):
            assert training is True
            loss = super().compute_loss(x, y, y_pred, sample_weight)
            return 2.0 * loss + keras.ops.mean(y_pred["two"] ** 2)

    class WithoutTraining(cls):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            loss = super().compute_loss(x, y, y_pred, sample_weight)
            return 2.0 * loss + keras.ops.mean(y_pred["two"] ** 2)

    return WithTraining if takes_training else WithoutTraining


@pytest.mark.parametrize("takes_training", [True, False])
@pytest.mark.sample(1)
def test_own_compute_loss_trains_as_in_stock_keras(takes_training):
    trained = []
    for cls, mark in (
        (keras.Model, networks.unmarked),
        (MGDAModel, SharedRepresentation),
    ):
        keras.utils.set_random_seed(0)
        model = overriding(cls, takes_training)(*regularized(mark))
        how = {"weighting": "uniform"} if cls is MGDAModel else {}
        model.compile(SGD(0.1), loss=LOSSES, run_eagerly=True, **how)
        x, y, weights = examples(8)
        history = [
            model.train_on_batch(x, y, weights, return_dict=True)
            for _ in range(3)
        ]
        trained.append(
            (model, {key: [h[key] for h in history] for key in history[0]})
        )
    assert_same(*reversed(trained))


@pytest.mark.slow
def test_data_arrives_by_any_of_the_ways_of_keras():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return keras.tree.map_structure(
                lambda a: a[10 * i : 10 * i + 10], examples()
            )

    found = []
    for data in (
        Batches(workers=0),
        tf.data.Dataset.from_tensor_slices(examples()).batch(10),
        (Batches(workers=0)[i] for i in range(3)),
    ):
        keras.utils.set_random_seed(0)
        model = MGDAModel(*regularized(SharedRepresentation))
        model.compile(SGD(0.1), loss=LOSSES, run_eagerly=True)
        history = model.fit(data, shuffle=False, verbose=0, steps_per_epoch=3)
        found.append(history.history["loss"] + [*model.task_weights.values()])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_evaluates_and_predicts_as_stock_keras():
    model = MGDAModel(*regularized(SharedRepresentation))
    plain = keras.Model(*regularized(networks.unmarked))
    plain.set_weights(model.get_weights())
    for each in (model, plain):
        each.compile(loss=LOSSES, run_eagerly=True)
    x, y, weights = examples()
    got, expected = (
        each.evaluate(x, y, sample_weight=weights, verbose=0)
        + each.test_on_batch(x, y)
        for each in (model, plain)
    )
    assert got == pytest.approx(expected, rel=1e-5)
    for got, expected in (
        (model.predict(x, verbose=0), plain.predict(x, verbose=0)),
        (model.predict_on_batch(x), plain.predict_on_batch(x)),
    ):
        assert list(got) == list(expected)
        for task in expected:
            np.testing.assert_allclose(got[task], expected[task], atol=1e-6)


@pytest.mark.slow
def test_serves_as_a_layer_of_another_model():
    model, _ = train(MGDAModel, "sgd")
    x = keras.Input((8,))
    outer = keras.Model(x, layers.Concatenate()(list(model(x).values())))
    features, _, _ = examples(4)
    assert outer.predict(features, verbose=0).shape == (4, 4)
    assert model.count_params() == outer.count_params()


@pytest.mark.slow
def test_the_plain_sum_leaves_loops_as_stock_keras_does():
    """A persistent tape would wrap each, fit for derivatives of any order."""

    def loops(make, **how):
        x = keras.Input((4, 3))
        h = layers.GRU(5, return_sequences=True)(x)
        if how:
            h = SharedRepresentation()(h)
        outputs = {t: layers.Dense(1)(layers.GRU(5)(h)) for t in ("a", "b")}
        model = make(x, outputs)
        model.compile("sgd", dict.fromkeys(outputs, "mse"), **how)
        data = tf.ones([2, 4, 3]), dict.fromkeys(outputs, tf.ones([2, 1]))
        step = tf.function(model.train_step, autograph=False)
        graph = step.get_concrete_function(data).graph.as_graph_def()
        nodes = [n.op for n in graph.node]
        for function in graph.library.function:
            nodes += [n.op for n in function.node_def]
        return {op: nodes.count(op) for op in ("While", "TensorListPopBack")}

    expected = loops(keras.Model)
    assert expected["TensorListPopBack"] > 0
    assert loops(MGDAModel, weighting="uniform") == expected
    assert loops(MGDAModel, weighting="mgda") != expected
