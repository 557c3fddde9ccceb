import json
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda import MGDAModel, SharedRepresentation
from keras_mgda.weightings import MGDA, Fixed
from tests.support import networks
from tests.support.weighting_cases import STATEFUL, state

# What a file has to carry: each says or remembers something of its own.
CASES = {
    "mgda": {"gradients": "parameters"},
    "uniform": {"weighting": "uniform"},
    "loss+, tasks": {"weighting": MGDA("loss+", total="tasks")},
    "in order": {"weighting": [0.5, 2.0]},
    "by name": {"weighting": {"a": 0.5, "b": 2.0}, "unlabelled": "nan"},
    "verified": {"gradients": "verified", "verify": True, "max_corrections": 2},
    "kept": {"weighting": "famo", "update_every": 2},
}
STATES = {name: {"weighting": make()} for name, make in STATEFUL.items()}
# That of the table is one of three tasks.
STATES["fixed by schedule"] = {
    "weighting": Fixed(
        {"a": 0.5, "b": keras.optimizers.schedules.InverseTimeDecay(2.0, 3, 1)}
    )
}
each_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CASES.items()]
)


@keras.saving.register_keras_serializable("keras_mgda_tests")
def cubic(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 3, axis=-1)


def compiled(**kwargs):
    keras.utils.set_random_seed(0)
    model = MGDAModel(*networks.plain(SharedRepresentation))
    reduction = None if "unlabelled" in kwargs else "sum"
    of_a = keras.losses.MeanSquaredError(reduction or "sum_over_batch_size")
    model.compile(
        keras.optimizers.Adam(0.01),
        loss={"a": of_a, "b": cubic},
        loss_weights={"a": 2.0, "b": 1.0},
        metrics={"a": ["mae"]},
        run_eagerly=True,
        **kwargs,
    )
    return model


def step(model, seed=0, steps=3):
    for i in range(steps):
        logs = model.train_on_batch(
            *networks.data(model, seed=10 * seed + i), return_dict=True
        )
    return logs


def assert_same(model, other):
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def settings(model):
    config = model.get_compile_config()
    del config["optimizer"], config["run_eagerly"]  # which is set anew here
    return config


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=name,
            marks=()
            if name in (*CASES, "cr_mogm of famo", "gradvac")
            else pytest.mark.slow,
        )
        for name, case in (CASES | STATES).items()
    ],
)
@pytest.mark.sample(3)
def test_training_that_is_resumed_is_training_that_went_on(case, tmp_path):
    model = compiled(**case)
    fresh = state(model)
    step(model)
    remembers = model.weighting.remembers or "update_every" in case
    assert remembers == any(
        (a != b).any() for a, b in zip(state(model), fresh, strict=True)
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert settings(loaded) == settings(model)
    assert loaded.task_names == model.task_names
    loaded.run_eagerly = True
    assert step(loaded, seed=1) == step(model, seed=1)
    assert_same(loaded, model)
    assert loaded.task_weights == model.task_weights
    for a, b in zip(state(loaded), state(model), strict=True):
        np.testing.assert_array_equal(a, b)


@each_case
@pytest.mark.sample(3)
def test_clone_keeps_how_the_tasks_weigh(case):
    model = compiled(**case)
    clone = keras.models.clone_model(model)
    assert type(clone) is type(model)
    assert settings(clone) == settings(model)
    clone.set_weights(model.get_weights())
    clone.run_eagerly = True
    assert step(clone) == step(model)
    assert_same(clone, model)


def test_copies_and_pickles():
    model = compiled(weighting=[0.5, 2.0])
    step(model)
    copy = pickle.loads(pickle.dumps(model))
    copy.run_eagerly = True
    assert settings(copy) == settings(model)
    step(copy, seed=1)
    step(model, seed=1)
    assert_same(copy, model)


def test_configs_are_json():
    model = compiled(weighting={"a": 1.0, "b": 2.0})
    config = json.loads(json.dumps(model.get_config()))
    again = type(model).from_config(config)
    compile_config = json.loads(json.dumps(model.get_compile_config()))
    again.compile_from_config(compile_config)
    assert settings(again) == settings(model)
    uncompiled = MGDAModel(*networks.plain(SharedRepresentation))
    assert uncompiled.get_compile_config() == {}


@pytest.mark.parametrize("name", ["mgda", "kept"])
def test_weights_files_fit_the_plain_model_both_ways(name, tmp_path):
    model = compiled(**CASES[name])
    stock = networks.stock_model(networks.plain)
    step(model)
    file = tmp_path / "mgda.weights.h5"
    model.save_weights(file)
    marked = MGDAModel.from_model(stock, stock.layers[1].name)
    marked.load_weights(file)
    assert_same(stock, model)

    plain = networks.stock_model(networks.plain)
    file = tmp_path / "plain.weights.h5"
    plain.save_weights(file)
    model.load_weights(file)
    assert_same(model, plain)


@pytest.mark.parametrize(
    "structure",
    [networks.plain, networks.nested, networks.tied_embedding],
)
@pytest.mark.sample(1)
def test_keras_files_fit_the_plain_model_both_ways(structure, tmp_path):
    model = networks.mgda_model(structure, "adam")
    x, y = networks.data(model)
    model.train_on_batch(x, y)
    model.save(tmp_path / "mgda.keras")
    # The plain model: around the layers of a loaded one, or its weights only.
    loaded = keras.models.load_model(tmp_path / "mgda.keras")
    around = keras.Model(loaded.input, loaded.output)
    assert_answers_as(around, model, x)
    stock = networks.stock_model(structure)
    stock.load_weights(tmp_path / "mgda.keras")
    assert_answers_as(stock, model, x)

    around.save(tmp_path / "plain.keras")
    plain = keras.models.load_model(tmp_path / "plain.keras")
    assert type(plain) is not type(model)
    assert_answers_as(plain, model, x)
    again = MGDAModel.from_model(plain)
    again.compile("adam", loss=networks.losses(again.output))
    assert np.isfinite(again.train_on_batch(x, y)).all()
    assert_answers_as(plain, again, x)  # they share their layers


def assert_answers_as(model, expected, x):
    for a, b in zip(
        keras.tree.flatten(model(x, training=False)),
        keras.tree.flatten(expected(x, training=False)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@keras.saving.register_keras_serializable("keras_mgda_tests")
class Sized(MGDAModel):
    """Subclassed, with a config of its own."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.encoder = networks.dense(width)
        self.shared = SharedRepresentation()
        self.a, self.b = networks.dense(1), networks.dense(1)

    def build(self, shape):
        self.encoder.build(shape)
        for head in (self.a, self.b):
            head.build((None, self.width))
        self.built = True

    def call(self, x):
        z = self.shared(self.encoder(x))
        return {"a": self.a(z), "b": self.b(z)}

    def get_config(self):
        return super().get_config() | {"width": self.width}


def test_subclassed_model_is_saved_and_cloned(tmp_path):
    model = Sized(3)
    model.compile(
        "adam",
        loss={"a": "mse", "b": "mae"},
        weighting=MGDA("l2"),
        gradients="parameters",
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 8)), {t: rng.normal(size=(6, 1)) for t in "ab"}
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert settings(loaded) == settings(model)
    for each in (loaded, model):
        each.train_on_batch(x, y)
    assert_same(loaded, model)
    assert settings(keras.models.clone_model(model)) == settings(model)


def test_export_holds_nothing_of_the_training(tmp_path):
    model = compiled()
    step(model)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    x, _ = networks.data(model)
    served, expected = exported.serve(x), model.predict(x, verbose=0)
    for task in ("a", "b"):
        np.testing.assert_allclose(served[task], expected[task], atol=1e-6)
    graph = exported.signatures["serving_default"].graph.as_graph_def()
    nodes = [
        node
        for function in (graph, *graph.library.function)
        for node in getattr(function, "node", getattr(function, "node_def", ()))
    ]
    ops = {node.op for node in nodes}
    assert not {op for op in ops if "While" in op or "Assign" in op}
    assert not [n for n in nodes if "_gradient_op_type" in n.attr]
    assert ops & {"MatMul"}
