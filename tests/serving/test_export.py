"""What `export_saved_model` writes."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda import serving
from keras_mgda.serving import warmup
from keras_mgda.serving.operations import reached
from tests.support.serving.served_models import (
    MODELS,
    PARAMETERS,
    Function,
    answers_of,
    ask,
    mlp,
    normal,
    randomized,
    with_layer,
)


def test_a_version_is_complete(tmp_path):
    model, _ = mlp()
    published = keras_mgda.export_saved_model(
        model, tmp_path / "mtl", batching={"max_batch_size": 8}
    )
    assert published.path == tmp_path / "mtl" / "1"
    files = {
        file.relative_to(published.path).as_posix()
        for file in published.path.rglob("*")
        if file.is_file()
    }
    assert files >= {
        "saved_model.pb",
        "variables/variables.index",
        "assets.extra/tf_serving_warmup_requests",
        "batching_params.pbtxt",
    }
    assert published == serving.read(published.path)
    assert "predict_left(features: float32(None, 4))" in str(published)
    assert [child.name for child in (tmp_path / "mtl").iterdir()] == ["1"]


def test_every_signature_is_warmed_up_and_one_at_every_batch_size(tmp_path):
    model, rows = mlp()
    published = keras_mgda.export_saved_model(
        model,
        tmp_path / "mtl",
        warmup=rows,
        batching={"max_batch_size": 8, "allowed_batch_sizes": [1, 4, 8]},
    )
    requests = warmup.read(published.path / warmup.PATH)
    assert [(r.signature, r.num_rows) for r in requests] == [
        ("serving_default", 1),
        ("predict_left", 1),
        ("predict_right", 1),
        ("serving_default", 3),
        ("serving_default", 4),
        ("serving_default", 8),
    ]
    for request in requests:
        asked = request.inputs["features"]
        np.testing.assert_array_equal(
            asked[:3], rows["features"][: len(asked)][:3]
        )
        expected = answers_of(model, {"features": asked})
        for task, answer in request.answer.items():
            np.testing.assert_allclose(answer, expected[task], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int32", "string"])
def test_few_rows_are_stored_for_large_batches(dtype, tmp_path):
    """Two rows of 6,000 values are given: six are stored, and not 137."""
    x = keras.Input((6_000,), dtype=dtype, name="x")
    first = Function(lambda x: x[:, :1])(x)
    model = keras.Model(x, {"a": first, "b": first})
    rows = np.arange(12_000).reshape(2, -1).astype(dtype.replace("string", "S"))
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        warmup=rows,
        batching={"max_batch_size": 64, "allowed_batch_sizes": [64]},
    )
    assert published.weights_bytes == 0
    stored = warmup.read(published.path / warmup.PATH)
    assert [request.num_rows for request in stored] == [1, 1, 1, 3, 64]
    size = published.total_bytes - published.graph_bytes
    assert size < 10 * rows[:1].nbytes
    assert len({row.tobytes() for row in stored[-1].inputs["x"][3:]}) == 1


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "NaN"])
def test_a_model_that_wants_more_of_a_row_gets_real_ones(refused, tmp_path):
    """Large batches have real rows only where others are not answered."""

    def spread(x):
        width = tf.reduce_max(x, 1, keepdims=True) - tf.reduce_min(
            x, 1, keepdims=True
        )
        if refused:
            tf.debugging.assert_greater(width, 0.0)
        return x * width / width

    model = with_layer(spread)
    rows = normal(2, 4)
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        warmup=rows,
        preprocess=tf.function(
            spread,
            input_signature=[tf.TensorSpec([None, 4], name="features")],
        ),
        batching={"max_batch_size": 8, "allowed_batch_sizes": [8]},
    )
    largest = warmup.read(published.path / warmup.PATH)[-1]
    np.testing.assert_array_equal(
        largest.inputs["features"], np.tile(rows, (4, 1))
    )


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.sample(4)
def test_weights_are_stored_once(name, published):
    model, _, written = published(name)
    size = sum(variable.numpy().nbytes for variable in model.variables)
    # Dropout's generator of seeds is not needed to answer.
    assert written.weights_bytes <= size
    assert written.weights_bytes > 0.9 * size


def test_the_artifact_is_as_large_as_its_weights(tmp_path):
    features = keras.Input((512,), name="features")
    z = layers.Dense(1024)(features)
    model = keras.Model(features, {t: layers.Dense(9)(z) for t in "abc"})
    published = keras_mgda.export_saved_model(model, tmp_path)
    size = sum(variable.numpy().nbytes for variable in model.variables)
    assert published.total_bytes - published.graph_bytes < 1.1 * size
    model.export(tmp_path / "keras", verbose=False)
    assert serving.read(tmp_path / "keras").weights_bytes == 2 * size


def test_outputs_are_float32_under_mixed_precision(tmp_path):
    model, _ = MODELS["mixed_float16"]()
    published = keras_mgda.export_saved_model(model, tmp_path)
    for signature in published.signatures.values():
        for spec in signature.outputs.values():
            assert spec.dtype == tf.float32


def test_half_precision_inputs_are_float32(tmp_path):
    features = keras.Input((4,), dtype="float16", name="features")
    model = keras.Model(features, {"a": layers.Dense(1)(features)})
    published = keras_mgda.export_saved_model(model, tmp_path)
    declared = published.signatures["serving_default"].inputs
    assert declared["features"].dtype == tf.float32


def test_a_task_takes_only_the_inputs_that_it_reads(tmp_path):
    model, rows = MODELS["two_inputs"]()
    published = keras_mgda.export_saved_model(model, tmp_path, warmup=rows)
    assert {n: set(s.inputs) for n, s in published.signatures.items()} == {
        "serving_default": {"image", "bypass"},
        "predict_with_bypass": {"image", "bypass"},
        "predict_without": {"image"},
    }


def test_chosen_tasks_only(tmp_path):
    model, rows = MODELS["tree"]()
    published = keras_mgda.export_saved_model(
        model, tmp_path, tasks=["near_2", "far"], warmup=rows
    )
    assert set(published.signatures) == {
        "serving_default",
        "predict_near_2",
        "predict_far",
    }
    found = ask(published, "serving_default", rows)
    expected = answers_of(model, rows)
    assert found.keys() == {"near_2", "far"}
    np.testing.assert_allclose(found["far"], expected["far"], rtol=1e-5)


def test_weights_of_tasks_left_out_are_not_stored(tmp_path):
    model, _ = mlp()
    published = keras_mgda.export_saved_model(model, tmp_path, tasks=["right"])
    assert published.weights_bytes == 4 * (4 * 8 + 8 + 8 * 1 + 1)


def test_named_groups_of_tasks(tmp_path):
    model, rows = MODELS["tree"]()
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        groups={"predict_near": ["near_2", "near_1"], "all-of-it": ["far"]},
    )
    expected = answers_of(model, rows)
    groups = {"predict_near": ["near_1", "near_2"], "all_of_it": ["far"]}
    for name, tasks in groups.items():
        assert list(published.signatures[name].outputs) == tasks
        found = ask(published, name, rows)
        assert found.keys() == set(tasks)
        for task in tasks:
            np.testing.assert_allclose(found[task], expected[task], rtol=1e-5)


def test_a_group_takes_the_inputs_that_its_tasks_read(tmp_path):
    model, _ = MODELS["two_inputs"]()
    published = keras_mgda.export_saved_model(
        model, tmp_path, groups={"some": ["without"]}
    )
    assert set(published.signatures["some"].inputs) == {"image"}


def test_chosen_columns_are_served(tmp_path):
    """By one signature, which the next version has after a reload, too."""
    inputs = keras.Input((4,), name="features")
    z = keras_mgda.SharedRepresentation()(layers.Dense(5)(inputs))
    outputs = {"assays": layers.Dense(3)(z), "other": layers.Dense(1)(z)}
    model = keras_mgda.MGDAModel(inputs, outputs)
    per_column = keras_mgda.losses.PerColumn("mse", ["NR-AR", "b", "SR-p53"])
    model.compile("sgd", {"assays": per_column, "other": "mse"})
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    rows = {"features": normal(3, 4)}
    expected = model.predict(rows["features"], verbose=0)["assays"]
    for one in (model, again):
        published = keras_mgda.export_saved_model(
            one,
            tmp_path / "mtl",
            tasks=["SR-p53", "assays", "NR-AR"],
            groups={"nuclear": ["NR-AR", "SR-p53"]},
        )
        found = ask(published, "nuclear", rows)
        assert found.keys() == {"NR_AR", "SR_p53"}
        for name, column in {"NR_AR": [0], "SR_p53": [2]}.items():
            np.testing.assert_allclose(
                found[name], expected[:, column], rtol=1e-5
            )
        found = ask(published, "serving_default", rows)
        assert found.keys() == {"SR_p53", "assays", "NR_AR"}
        np.testing.assert_allclose(found["assays"], expected, rtol=1e-5)
    published = keras_mgda.export_saved_model(model, tmp_path / "plain")
    assert set(published.signatures["serving_default"].outputs) == {
        "assays", "other",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"among those.*Received: \['SR'\]"):
        keras_mgda.export_saved_model(model, tmp_path / "no", tasks=["SR"])


@pytest.mark.parametrize(
    "layer",
    [layers.LSTM, layers.GRU, lambda n: layers.Bidirectional(layers.LSTM(n))],
)
@pytest.mark.sample(1)
def test_recurrent_layers_trained_on_a_gpu_are_served_on_any_device(
    layer, tmp_path, monkeypatch
):
    """Keras asks for GPUs where it chooses; so here one is seen."""
    x = keras.Input((5, 3), name="x")
    z = layer(4)(x)
    model = randomized(keras.Model(x, {t: layers.Dense(2)(z) for t in "ab"}))
    rows = {"x": normal(8, 5, 3)}
    expected = answers_of(model, rows)
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind=None: [kind]
    )

    def operations():
        graph = (
            tf.function(model)
            .get_concrete_function(tf.TensorSpec([None, 5, 3]))
            .graph
        )
        return {operation.type for operation in graph.get_operations()}

    assert "CudnnRNNV3" in operations()
    published = keras_mgda.export_saved_model(model, tmp_path)
    nodes, _ = reached(published)
    assert not {node.op for node in nodes if "Cudnn" in node.op}
    found = ask(published, "predict_a", rows)
    np.testing.assert_allclose(found["a"], expected["a"], rtol=1e-5)
    assert "CudnnRNNV3" in operations(), "the model is left as it was"


def test_a_model_in_training_mode_is_served_out_of_it(tmp_path):
    """`call(..., training=True)`, which `model.export()` takes at its word."""
    model, rows = MODELS["subclassed"]()
    published = keras_mgda.export_saved_model(
        model, tmp_path, warmup=rows["features"]
    )
    found = ask(published, "serving_default", rows)
    np.testing.assert_allclose(found["a"], answers_of(model, rows)["a"], 1e-5)
    assert np.abs(model(rows["features"])["a"] - found["a"]).max() > 1


def test_a_subclassed_model_takes_its_inputs_from_a_preprocess(tmp_path):
    model, rows = MODELS["subclassed"]()
    spec = tf.TensorSpec([None, 4], tf.float32, name="measurements")
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        preprocess=tf.function(lambda x: x * 2.0, input_signature=[spec]),
    )
    found = ask(published, "predict_a", {"measurements": rows["features"] / 2})
    np.testing.assert_allclose(
        found["a"], answers_of(model, rows)["a"], rtol=1e-5
    )


def test_a_trained_model_of_ours_is_served(tmp_path):
    image = keras.Input((6, 6, 1), name="image")
    z = layers.Dense(8, activation="relu")(layers.Flatten()(image))
    z = keras_mgda.SharedRepresentation()(z)
    heads = {"left": layers.Dense(3)(z), "right": layers.Dense(3)(z)}
    model = keras_mgda.MGDAModel(image, heads)
    model.compile(
        "adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    rows = {"image": normal(16, 6, 6, 1)}
    classes = np.arange(16) % 3
    model.fit(
        rows["image"], {"left": classes, "right": classes[::-1]}, verbose=0
    )
    published = keras_mgda.export_saved_model(model, tmp_path)
    found = ask(published, "serving_default", rows)
    for task, expected in answers_of(model, rows).items():
        np.testing.assert_allclose(found[task], expected, atol=1e-6)


def test_keras_can_load_it_as_a_layer(tmp_path):
    model, rows = mlp()
    published = keras_mgda.export_saved_model(model, tmp_path)
    layer = keras.layers.TFSMLayer(
        str(published.path), call_endpoint="serving_default"
    )
    found = layer(rows["features"])
    for task, expected in answers_of(model, rows).items():
        np.testing.assert_allclose(found[task], expected, atol=1e-6)


def test_the_model_is_left_as_it_was(tmp_path):
    model, rows = mlp()
    model.compile("adam", loss="mse", run_eagerly=True)
    before = [variable.numpy() for variable in model.variables]
    keras_mgda.export_saved_model(model, tmp_path)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    y = answers_of(model, rows)
    assert model.fit(rows["features"], y, verbose=0)
    second = keras_mgda.export_saved_model(model, tmp_path)
    found = ask(second, "serving_default", rows)
    np.testing.assert_allclose(
        found["left"], answers_of(model, rows)["left"], atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
def test_functions_that_run_eagerly_are_served_as_graphs(tmp_path):
    """As while debugging: the signatures share their functions all the same."""
    model, rows = mlp()
    tf.config.run_functions_eagerly(True)
    try:
        published = keras_mgda.export_saved_model(model, tmp_path)
    finally:
        tf.config.run_functions_eagerly(False)
    functions = published.meta_graph.graph_def.library.function
    assert sum("encoder_of" in f.signature.name for f in functions) == 1
    found = ask(published, "serving_default", rows)
    np.testing.assert_allclose(
        found["left"], answers_of(model, rows)["left"], atol=1e-6
    )


MIRRORED = """
import sys
import numpy as np, keras, tensorflow as tf
import keras_mgda
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    x = keras.Input((4,), name="x")
    z = keras.layers.BatchNormalization()(keras.layers.Dense(3)(x))
    heads = {t: keras.layers.Dense(2)(z) for t in "ab"}
    model = keras.Model(x, heads)
    model.compile("adam", loss="mse")
y = {t: np.ones((8, 2)) for t in "ab"}
model.fit(np.random.rand(8, 4), y, batch_size=4, verbose=0)
print(keras_mgda.export_saved_model(model, sys.argv[1]))
"""


@pytest.mark.slow
def test_a_model_on_two_replicas_is_served(tmp_path):
    subprocess.run([sys.executable, "-c", MIRRORED, tmp_path], check=True)
    published = serving.read(tmp_path / "1")
    assert not serving.problems(published)
    assert published.weights_bytes == 4 * (4 * 3 + 3 + 4 * 3 + 2 * (3 * 2 + 2))
