"""What would break behind TensorFlow Serving is found in the files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from served_models import MODELS, mlp, only

import keras_mgda
from keras_mgda import serving
from keras_mgda.serving import checks, warmup

VECTOR = tf.TensorSpec([None, 4], tf.float32, name="features")


def save(path, spec=VECTOR, name="serving_default", **outputs):
    """Saves functions of one input, with requests at two batch sizes."""

    def signature(tensor):
        return {key: function(tensor) for key, function in outputs.items()}

    module = tf.Module()
    module.kept = [f for f in outputs.values() if isinstance(f, keras.Layer)]
    concrete = tf.function(signature).get_concrete_function(spec)
    tf.saved_model.save(module, str(path), signatures={name: concrete})
    shape = [4 if size is None else size for size in spec.shape[1:]]
    rows = np.ones((3, *shape), spec.dtype.as_numpy_dtype)
    ask(path, *({spec.name: rows[:size]} for size in (1, 3)))
    return path


def ask(path, *inputs, signature="serving_default", answer=None):
    requests = [warmup.Request(signature, i, answer or {}) for i in inputs]
    warmup.write(path / warmup.PATH, "mtl", requests)


def problems(path):
    return "\n".join(serving.problems(serving.read(path)))


def double(x):
    return 2 * x


def test_a_plain_saved_model_passes(tmp_path):
    path = save(tmp_path / "1", twice=double)
    assert serving.problems(serving.read(path)) == []


@pytest.mark.parametrize(
    "name", ["convolutional", "lookups", "mixed_float16", "subclassed"]
)
def test_what_keras_exports_is_found_wanting(name, tmp_path):
    model, _ = MODELS[name]()
    model.export(tmp_path / "1", verbose=False)
    assert "Weights must be stored once" in problems(tmp_path / "1")


def test_weights_stored_twice_are_found(tmp_path):
    model, _ = mlp()
    model.export(tmp_path / "1", verbose=False)
    found = problems(tmp_path / "1")
    size = sum(variable.numpy().nbytes for variable in model.variables)
    assert f"{2 * size} bytes of weights" in found
    assert f"the signatures read {size}." in found


def test_no_default_signature(tmp_path):
    path = save(tmp_path / "1", name="other", twice=double)
    assert "'serving_default'. Found: ['other']" in problems(path)


@pytest.mark.parametrize("name", ["keras_tensor_7", "args_0", "input_layer_2"])
def test_an_input_named_by_nobody(name, tmp_path):
    spec = tf.TensorSpec([None, 4], tf.float32, name=name)
    path = save(tmp_path / "1", spec, twice=double)
    assert f"input {name!r}: it must have a name" in problems(path)


def test_an_output_named_by_nobody(tmp_path):
    path = save(tmp_path / "1", output_0=double)
    assert "output 'output_0': it must have a name" in problems(path)


def test_a_batch_size_in_the_signature(tmp_path):
    spec = tf.TensorSpec([8, 4], tf.float32, name="features")
    found = problems(save(tmp_path / "1", spec, twice=double))
    assert "input 'features': its first dimension must be any" in found
    assert "output 'twice': its first dimension must be any" in found


def test_a_batch_size_in_the_graph(tmp_path):
    def first_rows(x):
        return tf.gather(tf.reshape(x, [3, 4]), tf.range(tf.shape(x)[0]))

    path = save(tmp_path / "1", a=first_rows)
    found = problems(path)
    assert "serving_default at batch size 1: it must answer. Found: " in found


def test_a_scalar_output(tmp_path):
    path = save(tmp_path / "1", mean=tf.reduce_mean)
    assert "output 'mean': its first dimension must be the" in problems(path)


def test_an_output_of_another_number_of_rows(tmp_path):
    path = save(tmp_path / "1", flat=lambda x: tf.reshape(x, [-1]))
    found = problems(path)
    assert "output 'flat' of serving_default at batch size 1" in found
    assert "a row for each row of the request. Found: shape (4,)" in found


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_in_an_answer(dtype, tmp_path):
    path = save(tmp_path / "1", half=lambda x: tf.cast(x, dtype))
    assert f"REST has no half precision. Found: {dtype.name}" in problems(path)


def test_a_function_for_xla_only(tmp_path):
    compiled = tf.function(double, jit_compile=True)
    found = problems(save(tmp_path / "1", twice=lambda x: compiled(x) + 1.0))
    assert "only XLA can run" in found
    assert "inference_double" in found


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.numpy_function(double, [x], tf.float32),
        lambda x: tf.numpy_function(double, [x], tf.float32, stateful=False),
        lambda x: tf.py_function(double, [x], tf.float32),
    ],
)
def test_a_python_function(function, tmp_path):
    path = save(tmp_path / "1", a=lambda x: tf.reshape(function(x), (-1, 4)))
    assert "TensorFlow Serving has no Python. Found: " in problems(path)


def test_a_python_function_in_a_loop_in_a_function(tmp_path):
    def row(x):
        return tf.reshape(tf.numpy_function(double, [x], tf.float32), [4])

    nested = tf.function(lambda x: tf.map_fn(row, x))
    path = save(tmp_path / "1", a=nested)
    assert "TensorFlow Serving has no Python. Found: " in problems(path)


def test_state_that_a_request_changes(tmp_path):
    counter = tf.Variable(0.0)

    def counted(x):
        return x + counter.assign_add(1.0)

    module = tf.Module()
    module.counter = counter
    concrete = tf.function(lambda x: {"a": counted(x)}).get_concrete_function(
        VECTOR
    )
    path = tmp_path / "1"
    tf.saved_model.save(module, path, signatures={"serving_default": concrete})
    assert "must not depend on earlier requests" in problems(path)


def test_nothing_to_run(tmp_path):
    path = save(tmp_path / "1", twice=double)
    (path / warmup.PATH).unlink()
    assert "must hold requests to predict" in problems(path)


def test_a_signature_that_is_not_run(tmp_path):
    path = save(tmp_path / "1", twice=double)
    ask(path, {"features": np.ones((3, 4), "float32")})
    found = problems(path)
    assert "at two batch sizes. Found: requests of batch sizes [3]" in found


@pytest.mark.parametrize(
    "inputs",
    [
        {"features": np.ones((2, 5), "float32")},
        {"other": np.ones((2, 4), "float32")},
        {"features": np.full((2, 4), b"text", object)},
    ],
    ids=["shape", "name", "dtype"],
)
def test_a_request_that_is_not_answered(inputs, tmp_path):
    path = save(tmp_path / "1", twice=double)
    ask(path, inputs)
    assert "at batch size 2: it must answer. Found: " in problems(path)


def test_an_answer_that_is_no_number(tmp_path):
    path = save(tmp_path / "1", log=lambda x: tf.math.log(-x))
    assert "it must be a number. Found: NaN" in problems(path)


def test_an_answer_that_is_not_the_models(tmp_path):
    path = save(tmp_path / "1", twice=double)
    rows = np.ones((2, 4), "float32")
    ask(path, {"features": rows}, answer={"twice": 2.1 * rows})
    assert "a difference of 4.8e-02, relative" in problems(path)


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([1.0, 100.0], [1.0, 100.0], 0.0),
        ([1.0, 101.0], [1.0, 100.0], 1e-2),
        ([2.0, 100.0], [1.0, 100.0], 1e-2),
        ([0.0, 0.0], [0.0, 1e-9], 0.0),
        ([-np.inf, 1.0], [-np.inf, 1.0], 0.0),
        ([0.0, 1.0], [-np.inf, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_the_difference_of_numbers(found, expected, difference):
    np.testing.assert_allclose(
        checks.difference(np.array(found), np.array(expected)),
        difference,
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_difference_of_what_is_no_number():
    classes = np.arange(1000)
    assert checks.difference(classes, classes) == 0
    ties = np.where(classes < 10, 0, classes)
    assert checks.difference(ties, classes) == 0
    wrong = np.where(classes < 500, -1, classes)
    assert checks.difference(wrong, classes) == pytest.approx(0.49)
    words = np.array([b"cat", b"dog"], object)
    assert checks.difference(words, words) == 0
    assert checks.difference(words, words[::-1]) > 0.9
    assert checks.difference(words, classes) == np.inf


def test_a_difference_to_nan_is_a_problem(tmp_path):
    path = save(tmp_path / "1", twice=double)
    rows = np.ones((2, 4), "float32")
    ask(path, {"features": rows}, answer={"twice": rows * np.nan})
    assert "it must be what the Keras model answers" in problems(path)


def test_half_precision_is_compared_loosely(tmp_path):
    single = serving.read(save(tmp_path / "1", twice=double))
    half = serving.read(
        save(
            tmp_path / "2",
            twice=lambda x: tf.cast(double(tf.cast(x, tf.float16)), tf.float32),
        )
    )
    assert checks.tolerance(half) > 10 * checks.tolerance(single)


def test_each_output_is_told_once(tmp_path):
    path = save(tmp_path / "1", log=lambda x: tf.math.log(-x), twice=double)
    assert problems(path).count("NaN") == 1


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xff"], ids=["none", "empty", "garbage"]
)
def test_a_folder_without_a_saved_model(content, tmp_path):
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"folder with a saved_model.pb|must be a SavedModel|tagged",
    ):
        serving.read(tmp_path)


def test_the_sizes_are_those_of_the_files(tmp_path):
    model, rows = mlp()
    published = keras_mgda.export_saved_model(
        model, tmp_path, warmup=only(rows)
    )
    sizes = {
        file.relative_to(published.path).as_posix(): file.stat().st_size
        for file in published.path.rglob("*")
        if file.is_file()
    }
    assert published.graph_bytes == sizes["saved_model.pb"]
    assert published.total_bytes == sum(sizes.values())
    assert published.weights_bytes == sum(
        variable.numpy().nbytes for variable in model.variables
    )


def test_a_version_without_its_index_is_refused(tmp_path):
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path)
    (published.path / "variables" / "variables.index").unlink()
    with pytest.raises(ValueError, match="An exported model has weights"):
        serving.read(published.path)


def test_a_version_with_half_of_its_weights_does_not_load(tmp_path):
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path)
    (data,) = (published.path / "variables").glob("variables.data*")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    assert "It must load. Found: " in problems(published.path)
    data.unlink()
    assert "It must load. Found: " in problems(published.path)
