"""An `MGDAModel` is a `keras.Model`: with one task, or the plain sum, it does
what stock Keras does, step by step."""

import functools

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation

SGD = keras.optimizers.SGD
Adam, AdamW = keras.optimizers.Adam, keras.optimizers.AdamW


class AddsLoss(layers.Layer):
    def call(self, z):
        self.add_loss(0.1 * keras.ops.mean(z**2))
        return z


def regularized(mark):
    """All that may add to the loss, or keep a state, in encoder and heads."""
    x = keras.Input((8,))
    h = networks.dense(6, kernel_regularizer="l2")(x)
    h = layers.BatchNormalization()(h)
    h = AddsLoss()(layers.Dropout(0.3)(h))
    z = mark()(networks.dense(4, activity_regularizer="l1")(h))
    one = networks.dense(3, activity_regularizer="l2")(z)
    two = layers.BatchNormalization()(layers.Dropout(0.2)(AddsLoss()(z)))
    return x, {
        "two": layers.Dense(1, bias_regularizer="l1", bias_initializer="ones")(
            two
        ),
        "one": layers.Dense(3)(layers.Dropout(0.2)(one)),
    }


def normalized(mark):
    """In 16 bit, Keras cannot add activity regularizers to the loss."""
    x = keras.Input((8,))
    h = layers.BatchNormalization()(networks.dense(6)(x))
    z = mark()(networks.dense(4)(layers.Dropout(0.3)(h)))
    return x, {
        "two": layers.Dense(1, dtype="float32")(z),
        "one": layers.Dense(3, dtype="float32")(networks.dense(3)(z)),
    }


LOSSES = {
    "one": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "two": "mse",
}


def examples(b=30, tasks=("one", "two"), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(b, 8)).astype("float32")
    y = {"one": rng.integers(0, 3, b), "two": rng.normal(size=(b, 1))}
    weights = {t: rng.uniform(size=b) for t in tasks}
    return x, {t: y[t] for t in tasks}, weights


def train(
    cls,
    optimizer,
    tasks=("one", "two"),
    structure=regularized,
    fit=(),
    **compile_args,
):
    """20 steps, the last of each epoch smaller."""
    keras.utils.set_random_seed(0)
    marker = SharedRepresentation if cls is MGDAModel else networks.unmarked
    x, outputs = structure(marker)
    model = cls(x, {task: outputs[task] for task in outputs if task in tasks})
    # Graphs take longer to trace than 20 steps take, and are tested below.
    how = {"run_eagerly": True} if "jit_compile" not in compile_args else {}
    model.compile(
        optimizer() if callable(optimizer) else optimizer,
        loss={task: LOSSES[task] for task in tasks},
        **(how | compile_args),
    )
    x, y, sample_weight = examples(tasks=tasks)
    history = model.fit(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=8,
        epochs=5,
        verbose=0,
        validation_data=examples(tasks=tasks, seed=1),
        validation_freq=[1, 5],
        **dict(fit),
    )
    return model, history.history


@functools.cache
def stock(optimizer, tasks=("one", "two")):
    return train(keras.Model, optimizer, tasks)


def assert_same(ours, stock, rtol=1e-4, atol=1e-5):
    (model, history), (stock_model, expected) = ours, stock
    assert list(history) == list(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(
            history[key], values, rtol=rtol, atol=atol, err_msg=key
        )
    got = model.weights + model.optimizer.variables
    want = stock_model.weights + stock_model.optimizer.variables
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(
            a.numpy(), b.numpy(), rtol=rtol, atol=atol, err_msg=b.path
        )


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
    [pytest.param(o, id=name) for name, o in OPTIMIZERS.items()]
    + [
        pytest.param(o, id=name, marks=pytest.mark.slow)
        for name, o in ONE_BY_ONE.items()
    ],
)
def test_plain_sum_trains_as_stock_keras(optimizer):
    ours = train(MGDAModel, optimizer, weighting="uniform")
    assert_same(ours, stock(optimizer))
    assert ours[0].task_weights == {"one": 1.0, "two": 1.0}


@pytest.mark.parametrize(
    ("task", "gradients", "optimizer"),
    [("one", "representation", DECAY), ("two", "parameters", MOMENTUM)],
)
def test_one_task_trains_as_stock_keras(task, gradients, optimizer):
    ours = train(MGDAModel, optimizer, (task,), gradients=gradients)
    assert_same(ours, stock(optimizer, (task,)))
    assert ours[0].task_weights == {task: 1.0}


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
        "jit_compile": False,
        "loss_weights": {"one": 2.0, "two": 0.3},
        "metrics": {"one": ["accuracy"], "two": ["mae", "mse"]},
        "weighted_metrics": {"one": ["accuracy"], "two": ["mae"]},
    },
    "xla": {"jit_compile": True, "structure": normalized},
    "steps_per_execution": {"jit_compile": False, "steps_per_execution": 3},
}


@pytest.mark.parametrize(
    "compile_args", COMPILE_ARGS.values(), ids=COMPILE_ARGS.keys()
)
def test_compile_arguments_mean_what_they_do_in_stock_keras(compile_args):
    ours = train(MGDAModel, MOMENTUM, weighting="uniform", **compile_args)
    assert_same(ours, train(keras.Model, MOMENTUM, **compile_args))


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16"], indirect=True
)
def test_mixed_precision_trains_as_stock_keras(policy):
    ours = train(
        MGDAModel, MOMENTUM, structure=normalized, weighting="uniform"
    )
    plain = train(keras.Model, MOMENTUM, structure=normalized)
    # Sums of 16-bit gradients, in another order.
    assert_same(ours, plain, rtol=0.02, atol=0.02)


def overflowing():
    return keras.optimizers.LossScaleOptimizer(
        SGD(0.01), initial_scale=2.0**20
    )


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_step_that_overflows_is_skipped_and_the_scale_recovers(policy):
    def train_from(cls, **kwargs):
        return train(cls, overflowing, structure=normalized, **kwargs)

    uniform = train_from(MGDAModel, weighting="uniform")
    assert_same(uniform, train_from(keras.Model), rtol=0.02, atol=0.02)
    for gradients in ("representation", "parameters"):
        model, history = train_from(MGDAModel, gradients=gradients)
        scale = model.optimizer.dynamic_scale.numpy()
        assert 1.0 < scale < 2.0**20
        assert np.isfinite(history["loss"]).all()
        assert all(np.isfinite(v.numpy()).all() for v in model.weights)
        assert sum(model.task_weights.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_task_weights_do_not_depend_on_the_loss_scale(policy):
    found = []
    for scale in (1.0, 2.0**10):
        model, _ = train(
            MGDAModel,
            lambda scale=scale: keras.optimizers.LossScaleOptimizer(
                SGD(1e-6), initial_scale=scale
            ),
            structure=normalized,
            weighting=networks.weightings.MGDA("loss+"),
        )
        found.append(model.task_weights)
    assert found[0] == pytest.approx(found[1], rel=0.02, abs=0.01)


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
def test_own_compute_loss_trains_as_in_stock_keras(takes_training):
    trained = []
    for cls, mark in (
        (keras.Model, networks.unmarked),
        (MGDAModel, SharedRepresentation),
    ):
        keras.utils.set_random_seed(0)
        model = overriding(cls, takes_training)(*regularized(mark))
        how = {"weighting": "uniform"} if cls is MGDAModel else {}
        model.compile(SGD(0.1), loss=LOSSES, **how)
        x, y, weights = examples(8)
        history = [
            model.train_on_batch(x, y, weights, return_dict=True)
            for _ in range(3)
        ]
        trained.append(
            (model, {key: [h[key] for h in history] for key in history[0]})
        )
    assert_same(*reversed(trained))


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
        model.compile(SGD(0.1), loss=LOSSES)
        history = model.fit(data, shuffle=False, verbose=0, steps_per_epoch=3)
        found.append(history.history["loss"] + list(model.task_weights.values()))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_evaluates_and_predicts_as_stock_keras():
    model = MGDAModel(*regularized(SharedRepresentation))
    plain = keras.Model(*regularized(networks.unmarked))
    plain.set_weights(model.get_weights())
    for each in (model, plain):
        each.compile(loss=LOSSES)
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


def test_callbacks_see_an_ordinary_model(tmp_path):
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr / 2),
        keras.callbacks.EarlyStopping("two_loss", mode="min"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    model, history = train(MGDAModel, "sgd", fit={"callbacks": callbacks})
    epochs = len(history["loss"])
    rate = float(model.optimizer.learning_rate.numpy())
    assert rate == pytest.approx(0.01 / 2**epochs)
    assert (tmp_path / "best.keras").exists()
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert len(rows) == epochs
    assert "two_loss" in header.split(",")


def test_serves_as_a_layer_of_another_model():
    model, _ = train(MGDAModel, "sgd")
    x = keras.Input((8,))
    outer = keras.Model(x, layers.Concatenate()(list(model(x).values())))
    features, _, _ = examples(4)
    assert outer.predict(features, verbose=0).shape == (4, 4)
    assert model.count_params() == outer.count_params()
