"""What would break behind TensorFlow Serving is found in the files."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mgda
from keras_mgda import serving
from keras_mgda.serving import checks, warmup
from tests.support.serving.saved_functions import ask, double, problems, save
from tests.support.serving.served_models import MODELS, mlp


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
    path = save(tmp_path / "1", a=lambda x: first_rows(x, 3))
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


@pytest.mark.parametrize(
    "dtype", [tf.float16, tf.bfloat16, tf.uint16, tf.complex64]
)
def test_an_answer_of_a_dtype_that_rest_does_not_know(dtype, tmp_path):
    path = save(tmp_path / "1", other=lambda x: tf.cast(x, dtype))
    assert f"REST must know its dtype. Found: {dtype.name}" in problems(path)


def test_a_batch_size_in_one_signature_of_two(tmp_path):
    module = tf.Module()
    signatures = {
        name: tf.function(lambda x: {"y": 2 * x}).get_concrete_function(
            tf.TensorSpec([size, 4], tf.float32, name="x")
        )
        for name, size in (("a", 8), ("b", 8), ("serving_default", None))
    }
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    found = problems(tmp_path)
    assert found.count("input 'x': its first dimension must be any") == 1
    assert "Found: shape (8, 4)" in found


def test_nothing_to_run(tmp_path):
    path = save(tmp_path / "1", twice=double)
    (path / warmup.PATH).unlink()
    assert "must hold requests to predict" in problems(path)


def test_a_signature_that_is_not_run(tmp_path):
    path = save(tmp_path / "1", twice=double)
    ask(path, {"features": np.ones((3, 4), "float32")}, signature="other")
    found = problems(path)
    assert "Every signature must be run. Found: none for ['serving_def" in found


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_asked_at_one_batch_size_is_run_at_another(size, tmp_path):
    """So that a batch which is baked in is found from one stored row."""
    path = save(
        tmp_path / "1", twice=double, baked=lambda x: first_rows(x, size)
    )
    ask(path, {"features": np.ones((size, 4), "float32")})
    other = {1: 3, 3: 1}[size]
    assert f"serving_default at batch size {other}: it must" in problems(path)


def first_rows(x, size):
    return tf.gather(tf.reshape(x, [size, 4]), tf.range(tf.shape(x)[0]))


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
    assert (
        "it must be a number. Found: NaN for the row {'features': "
        "'[1. 1. 1. 1.]'}. Look at the weights, or give rows of"
    ) in problems(path)
    rows = np.ones((1, 4), "float32")
    ask(path, {"features": rows}, answer={"log": rows})
    assert "Keras answers a number: look for layers" in problems(path)
    ask(path, {"features": rows}, answer={"log": rows * np.nan})
    assert "Keras answers NaN to it too: look at the weights" in problems(path)


def test_the_row_that_is_no_number_is_shown(tmp_path):
    path = save(tmp_path / "1", log=tf.math.log)
    rows = np.float32([[1, 1, 1, 1], [1, -2, 3, 4]])
    ask(path, {"features": rows})
    assert "{'features': '[ 1. -2.  3.  4.]'}" in problems(path)


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
        ([2.0, 100.0], [1.0, 100.0], 0.25),
        ([2.0, 101.0], [1.0, 100.0], 1e-2),
        # What cancels has the rounding of the others.
        ([2e-6, 3.0, 4.0], [1e-6, 3.0, 4.0], 1e-6),
        ([0.1, 1.1e6, 3e6], [0.2, 1e6, 3e6], 0.05),
        ([1e-7] * 9 + [9.0], [0.0] * 9 + [9.0], 1e-7),
        # What masks a class hides none of the others, nor their number.
        ([1.5, 2.0, -1e9], [1.0, 2.0, -1e9], 0.125),
        ([1.5, -1e9, -1e9, -1e9], [1.0, -1e9, -1e9, -1e9], 0.125),
        ([1.5, 2.5, 2.0, -1e4], [1.0, 2.0, 2.5, -1e4 + 1], 0.5 / 9),
        # All may be small.
        ([1e-9, 2e-9], [1e-9, 1e-9], 1.0),
        ([0.0, 0.0], [0.0, 1e-30], 1.0),
        ([0.0, 1e-9], [0.0, 0.0], np.inf),
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


def test_the_weights_of_another_model_are_found(tmp_path):
    features = keras.Input((4,), name="features")
    logits = keras.layers.Dense(2)(features)
    mask = tf.constant([0.0, -1e9])
    heads = {"masked": logits + mask, "small": 1e-7 * logits}
    model = keras.Model(features, heads)
    published = keras_mgda.export_saved_model(model, tmp_path)
    assert problems(published.path) == ""
    model.set_weights([w + 1 for w in model.get_weights()])
    other = keras_mgda.export_saved_model(model, tmp_path)
    shutil.copytree(
        other.path / "variables",
        published.path / "variables",
        dirs_exist_ok=True,
    )
    found = problems(published.path)
    for task in heads:
        assert f"output {task!r} of " in found
    assert "it must be what the Keras model answers" in found
