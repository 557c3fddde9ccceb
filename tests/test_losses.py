"""`PerColumn`: its values, its logs, its files, and what it refuses."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation, losses, metrics

PerColumn = losses.PerColumn


def model(m=3, activation="sigmoid", last=None, **outputs):
    x = keras.Input((4,))
    h = layers.Dense(5, activation="tanh")(x)
    z = SharedRepresentation()(h)
    last = last or layers.Dense(m, activation=activation)
    return MGDAModel(
        x, {"assays": last(z), **{n: f(z) for n, f in outputs.items()}}
    )


def data(b=8, m=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(b, 4)).astype("float32")
    y = rng.integers(0, 2, size=(b, m)).astype("float32")
    y[0], y[1] = 0, 1
    return x, y


def cross_entropy(y, p):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


# Values.


@pytest.mark.parametrize("weighted", [None, "examples", "labels"])
def test_a_column_is_a_mean_of_its_own(weighted):
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, (6, 3)), rng.uniform(0.1, 0.9, (6, 3))
    weight = {
        None: None,
        "examples": rng.uniform(size=6),
        "labels": rng.uniform(size=(6, 3)),
    }[weighted]
    factor = 1.0 if weight is None else weight.reshape(6, -1)
    want = (factor * cross_entropy(y, p)).mean(0)
    loss = PerColumn("binary_crossentropy", task_weights=[1, 2, 0])
    found = loss.of_columns(tf.constant(y), tf.constant(p), weight)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    total = loss(tf.constant(y), tf.constant(p), weight)
    assert float(total) == pytest.approx(want[0] + 2 * want[1], rel=1e-5)


@pytest.mark.parametrize("given", [3.0, [3.0, 1.0], {"a": 3.0}])
def test_a_positive_label_counts_more(given):
    loss = PerColumn("mse", ["a", "b"], positive_weights=given)
    found = loss.of_columns(tf.ones([4, 2]), tf.fill([4, 2], 0.5))
    want = [0.75, 0.75 if given == 3.0 else 0.25]
    np.testing.assert_allclose(found, want)
    found = loss.of_columns(tf.zeros([4, 2]), tf.fill([4, 2], 0.5))
    np.testing.assert_allclose(found, [0.25, 0.25])


def test_the_crossentropy_is_that_of_the_logits():
    """Far out, the probability is one, and its loss would be cut off."""
    logits = tf.constant([[60.0, -60.0]])
    p = keras.activations.sigmoid(logits)
    found = PerColumn("binary_crossentropy").of_columns(tf.zeros([1, 2]), p)
    np.testing.assert_allclose(found, [60.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    "loss", ["mse", keras.losses.Huber(0.2), keras.losses.mean_absolute_error]
)
def test_any_loss_of_single_values(loss):
    y, p = tf.constant([[0.0, 1.0]]), tf.constant([[0.3, 0.5]])
    each = [
        float(np.mean(keras.losses.get(loss)(y[:, k : k + 1], p[:, k : k + 1])))
        for k in range(2)
    ]
    np.testing.assert_allclose(PerColumn(loss).of_columns(y, p), each)


def test_masks_of_sequences_are_respected():
    p = tf.fill([2, 3, 2], 0.5)
    p._keras_mask = tf.constant([[True, True, False], [True, False, False]])
    y = tf.constant(np.arange(12.0).reshape(2, 3, 2), tf.float32)
    kept = np.array([[0, 1], [2, 3], [6, 7]])
    found = PerColumn("mae").of_columns(y, p)
    np.testing.assert_allclose(found, abs(kept - 0.5).mean(0), rtol=1e-6)


# In a model.


def test_names_and_weights_of_columns():
    mine = model(2, mine=layers.Dense(1))
    mine.compile(
        "sgd",
        {"assays": PerColumn("mse"), "mine": "mse"},
        weighting="uniform",
        run_eagerly=True,
    )
    names = ["assays/0", "assays/1", "mine"]
    assert mine.task_names == names
    x, y = data(m=2)
    mine.train_on_batch(x, {"assays": y, "mine": y[:, :1]})
    assert mine.task_weights == dict.fromkeys(names, 1.0)


@pytest.mark.parametrize("unlabelled", [None, "nan"])
def test_logs_are_of_all_labels(unlabelled):
    """Whatever the batches; the mean, the worst, and what was asked for."""
    mine = model()
    names = ["a", "b", "c"]
    mine.compile(
        keras.optimizers.SGD(0.0),
        PerColumn("binary_crossentropy", names, [1, 2, 3], log=["b"]),
        metrics=["accuracy", metrics.ColumnROCAUC(3, name="auc")],
        unlabelled=unlabelled,
        run_eagerly=True,
    )
    x, y = data(10)
    labelled = np.ones_like(y, bool)
    if unlabelled:
        labelled = np.random.default_rng(1).uniform(size=y.shape) < 0.6
        labelled[:2] = True
        y = np.where(labelled, y, np.nan)
    p = mine.predict_on_batch(x)["assays"]
    clean = np.nan_to_num(y)
    values = (cross_entropy(clean, p) * labelled).sum(0) / labelled.sum(0)
    want = {
        "loss": values @ [1, 2, 3],
        "assays_mean_loss": values.mean(),
        "assays_worst_loss": values.max(),
        "b_loss": values[1],
        "accuracy": ((p > 0.5) == clean)[labelled].mean(),
    }
    logs = mine.fit(x, {"assays": y}, batch_size=4, verbose=0).history
    assert set(logs) == {*want, "auc"}
    evaluated = mine.evaluate(
        x, {"assays": y}, batch_size=4, verbose=0, return_dict=True
    )
    for name, value in want.items():
        assert logs[name][0] == pytest.approx(value, rel=1e-5), name
        assert evaluated[name] == pytest.approx(value, rel=1e-5), name


def test_a_column_without_any_label_is_reported():
    mine = model()
    mine.compile(
        "sgd",
        PerColumn("binary_crossentropy", ["a", "b", "c"], log=["b"]),
        unlabelled="nan",
        run_eagerly=True,
    )
    x, y = data()
    y[:, 1] = np.nan
    kernel, bias = mine.layers[-1].get_weights()
    with pytest.warns(UserWarning, match="held no label of task 'b'"):
        mine.fit(x, {"assays": y}, verbose=0)
    after, bias_after = mine.layers[-1].get_weights()
    np.testing.assert_array_equal(after[:, 1], kernel[:, 1])
    assert (after != kernel)[:, [0, 2]].all()
    assert (bias_after != bias).tolist() == [True, False, True]
    with pytest.warns(UserWarning, match="no label of task 'b'"):
        logs = mine.evaluate(x, {"assays": y}, verbose=0, return_dict=True)
    assert np.isnan(logs["b_loss"])
    assert np.isfinite(logs["loss"])


def test_saved_with_the_model(tmp_path):
    mine = model()
    loss = PerColumn(
        keras.losses.BinaryFocalCrossentropy(gamma=3.0),
        ["a", "b", "c"],
        task_weights={"b": 2.0},
        positive_weights=[1, 2, 3],
        log=("c",),
    )
    mine.compile("adam", {"assays": loss}, unlabelled="nan", run_eagerly=True)
    x, y = data()
    mine.train_on_batch(x, {"assays": y})
    mine.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.task_names == ["a", "b", "c"]
    assert json.dumps(again.loss["assays"].get_config()) == json.dumps(
        loss.get_config()
    )
    again.run_eagerly = True
    for one in (mine, again):
        one.train_on_batch(x, {"assays": y})
    for a, b in zip(mine.weights, again.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-7)


# Bad input, each with its way out.


@pytest.mark.parametrize(
    "loss",
    [
        "categorical_crossentropy",
        "sparse_categorical_crossentropy",
        "dice",
        "cosine_similarity",
        lambda y, p: keras.ops.mean(abs(y - p), axis=[1, 2]),
        lambda y, p: (
            keras.ops.softmax(p, axis=1)[..., 0] - keras.ops.mean(y, -1)
        ),
        lambda y, p: keras.ops.mean(y, -1) + 0 * p[..., 0],
    ],
    ids=["softmax", "sparse", "dice", "cosine", "mean", "over", "constant"],
)
def test_a_loss_that_mixes_columns_is_refused(loss):
    with pytest.raises(ValueError, match="must have a value for each label"):
        PerColumn(loss)


def test_a_reduction_is_refused():
    with pytest.raises(ValueError, match="must have the reduction"):
        PerColumn(keras.losses.MeanSquaredError(reduction="sum"))


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="list of different names"):
        PerColumn("mse", ["a", "a"])
    with pytest.raises(ValueError, match="must name every column"):
        model().compile("sgd", PerColumn("mse", ["a", "b"]))
    beside = model(beside=layers.Dense(1))
    loss = {"assays": PerColumn("mse", ["beside", "b", "c"]), "beside": "mse"}
    with pytest.raises(ValueError, match=r"different names.*\['beside'\]"):
        beside.compile("sgd", loss)
    with pytest.raises(ValueError, match=r"different names.*\['assays'\]"):
        model().compile("sgd", PerColumn("mse", ["assays", "b", "c"]))
    with pytest.raises(ValueError, match="`log` must name tasks"):
        PerColumn("mse", ["a", "b"], log=["c"])
    model().compile("sgd", PerColumn("mse", ["a", "b", "c"], log=["c"]))


@pytest.mark.parametrize("argument", ["task_weights", "positive_weights"])
@pytest.mark.parametrize("given", [[1.0], {"c": 1.0}, [1.0, -1.0]])
def test_weights_that_do_not_fit_are_refused(argument, given):
    with pytest.raises(ValueError, match=f"`{argument}` must be 2 numbers"):
        PerColumn("mse", ["a", "b"], **{argument: given})


def test_an_unknown_last_axis_is_refused():
    class Unknown(layers.Layer):
        def call(self, z):
            return z

        def compute_output_shape(self, shape):
            return (shape[0], None)

    mine = model(last=Unknown())
    with pytest.raises(ValueError, match="must know the number of columns"):
        mine.compile("sgd", PerColumn("mse"))


def test_labels_of_another_shape_are_refused():
    x, y = data()
    for unlabelled in (None, "nan"):
        mine = model()
        mine.compile(
            "sgd", PerColumn("mse"), unlabelled=unlabelled, run_eagerly=True
        )
        for wrong in (y[:, :2], y[:, :1], y[:, 0]):
            with pytest.raises(ValueError, match="must have its shape"):
                mine.train_on_batch(x, {"assays": wrong})
        mine.train_on_batch(x, {"assays": y})


def test_the_last_layer_must_be_dense():
    class Own(layers.Dense):
        def call(self, inputs):
            return super().call(inputs)[..., ::-1]

    def tied():
        x = keras.Input((4,))
        z = SharedRepresentation()(layers.Dense(5)(x))
        last = layers.Dense(3)
        return MGDAModel(x, {"assays": last(z), "more": last(z * 2.0)})

    for last in (
        Own(3),
        layers.Dropout(0.1),
        keras.Sequential([layers.Dense(3), layers.Rescaling(2.0)]),
    ):
        with pytest.raises(ValueError, match="must end in a `Dense"):
            model(last=last).compile("sgd", PerColumn("mse"))
    with pytest.raises(ValueError, match="must be one of single values"):
        model(activation="softmax").compile("sgd", PerColumn("mse"))
    with pytest.raises(ValueError, match="must be called once"):
        tied().compile("sgd", {"assays": PerColumn("mse"), "more": "mse"})
    inner = keras.Sequential(
        [layers.Dense(4), layers.Dense(3), layers.Activation("sigmoid")]
    )
    model(last=inner).compile("sgd", PerColumn("mse"))
    h = keras.Input((5,))
    inner = keras.Model(h, layers.Dense(3)(layers.Dense(4)(h)))
    model(last=inner).compile("sgd", PerColumn("mse"))


def test_class_weights_are_positive_weights():
    x, y = data()
    mine = model()
    mine.compile("sgd", PerColumn("mse"), run_eagerly=True)
    with pytest.raises(ValueError, match="class_weight"):
        mine.fit(x, {"assays": y}, class_weight={0: 1.0, 1: 5.0}, verbose=0)
    loss = PerColumn("mse", positive_weights=5.0)
    mine.compile("sgd", loss, run_eagerly=True)
    mine.fit(x, {"assays": y}, verbose=0)


def test_a_model_with_a_call_of_its_own_is_refused():
    class Own(MGDAModel):
        def call(self, x):
            return {"assays": x}

    with pytest.raises(ValueError, match="must be functional"):
        Own().compile("sgd", {"assays": PerColumn("mse", ["a", "b"])})
