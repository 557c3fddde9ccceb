"""What `export_saved_model` refuses, and that it then leaves nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda.serving import export
from tests.support.serving.refusals import refused
from tests.support.serving.saved_functions import problems, save
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
    """The message names the way out, which is taken here."""
    features = keras.Input((4,))
    model = keras.Model(features, {"a": layers.Dense(1)(features)})
    refused(
        r"needs a name.*'keras_tensor.*keras.Model\(x, model\(x\)\)",
        model,
        tmp_path,
    )
    x = keras.Input((4,), name="features")
    named = keras_mgda.export_saved_model(keras.Model(x, model(x)), tmp_path)
    assert set(named.signatures["predict_a"].inputs) == {"features"}


def test_a_random_answer(tmp_path):
    model = with_layer(lambda x: x + tf.random.normal(tf.shape(x)))
    refused("Equal requests must get equal answers", model, tmp_path)


def test_an_answer_that_is_not_the_models(tmp_path):
    """Keras draws the seed from a state that the artifact does not change."""
    model = with_layer(lambda x: keras.random.dropout(x, 0.5))
    refused("what the Keras model answers", model, tmp_path)


def test_an_answer_that_is_no_number(tmp_path):
    """Keras' own: the message says so, shows the row, and names a way out."""
    features = keras.Input((4,), name="features")
    z = Function(tf.math.log)(features - 2.0)
    model = keras.Model(features, {"a": layers.Dense(1)(z)})
    refused(
        r"Found: NaN for the row \{'features': '\[0.6\d+ +0.2\d+ .*\]'\}. "
        "Keras answers NaN to it too.* give rows of real data as `warmup`",
        model,
        tmp_path,
    )
    rows = np.full((1, 4), 3.0)
    assert keras_mgda.export_saved_model(model, tmp_path, warmup=rows)


def test_a_sequence_longer_than_the_models_maximum(tmp_path):
    """The message names two ways out, which are taken here."""
    for length in (None, 20):
        tokens = keras.Input((length,), dtype="int32", name="tokens")
        z = Embedded(20)(tokens)
        pooled = layers.GlobalAveragePooling1D()(z)
        model = keras.Model(tokens, {"a": pooled, "b": pooled})
        if length is None:
            refused(
                r"not be longer than the model's maximum.*'tokens': TensorShape"
                r"\(\[None, None\]\).*of length 32, where the model answers 16 "
                "and not 32. Give real rows as `warmup`, or declare",
                model,
                tmp_path,
            )
            rows = np.ones((2, 20), "int32")
            assert keras_mgda.export_saved_model(model, tmp_path, warmup=rows)
        else:
            assert keras_mgda.export_saved_model(model, tmp_path)


class Embedded(layers.Layer):
    """Tokens and their positions, of which there are so many."""

    def __init__(self, maximum):
        super().__init__()
        self.positions = layers.Embedding(maximum, 3)
        self.tokens = layers.Embedding(5, 3)

    def call(self, tokens):
        places = keras.ops.arange(keras.ops.shape(tokens)[1])
        return self.tokens(tokens) + self.positions(places)


def test_what_the_model_says_is_in_the_message(tmp_path):
    """Without what Keras and TensorFlow put around it."""

    def function(x):
        tf.debugging.assert_less(x, -7.0, message="Too large for me")
        return x

    refused(
        r"Received: InvalidArgumentError for \{'features': \(1, 4\)\}: .*"
        "Too large for me.*give real ones as `warmup`",
        with_layer(function),
        tmp_path,
    )


def test_a_cudnn_operation_of_the_models_own(tmp_path):
    """Which only where a GPU is seen can be run, and so is only traced."""
    path = save(tmp_path / "1", a=cudnn)
    assert "No CPU server has the operations of cuDNN" in problems(path)


def cudnn(x):
    zeros = tf.zeros([1, tf.shape(x)[0], 2])
    sequence = tf.reshape(x, [2, -1, 2])
    weights = tf.zeros([48])
    y, *_ = tf.raw_ops.CudnnRNNV3(
        input=sequence,
        input_h=zeros,
        input_c=zeros,
        params=weights,
        sequence_lengths=tf.fill([tf.shape(x)[0]], 2),
        rnn_mode="lstm",
        is_training=False,
    )
    return y[0]


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
    [("string", ["a", "a"]), ("int32", None), ("float32", [5.0])],
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
