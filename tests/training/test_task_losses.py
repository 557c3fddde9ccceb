import keras
import numpy as np
import pytest

from keras_mgda import MGDAModel, SharedRepresentation
from tests.support import networks

RNG = np.random.default_rng(0)
B = 6
NUMBER = RNG.normal(size=(B, 1)).astype("float32")
VECTOR = RNG.normal(size=(B, 3)).astype("float32")
BIT = RNG.integers(0, 2, size=(B, 1)).astype("float32")
CLASS = RNG.integers(0, 3, size=(B, 1))
ONE_HOT = np.eye(3, dtype="float32")[CLASS[:, 0]]
FLAT = {name: a[:, 0] for name, a in (("number", NUMBER), ("class", CLASS))}


def absolute(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)


def scalar(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred))


class Doubled(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return 2 * absolute(y_true, y_pred)


# Each with labels and the activation and width of the output.
CASES = {
    "string": ("mse", NUMBER, None, 1),
    "string, labels of one rank less": ("mse", FLAT["number"], None, 1),
    "long string": ("mean_absolute_error", VECTOR, None, 3),
    "function of Keras": (keras.losses.mean_squared_error, NUMBER, None, 1),
    "function of Keras, labels of one rank less": (
        keras.losses.mean_absolute_error,
        FLAT["number"],
        None,
        1,
    ),
    "own function": (absolute, VECTOR, None, 3),
    "own function, labels of one rank less": (
        absolute,
        FLAT["number"],
        None,
        1,
    ),
    "own function to a scalar": (scalar, VECTOR, None, 3),
    "own class": (Doubled(), VECTOR, None, 3),
    "lambda": (lambda y, p: keras.ops.mean((y - p) ** 4, -1), VECTOR, None, 3),
    "sum": (keras.losses.Huber(reduction="sum"), VECTOR, None, 3),
    "mean by weight": (
        keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        VECTOR,
        None,
        3,
    ),
    "crossentropy of a bit": ("crossentropy", BIT, "sigmoid", 1),
    "crossentropy of a flat bit": ("ce", BIT[:, 0], "sigmoid", 1),
    "crossentropy of a class": ("crossentropy", CLASS, "softmax", 3),
    "crossentropy of a flat class": ("CE", FLAT["class"], "softmax", 3),
    "crossentropy of one-hot": ("crossentropy", ONE_HOT, "softmax", 3),
    "sparse categorical": (
        "sparse_categorical_crossentropy",
        FLAT["class"],
        "softmax",
        3,
    ),
}


def trained(cls, case):
    loss, labels, activation, width = case
    keras.utils.set_random_seed(0)
    x = keras.Input((8,))
    z = networks.dense(4)(x)
    if cls is MGDAModel:
        z = SharedRepresentation()(z)
    outputs = {
        "a": keras.layers.Dense(width, activation=activation)(z),
        "b": keras.layers.Dense(1)(z),
    }
    model = cls(x, outputs)
    how = {"weighting": "uniform"} if cls is MGDAModel else {}
    model.compile(
        keras.optimizers.SGD(0.1),
        loss={"a": loss, "b": "mse"},
        loss_weights={"a": 0.5, "b": 2.0},
        run_eagerly=True,
        **how,
    )
    features = np.random.default_rng(1).normal(size=(B, 8))
    weights = np.linspace(0.0, 2.0, B)
    labels = {"a": labels, "b": NUMBER}
    logs = [
        model.train_on_batch(features, labels, weights, return_dict=True)
        for _ in range(2)
    ]
    logs.append(model.evaluate(features, labels, verbose=0, return_dict=True))
    return logs, model.get_weights()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.sample(3)
def test_a_loss_is_what_it_is_in_stock_keras(case):
    logs, weights = trained(MGDAModel, case)
    expected_logs, expected_weights = trained(keras.Model, case)
    for got, expected in zip(logs, expected_logs, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)
    for got, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["one loss", "names"])
def test_one_loss_for_every_output(how):
    model = MGDAModel(*networks.nested_outputs(SharedRepresentation))
    one = keras.losses.Huber()
    outputs = {"g": {"b": one, "a": one}, "c": one}
    given = one if how == "one loss" else outputs
    model.compile("sgd", loss=given, run_eagerly=True)
    assert model.task_names == ["g/b", "g/a", "c"]
    assert model.loss == given
    history = model.fit(*networks.data(model), verbose=0).history
    total = sum(history[f"{task}_loss"][0] for task in model.task_names)
    assert history["loss"][0] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_tasks_are_told_apart_by_name_in_any_order(order):
    """Outputs, losses, labels and task weights may each have their order."""
    found = []
    for labels_order in ("ab", "ba"):
        keras.utils.set_random_seed(0)
        x = keras.Input((8,))
        z = SharedRepresentation()(networks.dense(4)(x))
        outputs = networks.heads(z)
        model = MGDAModel(x, {t: outputs[t] for t in order})
        model.compile(
            keras.optimizers.SGD(1.0),
            loss={t: {"a": "mse", "b": "mae"}[t] for t in reversed(order)},
            weighting={"a": 0.25, "b": 4.0},
            run_eagerly=True,
        )
        features, _ = networks.data(model)
        y = {t: {"a": NUMBER, "b": BIT}[t] for t in labels_order}
        logs = model.train_on_batch(features, y, return_dict=True)
        found.append((logs["a_loss"], model.layers[1].kernel.numpy()))
        assert model.task_weights == {"a": 0.25, "b": 4.0}
        assert model.task_names == list(reversed(order))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_names_may_be_numbers():
    """As they may in stock Keras."""
    x = keras.Input((8,))
    z = SharedRepresentation()(networks.dense(4)(x))
    outputs = {0: networks.dense()(z), 1: {2: networks.dense()(z)}}
    model = MGDAModel(x, outputs)
    model.compile("sgd", loss={0: "mse", 1: {2: "mae"}}, run_eagerly=True)
    model.train_on_batch(np.ones((B, 8)), {0: NUMBER, 1: {2: BIT}})
    assert model.task_names == ["0", "1/2"]
    assert sum(model.task_weights.values()) == pytest.approx(1)


def test_output_that_is_no_task_needs_no_labels():
    structure = networks.with_output_that_is_no_task
    model = networks.mgda_model(structure, run_eagerly=True)
    x, y = networks.data(model)
    del y["aside"]
    assert model.task_names == ["b", "a"]
    before = model.get_weights()
    model.train_on_batch(x, y)
    changed = [
        not np.array_equal(old, v.numpy())
        for old, v in zip(before, model.weights, strict=True)
    ]
    assert sum(changed) == 6  # all but the two of the output "aside"
    assert list(model.predict(x, verbose=0)) == ["b", "aside", "a"]
