"""What `export_saved_model` refuses, and that it then leaves nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from served_models import (
    MODELS,
    answers_of,
    mlp,
    normal,
    with_layer,
)

import keras_mgda
from keras_mgda import export, serving


def refused(match, model, directory, **options):
    with pytest.raises(ValueError, match=match):
        keras_mgda.export_saved_model(model, directory / "mtl", **options)
    assert not list(directory.glob("mtl/*"))


def test_a_function_for_xla_only(tmp_path):
    compiled = tf.function(lambda x: tf.nn.relu(x) * 2.0, jit_compile=True)
    refused(r"only XLA can run.*jit_compile", with_layer(compiled), tmp_path)


def test_a_model_compiled_with_xla_is_served(tmp_path):
    model, rows = mlp()
    model.compile("adam", loss="mse", jit_compile=True)
    model.fit(rows["features"], answers_of(model, rows), verbose=0)
    model.predict(rows["features"], verbose=0)
    assert keras_mgda.export_saved_model(model, tmp_path)


@pytest.mark.parametrize("wrap", [tf.numpy_function, tf.py_function])
def test_a_python_function(wrap, tmp_path):
    def function(x):
        return tf.ensure_shape(wrap(lambda v: v * 2, [x], tf.float32), x.shape)

    refused("has no Python.*PyFunc", with_layer(function), tmp_path)


def test_an_input_of_a_fixed_batch_size(tmp_path):
    model = with_layer(tf.nn.relu, batch_size=8)
    refused(r"must be dynamic.*'features' of shape \(8, 4\)", model, tmp_path)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_batch_size_inside(size, tmp_path):
    def function(x):
        return tf.gather(tf.reshape(x, (size, 4)), tf.range(tf.shape(x)[0]))

    refused("must answer any number of rows", with_layer(function), tmp_path)


def test_a_scalar_output(tmp_path):
    features = keras.Input((4,), name="features")
    z = layers.Dense(3)(features)
    heads = {"a": layers.Dense(1)(z), "mean": keras.ops.mean(z)}
    refused(
        r"'mean': its first dimension must be the batch. Found: a scalar",
        keras.Model(features, heads),
        tmp_path,
    )


def test_an_output_without_rows(tmp_path):
    features = keras.Input((4,), name="features")
    flat = keras.ops.reshape(features, (-1,))
    refused(
        "a row for each row of the request",
        keras.Model(features, {"flat": flat}),
        tmp_path,
    )


def test_an_input_without_a_name(tmp_path):
    features = keras.Input((4,))
    model = keras.Model(features, {"a": layers.Dense(1)(features)})
    refused("needs a name.*'keras_tensor", model, tmp_path)


def test_a_random_answer(tmp_path):
    model = with_layer(lambda x: x + tf.random.normal(tf.shape(x)))
    refused("what the Keras model answers", model, tmp_path)


def test_an_answer_that_is_no_number(tmp_path):
    model = with_layer(lambda x: tf.math.log(-tf.abs(x)))
    refused("it must be a number. Found: NaN", model, tmp_path)


def test_an_answer_that_changes_state(tmp_path):
    counter = tf.Variable(0.0)
    model = with_layer(lambda x: x + 0.0 * counter.assign_add(1.0))
    refused("must not depend on earlier requests", model, tmp_path)


def test_weights_stored_twice(tmp_path, monkeypatch):
    model, _ = mlp()

    def as_keras_does(traced, served, path):
        module = tf.Module()
        module.weights = traced.variables
        module.copies = [tf.Variable(v) for v in traced.variables]
        tf.saved_model.save(
            module, path, signatures={n: s.function for n, s in served.items()}
        )

    monkeypatch.setattr(export, "_save", as_keras_does)
    refused("Weights must be stored once", model, tmp_path)


def test_rows_that_mix_under_batching(tmp_path):
    model = with_layer(lambda x: x - tf.reduce_mean(x, axis=0))
    refused(
        "must not depend on other rows",
        model,
        tmp_path,
        batching={"max_batch_size": 8},
    )
    assert keras_mgda.export_saved_model(model, tmp_path / "without")


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        (lambda z: layers.Dense(1)(z), "must answer a dict of named outputs"),
        (lambda z: [z, z], "must answer a dict of named outputs.*list"),
        (lambda z: {"a": {"b": z}}, "must be a flat dict.*'a': dict"),
        (lambda z: {"a-b": z, "a_b": z}, "tasks 'a-b' and 'a_b', both"),
        (lambda z: {"a": z, "A": z}, "tasks 'a' and 'A', both served as 'A'"),
    ],
)
def test_outputs_without_names_of_their_own(outputs, match, tmp_path):
    features = keras.Input((4,), name="features")
    model = keras.Model(features, outputs(layers.Dense(3)(features)))
    refused(match, model, tmp_path)


def test_a_sequential_model(tmp_path):
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(1)])
    refused("must answer a dict of named outputs", model, tmp_path)


def test_inputs_that_collide(tmp_path):
    inputs = [keras.Input((2,), name=name) for name in ("an-x", "An_x")]
    model = keras.Model(inputs, {"a": layers.Concatenate()(inputs)})
    refused("inputs 'an-x' and 'An_x', both served as", model, tmp_path)


def test_outputs_of_postprocessing_that_collide(tmp_path):
    features = keras.Input((4,), name="features")
    heads = {"a": layers.Dense(1)(features), "a_x": layers.Dense(1)(features)}
    refused(
        "outputs 'a_x' and 'a_x', both",
        keras.Model(features, heads),
        tmp_path,
        postprocess={"a": lambda y: {"x": y}},
    )


def test_sparse_inputs(tmp_path):
    features = keras.Input((4,), sparse=True, name="features")
    model = keras.Model(features, {"a": layers.Dense(1)(features)})
    refused("must be dense.*'features'", model, tmp_path)


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
    ],
)
def test_example_specs_that_do_not_fit(spec, match, tmp_path):
    refused(match, mlp()[0], tmp_path, example_spec=spec)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ({"image": np.ones((1, 4))}, r"for each input.*\['image'\]"),
        (np.ones((2, 5)), r"'features' must be.*shape \(2, 5\)"),
        (np.ones((0, 4)), r"'features' must be.*shape \(0, 4\)"),
        (np.ones(4), r"'features' must be.*shape \(4,\)"),
    ],
)
def test_rows_that_do_not_fit(rows, match, tmp_path):
    refused(match, mlp()[0], tmp_path, warmup=rows)


def test_rows_that_a_cast_would_cut(tmp_path):
    model, rows = MODELS["masked_sequence"]()
    refused(
        "'tokens' must be .* and int32. Received: .* and float64",
        model,
        tmp_path,
        warmup=rows["tokens"] + 0.5,
    )


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


def test_a_model_that_is_not_built(tmp_path):
    model = type(MODELS["subclassed"]()[0])()
    refused("must be a built keras.Model", model, tmp_path, warmup=normal(2, 4))


@pytest.mark.parametrize("model", [None, layers.Dense(2), tf.Module()])
def test_something_else_than_a_model(model, tmp_path):
    refused("must be a built keras.Model", model, tmp_path)


def test_another_backend(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    refused("backend 'jax'", mlp()[0], tmp_path)


def test_batching_that_the_server_refuses(tmp_path):
    refused("`batching` takes", mlp()[0], tmp_path, batching={"size": 1})


def test_more_requests_than_the_server_takes(tmp_path):
    features = keras.Input((1,), name="features")
    model = keras.Model(
        features, {f"task_{t}": features * float(t) for t in range(60)}
    )
    sizes = list(range(1, 18))
    refused(
        "takes 1000 warm-up requests at most.*61 signatures at 17 batch sizes",
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
