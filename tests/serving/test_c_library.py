"""Published models, loaded by the code that TensorFlow Serving loads with."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.support.serving.served_models import MODELS, answers_of

pytestmark = pytest.mark.slow

BATCH_SIZES = (1, 3, 8)


@pytest.mark.parametrize("name", MODELS)
def test_every_signature_answers_as_keras(name, published, ask_c_library):
    model, rows, written = published(name)
    requests, expected = [], []
    for size in BATCH_SIZES:
        some = {key: array[:size] for key, array in rows.items()}
        answers = answers_of(model, some)
        for signature, declared in written.signatures.items():
            requests.append((signature, served(some, declared.inputs)))
            expected.append(served(answers, declared.outputs))
    found = ask_c_library(written.path, requests)
    for request, answer, right in zip(requests, found, expected, strict=True):
        assert isinstance(answer, dict), (request[0], answer)
        assert answer.keys() == right.keys()
        for key, array in right.items():
            assert answer[key].dtype == np.float32
            np.testing.assert_allclose(
                answer[key], array, rtol=1e-6, atol=1e-6, err_msg=key
            )


def served(arrays, declared):
    """Those of the arrays that a signature declares, by its names."""
    letters = str.maketrans("-./' ", "_____")
    renamed = {key.translate(letters): array for key, array in arrays.items()}
    renamed["input_lambda"] = renamed.get("lambda")
    return {name: renamed[name] for name in declared}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (tf.function(lambda x: x * 2, jit_compile=True), "XLA compilation"),
        (lambda x: tf.numpy_function(abs, [x], tf.float32), "py_?func|PyFunc"),
    ],
    ids=["XLA", "Python"],
)
def test_what_is_refused_fails_there(
    function, message, tmp_path, ask_c_library
):
    """It loads, and fails at each request: so publishing refuses it."""
    spec = tf.TensorSpec([None, 2], tf.float32, name="x")
    concrete = tf.function(lambda x: {"y": function(x)}).get_concrete_function(
        spec
    )
    tf.saved_model.save(
        tf.Module(), tmp_path / "1", signatures={"serving_default": concrete}
    )
    rows = {"x": np.ones((3, 2), "float32")}
    (found,) = ask_c_library(tmp_path / "1", [("serving_default", rows)])
    assert isinstance(found, str)
    assert re.search(message, found, re.IGNORECASE)


def test_the_loader_has_xla_when_told(tmp_path, ask_c_library):
    """So its refusal above is that of the stock server's setting."""
    spec = tf.TensorSpec([None, 2], tf.float32, name="x")
    double = tf.function(lambda x: {"y": x * 2}, jit_compile=True)
    tf.saved_model.save(
        tf.Module(),
        tmp_path / "1",
        signatures={"serving_default": double.get_concrete_function(spec)},
    )
    rows = {"x": np.ones((3, 2), "float32")}
    asked = [("serving_default", rows)]
    (found,) = ask_c_library(tmp_path / "1", asked, "--xla")
    np.testing.assert_array_equal(found["y"], 2 * rows["x"])
