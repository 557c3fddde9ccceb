"""What is logged of the losses where labels are missing, beside NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from tests.support.refusal import refused

NUM, BATCH = 20, 6
LOSS_WEIGHTS = {"a": 2.0, "b": 0.5}


def build(tasks="ab", cls=MGDAModel, l2=None):
    inputs = keras.Input((3,))
    z = layers.Dense(4, kernel_regularizer=l2)(inputs)
    z = SharedRepresentation()(z)
    return cls(inputs, {t: layers.Dense(1, name=t)(z) for t in tasks})


def data(tasks="ab", missing=(("a", slice(0, 9)), ("b", slice(15, 20)))):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM, 3)).astype("float32")
    y = {t: rng.normal(size=(NUM, 1)).astype("float32") for t in tasks}
    for task, rows in missing:
        if task in y:
            y[task][rows] = np.nan
    return x, y


def compiled(model, **options):
    tasks = model.output
    options = {
        "loss_weights": {t: LOSS_WEIGHTS[t] for t in tasks},
        "run_eagerly": True,
        "metrics": dict.fromkeys(tasks, "mae"),
        "unlabelled": "nan",
    } | options
    model.compile("sgd", loss=dict.fromkeys(tasks, "mse"), **options)
    return model


def expected_losses(model, x, y):
    answers = model.predict(x, verbose=0)
    return {
        t: float(np.nanmean((np.asarray(answers[t]) - y[t]) ** 2)) for t in y
    }


@pytest.mark.parametrize("tasks", ["ab", "a"])
@pytest.mark.parametrize("l2", [None, "l2"])
@pytest.mark.sample(2)
def test_losses_are_means_over_labels_whatever_the_batches(tasks, l2):
    """Whole batches lack the labels of a task; the last one is smaller."""
    model = compiled(build(tasks, l2=l2))
    x, y = data(tasks)
    logs = model.evaluate(x, y, batch_size=BATCH, return_dict=True, verbose=0)
    expected = expected_losses(model, x, y)
    total = sum(LOSS_WEIGHTS[t] * expected[t] for t in tasks)
    assert logs["loss"] == pytest.approx(
        total + float(sum(model.losses)), rel=1e-5
    )
    if len(tasks) > 1:
        for task in tasks:
            assert logs[f"{task}_loss"] == pytest.approx(
                expected[task], rel=1e-5
            )


def test_fit_logs_the_same():
    """At a learning rate of zero an epoch is an evaluation."""
    model = compiled(build())
    model.optimizer.learning_rate = 0.0
    x, y = data()
    fit = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    logs = model.evaluate(x, y, batch_size=BATCH, return_dict=True, verbose=0)
    for name, value in logs.items():
        assert fit.history[name] == pytest.approx([value], rel=1e-5), name


def test_a_task_without_labels_has_no_loss_and_no_metrics():
    model = compiled(build())
    x, y = data(missing=[("a", slice(None))])
    with pytest.warns(UserWarning, match="no label of task 'a'"):
        logs = model.evaluate(x, y, return_dict=True, verbose=0)
    assert np.isnan([logs["a_loss"], logs["a_mae"]]).all()
    expected = np.mean((model.predict(x, verbose=0)["b"] - y["b"]) ** 2)
    assert logs["b_loss"] == pytest.approx(expected, rel=1e-5)
    assert logs["loss"] == pytest.approx(LOSS_WEIGHTS["b"] * expected, rel=1e-5)


def test_a_metric_of_the_user_keeps_its_value():
    class WithOwnMetric(MGDAModel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.own = keras.metrics.Mean(name="a_loss_of_mine")
            self.same_name = keras.metrics.Mean(name="b_loss_")

        def train_step(self, data):
            self.own.update_state(7.0)
            self.same_name.update_state(5.0)
            return super().train_step(data)

    model = compiled(build(cls=WithOwnMetric))
    logs = model.fit(*data(), verbose=0).history
    assert logs["a_loss_of_mine"] == [7.0]
    assert logs["b_loss_"] == [5.0]


def test_tasks_whose_names_begin_alike():
    inputs = keras.Input((3,))
    z = SharedRepresentation()(layers.Dense(4)(inputs))
    outputs = {t: layers.Dense(1, name=t)(z) for t in ("a", "a_b")}
    model = MGDAModel(inputs, outputs)
    model.compile(
        "sgd",
        loss=dict.fromkeys(outputs, "mse"),
        metrics=dict.fromkeys(outputs, "mae"),
        unlabelled="nan",
        run_eagerly=True,
    )
    x, y = data("a", missing=())
    y = {"a": y["a"], "a_b": np.full((NUM, 1), np.nan)}
    with pytest.warns(UserWarning, match="'a_b'"):
        logs = model.evaluate(x, y, return_dict=True, verbose=0)
    assert np.isfinite(logs["a_mae"])
    assert np.isnan(logs["a_b_mae"])


def test_a_metric_function_must_not_take_its_own_mean():
    def rmse(y_true, y_pred):
        return tf.sqrt(tf.reduce_mean((y_true - y_pred) ** 2))

    model = compiled(build(), metrics={"a": rmse})
    with refused("must return a value for each example.*'rmse' of task 'a'"):
        model.evaluate(*data(), verbose=0)


def test_a_loss_over_the_whole_batch_beside_a_partly_labelled_task():
    """Without a marker and without sample weights its loss stays as it is."""

    def contrast(y_true, y_pred):
        return tf.reduce_sum(tf.matmul(y_pred, y_pred, transpose_b=True))

    model = build()
    model.compile(
        "sgd",
        loss={"a": "mse", "b": contrast},
        unlabelled={"a": "nan", "b": None},
        run_eagerly=True,
    )
    x, y = data()
    answer = model.predict(x, verbose=0)["b"]
    logs = model.evaluate(x, y, batch_size=NUM, return_dict=True, verbose=0)
    expected = float(np.sum(answer @ answer.T))
    assert logs["b_loss"] == pytest.approx(expected, rel=1e-4)
