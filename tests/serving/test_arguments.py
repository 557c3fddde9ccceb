"""Arguments of `export_saved_model` that cannot be right."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda import serving
from tests.support.serving.refusals import refused
from tests.support.serving.served_models import (
    MODELS,
    Function,
    mlp,
)


@pytest.mark.parametrize(
    "postprocess",
    [
        lambda y: tf.math.top_k(y, 2),
        lambda y: [y, y],
        lambda y: 1.0,
        lambda y: {},
        lambda y: {"x": {"y": y}},
        lambda y: {0: y},
        lambda y: {"x": tf.sparse.from_dense(y)},
        tf.RaggedTensor.from_tensor,
        "softmax",
    ],
)
def test_a_postprocess_to_something_else_than_tensors(postprocess, tmp_path):
    refused(
        "`postprocess` must have functions to a dense tensor.*'left': ",
        mlp()[0],
        tmp_path,
        postprocess={"left": postprocess},
    )


@pytest.mark.parametrize(
    "options", [{"tasks": ["up"]}, {"tasks": []}, {"postprocess": {"up": abs}}]
)
def test_unknown_tasks(options, tmp_path):
    refused("Tasks must be among those", mlp()[0], tmp_path, **options)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({}, r"one feature for each input.*features \[\]"),
        (
            {"features": tf.io.FixedLenFeature([5], tf.float32)},
            r"must have the shape of its input. Received: \(5,\) for \(4,\)",
        ),
        (
            {"features": tf.io.VarLenFeature(tf.float32)},
            "takes tf.io.FixedLenFeature. Received: 'features': VarLen",
        ),
        (
            {"features": tf.io.FixedLenFeature([4], tf.string)},
            "'features' must be float32, .* Received: tf.string",
        ),
        (
            {"features": tf.io.FixedLenFeature([4], tf.int64)},
            "'features' must be float32, .* Received: tf.int64",
        ),
    ],
)
def test_example_specs_that_do_not_fit(spec, match, tmp_path):
    refused(match, mlp()[0], tmp_path, example_spec=spec)


def test_an_example_spec_of_another_length_than_made_up_rows(tmp_path):
    features = keras.Input((None,), name="features")
    refused(
        r"feature 'features', \(6,\).*\(32,\). Give rows of that shape",
        keras.Model(features, {"a": 2 * features}),
        tmp_path,
        example_spec={"features": tf.io.FixedLenFeature([6], tf.float32)},
    )


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ({"image": np.ones((1, 4))}, r"for each input.*\['image'\]"),
        (np.ones((2, 5)), r"'features' must be.*shape \(2, 5\)"),
        (np.ones((0, 4)), r"'features' must be.*shape \(0, 4\)"),
        (np.ones(4), r"'features' must be.*shape \(4,\)"),
        (np.full((2, 4), "1"), r"values of float32.*shape \(2, 4\) and object"),
        (1j * np.ones((2, 4)), "values of float32.* and complex128"),
        ([[1.0, 2.0], [3.0]], "all rows of one shape. Received: list. Pad"),
        (tf.ragged.constant([[1.0], []]), "Received: RaggedTensor. Pad"),
        (tf.data.Dataset.range(4), "Received: _RangeDataset. Pad"),
    ],
)
def test_rows_that_do_not_fit(rows, match, tmp_path):
    refused(match, mlp()[0], tmp_path, warmup=rows)


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [
        ("int32", [1.5]),
        ("int32", [np.nan]),
        ("uint8", [300]),
        ("uint8", [-1]),
        ("bool", [2]),
        ("int32", ["1"]),
        ("string", [1]),
    ],
)
def test_rows_that_a_cast_would_change(dtype, rows, tmp_path):
    x = keras.Input((), dtype=dtype, name="x")
    refused(
        f"'x' must be .* values of {dtype}. Received: .* Convert it first",
        keras.Model(x, {"a": Function(tf.identity)(x)}),
        tmp_path,
        warmup=np.array(rows),
    )


def test_ragged_rows_of_a_subclassed_model(tmp_path):
    model, _ = MODELS["subclassed"]()
    refused("all rows of one shape", model, tmp_path, warmup=[[1.0], []])


def test_rows_that_were_made_up_and_do_not_fit(tmp_path):
    model = MODELS["convolutional"]()[0]
    refused(
        "give real ones as `warmup`",
        model,
        tmp_path,
        preprocess=serving.encoded_images(12, 12),
    )


@pytest.mark.parametrize("preprocess", [abs, tf.function(tf.abs)])
def test_a_preprocess_that_does_not_tell_what_it_takes(preprocess, tmp_path):
    refused(
        "`preprocess` must tell what it takes",
        mlp()[0],
        tmp_path,
        preprocess=preprocess,
    )


@pytest.mark.parametrize(
    "spec",
    [
        tf.TensorSpec([None, 4], tf.float32),
        tf.TensorSpec([None, 4], tf.float32, name="args_0"),
    ],
)
def test_a_preprocess_without_names(spec, tmp_path):
    refused(
        "Every input needs a name",
        mlp()[0],
        tmp_path,
        preprocess=tf.function(tf.abs, input_signature=[spec]),
    )


@pytest.mark.parametrize("shape", [None, [], [8, 4]])
def test_a_preprocess_of_something_else_than_rows(shape, tmp_path):
    spec = tf.TensorSpec(shape, tf.float32, name="features")
    refused(
        "first dimension of every input is the batch",
        mlp()[0],
        tmp_path,
        preprocess=tf.function(tf.abs, input_signature=[spec]),
    )


def test_inputs_of_one_name(tmp_path):
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    refused(
        "must have names of their own",
        mlp()[0],
        tmp_path,
        preprocess=tf.function(tf.add, input_signature=[spec, spec]),
    )


def test_a_subclassed_model_without_rows(tmp_path):
    model, _ = MODELS["subclassed"]()
    refused("does not declare its inputs", model, tmp_path)


def test_batching_that_the_server_refuses(tmp_path):
    refused("`batching` takes", mlp()[0], tmp_path, batching={"size": 1})


def test_more_requests_than_the_server_takes(tmp_path):
    features = keras.Input((1,), name="features")
    model = keras.Model(
        features, {f"task_{t}": features * float(t) for t in range(60)}
    )
    sizes = list(range(1, 18))
    refused(
        r"takes 1000 warm-up requests at most.*61 signatures at 17 batch sizes"
        r".* besides \(1, 3\), which are always asked",
        model,
        tmp_path,
        batching={"max_batch_size": 17, "allowed_batch_sizes": sizes},
    )


@pytest.mark.parametrize("number", [0, -1, 1.0, "1", True, 2**63])
@pytest.mark.parametrize("name", ["version", "keep"])
def test_numbers_that_are_none(name, number, tmp_path):
    refused(
        f"`{name}` must be a positive", mlp()[0], tmp_path, **{name: number}
    )
