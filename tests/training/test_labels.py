"""A task counts the examples that are labelled for it, and no other."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda.training.labels import find_labels

LOSS = {
    "value": "mse",
    "digit": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "weighted": "mae",
}
METRICS = {"value": "mae", "digit": "accuracy", "weighted": "mse"}
UNLABELLED = {"value": "nan", "digit": -1, "weighted": None}
NUM = 40


class Data:
    """Labels that are missing in three ways, and which are there."""

    def __init__(self, present=0.5, seed=0):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(NUM, 6)).astype("float32")
        self.full = {
            "value": rng.normal(size=(NUM, 2)).astype("float32"),
            "digit": rng.integers(0, 3, NUM),
            "weighted": rng.normal(size=(NUM, 1)).astype("float32"),
        }
        self.present = {task: rng.random(NUM) < present for task in self.full}

    @property
    def y(self):
        value = self.full["value"].copy()
        value[~self.present["value"], 1] = np.nan  # one entry is enough
        digit = np.where(self.present["digit"], self.full["digit"], -1)
        return {**self.full, "value": value, "digit": digit}

    @property
    def sample_weight(self):
        ones = np.ones(NUM, "float32")
        present = self.present["weighted"].astype("float32")
        return {"value": ones, "digit": ones, "weighted": present}

    def part(self, start, stop):
        rows = slice(start, stop)
        cut = lambda by_task: {t: v[rows] for t, v in by_task.items()}  # noqa: E731
        return self.x[rows], cut(self.y), cut(self.sample_weight)


def build():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    z = layers.Dense(5, activation="tanh")(inputs)
    z = keras_mgda.SharedRepresentation()(z)
    outputs = {
        "value": layers.Dense(2, name="value")(z),
        "digit": layers.Dense(3, name="digit")(z),
        "weighted": layers.Dense(1, name="weighted")(z),
    }
    return keras_mgda.MGDAModel(inputs, outputs)


def compiled(optimizer="sgd", **options):
    model = build()
    options = {"metrics": METRICS, "unlabelled": UNLABELLED, **options}
    # Graphs take longer to trace than the steps of most tests take.
    how = {"run_eagerly": True} if "jit_compile" not in options else {}
    model.compile(optimizer, LOSS, **how | options)
    return model


def values(variables):
    return [np.array(v) for v in variables]


@pytest.mark.parametrize("batch_size", [8, 16, NUM])
def test_losses_and_metrics_are_means_over_labelled_examples(batch_size):
    data, model = Data(), compiled()
    logs = model.evaluate(
        *(data.x, data.y, batch_size, 0, data.sample_weight), return_dict=True
    )
    y_pred = model.predict(data.x, verbose=0)
    error = {t: y_pred[t] - data.full[t].reshape(NUM, -1) for t in y_pred}
    there = data.present
    logits = y_pred["digit"][there["digit"]]
    digits = data.full["digit"][there["digit"]]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = {
        "value_loss": (error["value"][there["value"]] ** 2).mean(),
        "value_mae": np.abs(error["value"][there["value"]]).mean(),
        "digit_loss": -log_p[np.arange(len(digits)), digits].mean(),
        "digit_accuracy": (logits.argmax(1) == digits).mean(),
        "weighted_loss": np.abs(error["weighted"][there["weighted"]]).mean(),
        "weighted_mse": (error["weighted"][there["weighted"]] ** 2).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("gradients", "jit_compile"),
    [
        ("representation", True),
        ("parameters", False),
        pytest.param("representation", False, marks=pytest.mark.slow),
        pytest.param("parameters", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.sample(1)
def test_a_step_is_that_of_the_labelled_examples_alone(gradients, jit_compile):
    """With the same examples labelled for all tasks: drop the others."""
    data = Data()
    together = np.arange(NUM) % 3 == 0
    data.present = dict.fromkeys(data.present, together)
    options = {"gradients": gradients, "jit_compile": jit_compile}
    model = compiled(**options)
    model.fit(data.x, data.y, NUM, sample_weight=data.sample_weight, verbose=0)
    other = compiled(unlabelled=None, **options)
    labelled = {task: y[together] for task, y in data.full.items()}
    other.fit(data.x[together], labelled, NUM, verbose=0)
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    for task, weight in other.task_weights.items():
        np.testing.assert_allclose(model.task_weights[task], weight, atol=1e-5)


@pytest.mark.parametrize("gradients", ["representation", "parameters"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    ],
    ids=["adam", "adamw", "momentum"],
)
def test_a_task_without_labels_takes_no_part(optimizer, gradients):
    data = Data()
    data.present["value"][8:16] = False
    model = compiled(optimizer(), gradients=gradients)
    first, empty = data.part(0, 8), data.part(8, 16)
    model.train_on_batch(*first)  # so that the momentum is there
    before = {v.path: v.numpy() for v in model.trainable_variables}
    model.train_on_batch(*empty)

    for variable in model.trainable_variables:
        stayed = np.array_equal(variable, before[variable.path])
        assert stayed == variable.path.startswith("value/"), variable.path
    weights = model.task_weights
    assert weights["value"] == 0.0
    assert weights["digit"] > 0.0
    np.testing.assert_allclose(sum(weights.values()), 1.0, rtol=1e-6)


# A head is labelled in the steps 0, 3, 4 and 7 of these.
LABELLED = [True, False, False, True, True, False, False, True]


def heads_after(steps, make):
    """On a frozen encoder, with "a" always labelled, and "b" where `steps` says
    so; `None` makes no step."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = keras.Input((6,))
    z = layers.Dense(5, trainable=False)(x)
    z = keras_mgda.SharedRepresentation()(z)
    model = keras_mgda.MGDAModel(
        x, {task: layers.Dense(2, name=task)(z) for task in "ab"}
    )
    model.compile(
        make(),
        {"a": "mse", "b": "mse"},
        unlabelled="nan",
        weighting="uniform",
        run_eagerly=True,
    )
    for has_labels in steps:
        x = rng.normal(size=(4, 6)).astype("float32")
        y = {t: rng.normal(size=(4, 2)).astype("float32") for t in "ab"}
        if has_labels is None:
            continue
        if not has_labels:
            y["b"][:] = np.nan
        model.train_on_batch(x, y)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return {task: model.get_layer(task).kernel.numpy() for task in "ab"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.RMSprop(0.01, weight_decay=0.1),
        lambda: keras.optimizers.Adagrad(0.1),
        lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8),
        lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.1, momentum=0.9)
        ),
    ],
    ids=["momentum", "rmsprop", "adagrad", "ema", "loss scale"],
)
@pytest.mark.sample(2)
def test_a_head_goes_as_if_there_were_only_its_labelled_steps(make):
    """Its momentum does not fade, nor does its average follow."""
    often = heads_after(LABELLED, make)
    alone = heads_after([x or None for x in LABELLED], make)
    np.testing.assert_allclose(often["b"], alone["b"], rtol=1e-5, atol=1e-6)
    assert np.abs(often["a"] - alone["a"]).max() > 1e-3


@pytest.mark.parametrize("steps", [[True, False], [False, True]], ids=str)
def test_gradients_that_are_gathered_are_not_lost(steps):
    """Of two steps that make one update the head learns from one."""

    def gathers():
        return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)

    def half_as_fast():
        return keras.optimizers.SGD(0.05)

    gathered = heads_after([*steps, *steps], gathers)["b"]
    start = heads_after([], gathers)["b"]
    one = heads_after([x or None for x in steps], half_as_fast)["b"]
    two = [x or None for x in [*steps, *steps]]
    np.testing.assert_allclose(
        gathered, heads_after(two, half_as_fast)["b"], rtol=1e-5
    )
    assert np.abs(one - start).max() > 1e-3


def test_what_two_tasks_share_stays_when_neither_has_labels():
    inputs = keras.Input((6,))
    z = keras_mgda.SharedRepresentation()(layers.Dense(5)(inputs))
    both = layers.Dense(4, name="both")(z)
    outputs = {task: layers.Dense(1)(both) for task in "ab"}
    outputs["c"] = layers.Dense(1)(z)
    model = keras_mgda.MGDAModel(inputs, outputs)
    model.compile(
        keras.optimizers.AdamW(0.01),
        dict.fromkeys("abc", "mse"),
        unlabelled=-1,
        run_eagerly=True,
    )
    y = {task: np.zeros((4, 1), "float32") for task in "abc"}
    nothing = np.full((4, 1), -1.0, "float32")
    for missing, moves in (("", True), ("ab", False), ("a", True)):
        before = [v.numpy() for v in model.get_layer("both").weights]
        of_batch = y | dict.fromkeys(missing, nothing)
        model.train_on_batch(np.ones((4, 6), "float32"), of_batch)
        for old, variable in zip(
            before, model.get_layer("both").weights, strict=True
        ):
            assert (old != variable.numpy()).any() == moves


@pytest.mark.slow
def test_replicas_count_the_labels_of_the_whole_batch(strategy):
    """Of which they have different shares, and one of them none."""
    data = Data(present=0.4)
    data.present["value"][8:16] = False
    data.present["digit"][16:32] = False

    def trained(scope):
        with scope:
            model = compiled(
                keras.optimizers.SGD(0.1, momentum=0.9), jit_compile=False
            )
        history = model.fit(
            *data.part(0, 32)[:2],
            sample_weight=data.part(0, 32)[2],
            batch_size=16,
            epochs=2,
            shuffle=False,
            verbose=0,
        ).history
        return model.get_weights(), history

    one, history = trained(contextlib.nullcontext())
    two, of_both = trained(strategy.scope())
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name in [*history.keys() - {"loss"}]:
        np.testing.assert_allclose(of_both[name], history[name], rtol=1e-5)


def test_an_output_that_is_no_task_needs_no_labels():
    data, (x, y) = Data(), (Data().x, Data().full)
    model = build()
    loss = {**LOSS, "weighted": None}
    markers = {"value": "nan", "digit": -1}
    model.compile("sgd", loss, unlabelled=markers, run_eagerly=True)
    del y["weighted"]
    history = model.fit(x, y, verbose=0).history
    assert "weighted_loss" not in history
    model.compile(
        "sgd",
        loss,
        unlabelled="nan",
        metrics={"weighted": "mae"},
        run_eagerly=True,
    )
    logs = model.evaluate(x, data.full, verbose=0, return_dict=True)
    error = model.predict(x, verbose=0)["weighted"] - data.full["weighted"]
    np.testing.assert_allclose(
        logs["weighted_mae"], np.abs(error).mean(), rtol=1e-5
    )


def test_in_float64():
    keras.config.set_floatx("float64")
    try:
        data, model = Data(), compiled()
        x, y, sample_weight = data.part(0, 16)
        logs = model.evaluate(*(x, y, 8, 0, sample_weight), return_dict=True)
        assert np.isfinite(list(logs.values())).all()
    finally:
        keras.config.set_floatx("float32")


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.sample(1)
def test_a_batch_without_labels_does_not_enter_the_logged_loss(
    empty, run_eagerly
):
    """Nor the first one, in which Keras makes what logs the losses."""
    data = Data()
    data.present["value"][8 * empty : 8 * empty + 8] = False
    start = 8 - 8 * empty
    alone = compiled(keras.optimizers.SGD(0.0)).test_on_batch(
        *data.part(start, start + 8), return_dict=True
    )
    x, y, sample_weight = data.part(0, 16)
    model = compiled(keras.optimizers.SGD(0.0), run_eagerly=run_eagerly)
    history = model.fit(
        *(x, y, 8), sample_weight=sample_weight, shuffle=False, verbose=0
    )
    np.testing.assert_allclose(
        history.history["value_loss"], [alone["value_loss"]], rtol=1e-6
    )


def test_nothing_changes_without_any_label_and_it_says_so_once():
    data = Data()
    adamw = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    model = compiled(adamw, jit_compile=False)
    model.train_on_batch(*data.part(0, 16))
    state = [*model.trainable_variables, *model.optimizer.variables]
    before = values(state)
    data.present = {t: np.zeros(NUM, bool) for t in data.present}
    with pytest.warns(UserWarning, match="5 training steps changed nothing"):
        model.fit(
            data.x, data.y, 8, sample_weight=data.sample_weight, verbose=0
        )
    for one, two in zip(values(state), before, strict=True):
        np.testing.assert_array_equal(one, two)


def test_rare_labels_do_not_scale_the_task_weights():
    """Repeating the unlabelled part of a batch changes no task weight."""
    data = Data()
    model, other = compiled(), compiled()
    x, y, w = data.part(0, 16)
    model.train_on_batch(x, y, w)
    nothing = {"value": np.nan, "digit": -1, "weighted": 0.0}

    def with_more(task, labels, filler):
        more = np.full((48, *labels.shape[1:]), filler, labels.dtype)
        return np.concatenate([labels, more])

    more_y = {t: with_more(t, y[t], nothing[t]) for t in y}
    more_w = {t: with_more(t, w[t], float(t != "weighted")) for t in w}
    other.train_on_batch(
        np.concatenate([x, np.ones((48, 6), "float32")]), more_y, more_w
    )
    for task, weight in model.task_weights.items():
        np.testing.assert_allclose(other.task_weights[task], weight, rtol=1e-5)


def test_the_option_survives_save_and_load(tmp_path):
    data, model = Data(), compiled()
    arguments = {
        "x": data.x,
        "y": data.y,
        "sample_weight": data.sample_weight,
        "verbose": 0,
        "return_dict": True,
    }
    before = model.evaluate(**arguments)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    after = loaded.evaluate(**arguments)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-6)


class TestFindLabels:
    """Which entries count, against NumPy, over label and prediction shapes."""

    @pytest.mark.parametrize(
        ("label_shape", "prediction_shape"),
        [
            ((6,), (6, 1)),
            ((6, 1), (6, 1)),
            ((6, 3), (6, 3)),
            ((6,), (6, 4)),
            ((6, 1), (6, 4)),
            ((6, 5), (6, 5, 4)),
            ((6, 5, 2), (6, 5, 2)),
        ],
    )
    @pytest.mark.parametrize("weighted", [False, True])
    def test_mask_and_weights(self, label_shape, prediction_shape, weighted):
        rng = np.random.default_rng(1)
        y_true = rng.normal(size=label_shape).astype("float32")
        y_true[rng.random(label_shape) < 0.4] = np.nan
        sample_weight = rng.integers(0, 3, 6).astype("float32")
        found = find_labels(
            tf.constant(y_true),
            tf.zeros(prediction_shape),
            tf.constant(sample_weight) if weighted else None,
            "nan",
        )
        present = ~np.isnan(y_true)
        if len(label_shape) == len(prediction_shape):
            present = present.all(axis=-1)
        weight = np.ones(present.shape)
        if weighted:
            weight *= sample_weight.reshape(6, *[1] * (present.ndim - 1))
        present = present & (weight > 0)
        np.testing.assert_array_equal(found.mask, present)
        np.testing.assert_allclose(found.count, present.sum())
        scale = present.size / max(present.sum(), 1)
        np.testing.assert_allclose(
            found.sample_weight, present * weight * scale, rtol=1e-6
        )
        assert np.isfinite(found.y_true).all()

    def test_under_a_keras_mask(self):
        """Keras's mask and ours give the mean over what passes both."""
        tokens = keras.Input((4,), dtype="int32")
        h = layers.Embedding(9, 3, mask_zero=True)(tokens)
        z = keras_mgda.SharedRepresentation()(h)
        outputs = {t: layers.Dense(2, name=t)(z) for t in ("a", "b")}
        model = keras_mgda.MGDAModel(tokens, outputs)
        model.compile("sgd", "mse", unlabelled="nan", run_eagerly=True)
        x = np.array([[1, 2, 0, 0], [3, 4, 5, 0], [6, 7, 8, 1]])
        rng = np.random.default_rng(2)
        y = {t: rng.normal(size=(3, 4, 2)).astype("float32") for t in "ab"}
        y["a"][rng.random((3, 4)) < 0.5] = np.nan
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        for task, labels in y.items():
            counts = (x > 0) & ~np.isnan(labels).any(axis=-1)
            error = model.predict(x, verbose=0)[task] - labels
            np.testing.assert_allclose(
                logs[f"{task}_loss"], (error[counts] ** 2).mean(), rtol=1e-5
            )

    @pytest.mark.parametrize(
        ("dtype", "marker", "present"),
        [
            ("int32", "nan", [1, 1, 1]),
            ("int32", -1, [1, 1, 0]),
            ("int32", 0.5, [1, 1, 1]),
            ("uint8", -1, [1, 1, 1]),
            ("uint8", 255, [1, 1, 0]),
            ("bool", -1, [1, 1, 1]),
            ("bool", 0, [1, 1, 1]),
            ("float32", 0.1, [1, 1, 1]),
            ("float32", -1, [1, 1, 0]),
        ],
    )
    def test_only_what_a_dtype_can_hold_is_missing(
        self, dtype, marker, present
    ):
        """A marker is not made into a label that means something."""
        last = 255 if dtype == "uint8" else -1
        y_true = tf.constant(np.array([0, 1, last]).astype(dtype))
        found = find_labels(y_true, tf.zeros((3, 3)), None, marker)
        np.testing.assert_array_equal(found.mask, present)


class TestBadInput:
    @pytest.mark.parametrize(
        "unlabelled",
        ["missing", [1], {"value": "nan"}, {**UNLABELLED, "other": -1}],
        ids=str,
    )
    def test_an_unknown_marker(self, unlabelled):
        with pytest.raises(ValueError, match="`unlabelled` must be 'nan'"):
            compiled(unlabelled=unlabelled)

    def test_weighted_metrics(self):
        with pytest.raises(ValueError, match="must be given as `metrics`"):
            compiled(metrics=None, weighted_metrics=METRICS)

    def test_a_sum(self):
        loss = {**LOSS, "value": keras.losses.MeanSquaredError("sum")}
        with pytest.raises(ValueError, match="'sum' for task 'value'"):
            build().compile("sgd", loss, unlabelled="nan")

    def test_an_output_without_an_axis_of_its_own(self):
        with pytest.raises(
            ValueError, match=r"axis beside.*Received: .*\(4,\)"
        ):
            find_labels(tf.zeros(4), tf.zeros(4), None, "nan")

    @pytest.mark.parametrize(
        "loss",
        [
            lambda y_true, y_pred: keras.ops.mean((y_true - y_pred) ** 2),
            keras.losses.Dice(),
            lambda y_true, y_pred: keras.ops.mean(
                (y_true - y_pred) ** 2, [1, 2]
            ),
        ],
        ids=["function", "class", "of an image"],
    )
    @pytest.mark.parametrize("run_eagerly", [False, True])
    def test_a_loss_that_mixes_labels(self, loss, run_eagerly):
        inputs = keras.Input((4, 6))
        z = keras_mgda.SharedRepresentation()(layers.Dense(3)(inputs))
        outputs = {task: layers.Dense(2)(z) for task in "ab"}
        model = keras_mgda.MGDAModel(inputs, outputs)
        model.compile(
            "sgd", {"a": loss, "b": "mse"}, unlabelled="nan",
            run_eagerly=run_eagerly,
        )  # fmt: skip
        y = {task: np.zeros((4, 4, 2)) for task in "ab"}
        with pytest.raises(
            ValueError, match=r"a value for each label.*task 'a'"
        ):
            model.fit(np.ones((4, 4, 6)), y, verbose=0)

    def test_a_task_that_the_labels_do_not_name(self):
        model, data = compiled(), Data()
        y = data.y
        del y["digit"]
        with pytest.raises(ValueError, match="must be a dict that names every"):
            model.fit(data.x, y, verbose=0)
