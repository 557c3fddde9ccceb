"""What `export_saved_model` refuses, and that it then leaves nothing."""

import keras
import pytest
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda.serving import export
from tests.support.serving.refusals import refused
from tests.support.serving.served_models import (
    MODELS,
    Function,
    answers_of,
    mlp,
    normal,
    with_layer,
)


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
    refused("Equal requests must get equal answers", model, tmp_path)


def test_an_answer_that_is_not_the_models(tmp_path):
    """Keras draws the seed from a state that the artifact does not change."""
    model = with_layer(lambda x: keras.random.dropout(x, 0.5))
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


def test_made_up_integers_that_mix_under_batching(tmp_path):
    codes = keras.Input((2,), dtype="int32", name="codes")
    z = layers.Flatten()(layers.Embedding(2, 3)(codes))
    z = Function(lambda x: x - tf.reduce_mean(x, axis=0))(z)
    refused(
        "must not depend on other rows",
        keras.Model(codes, {"a": layers.Dense(1)(z)}),
        tmp_path,
        batching={},
    )


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [("string", None), ("int32", None), ("float32", [5.0])],
)
def test_equal_rows_under_batching(dtype, rows, tmp_path):
    x = keras.Input((), dtype=dtype, name="x")
    refused(
        "rows must differ.*equal rows for predict_a, serving_default. Give",
        keras.Model(x, {"a": Function(tf.identity)(x)}),
        tmp_path,
        warmup=rows,
        batching={},
    )


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        (lambda z: layers.Dense(1)(z), "must answer a dict of named outputs"),
        (lambda z: [z, z], "must answer a dict of named outputs.*list"),
        (lambda z: {"a": {"b": z}}, "must be a flat dict.*'a': dict"),
        (lambda z: {"a-b": z, "a_b": z}, "tasks 'a-b' and 'a_b', both"),
        (lambda z: {"a": z, "A": z}, "tasks 'a' and 'A', both served as 'A'"),
        (lambda z: {"": z, "a": z}, "Every task needs a name.*one named ''"),
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


def test_a_model_that_is_not_built(tmp_path):
    model = type(MODELS["subclassed"]()[0])()
    refused("must be a built keras.Model", model, tmp_path, warmup=normal(2, 4))


@pytest.mark.parametrize("model", [None, layers.Dense(2), tf.Module()])
def test_something_else_than_a_model(model, tmp_path):
    refused("must be a built keras.Model", model, tmp_path)


def test_another_backend(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    refused("backend 'jax'", mlp()[0], tmp_path)
