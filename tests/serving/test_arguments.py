"""Arguments of `export_saved_model` that cannot be right."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mgda
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
    ("groups", "match"),
    [
        ({"both": []}, r"`groups` must be.*'both': \[\] for \['left'"),
        ({"both": "left"}, "`groups` must be.*'both': 'left'"),
        ({"both": ["left", "up"]}, r"`groups` must be.*'both': \['left', 'up'"),
        ({"predict_left": ["left"]}, "both served as 'predict_left'. Rename"),
        ({"serving_default": ["left"]}, "both served as 'serving_default'"),
        ({"a-b": ["left"], "a_b": ["left"]}, "signatures 'a-b' and 'a_b', bo"),
        ({"": ["left"]}, "Every signature needs a name"),
    ],
)
def test_groups_that_are_none(groups, match, tmp_path):
    refused(match, mlp()[0], tmp_path, groups=groups)


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


def test_rows_for_inputs_of_tasks_that_are_left_out(tmp_path):
    """The message names the way out, which is taken here."""
    model, rows = MODELS["two_inputs"]()
    some = {"image": rows["image"]}
    refused(
        r"\['image'\] for the inputs \['bypass', 'image'\].*no inputs.*"
        r"keras.Model\(inputs, \{task: output\}\)",
        model,
        tmp_path,
        tasks=["without"],
        warmup=some,
    )
    fewer = keras.Model(
        {"image": model.input["image"]}, {"without": model.output["without"]}
    )
    assert keras_mgda.export_saved_model(fewer, tmp_path, warmup=some)


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
    sizes = list(range(1, 1000))
    refused(
        r"takes 1000 warm-up requests at most.*3 signatures, one of them at 999"
        r" batch sizes.* besides \(1, 3\), which are always asked",
        mlp()[0],
        tmp_path,
        batching={"max_batch_size": 999, "allowed_batch_sizes": sizes},
    )


@pytest.mark.parametrize("number", [0, -1, 1.0, "1", True, 2**63])
@pytest.mark.parametrize("name", ["version", "keep"])
def test_numbers_that_are_none(name, number, tmp_path):
    refused(
        f"`{name}` must be a positive", mlp()[0], tmp_path, **{name: number}
    )
