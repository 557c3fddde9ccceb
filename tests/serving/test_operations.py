"""Operations that no served answer may need are found in the files."""

import pytest
import tensorflow as tf

from tests.support.serving.saved_functions import VECTOR, double, problems, save


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


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.assign_add([1.0]),
        lambda state: state[:1].assign([1.0]),
        lambda state: state.scatter_max(tf.IndexedSlices([1.0], [0])),
        lambda state: tf.raw_ops.ResourceApplyGradientDescent(
            var=state.handle, alpha=1.0, delta=[1.0]
        ),
    ],
    ids=["assign", "slice", "scatter", "apply"],
)
def test_state_that_a_request_changes(change, tmp_path):
    module = tf.Module()
    module.state = tf.Variable([0.0])

    def changed(x):
        with tf.control_dependencies([change(module.state)]):
            return {"a": x + 1.0}

    concrete = tf.function(changed).get_concrete_function(VECTOR)
    path = tmp_path / "1"
    tf.saved_model.save(module, path, signatures={"serving_default": concrete})
    assert "must not depend on earlier requests" in problems(path)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: tf.nn.dropout(x, 0.5, seed=1),
        lambda x: tf.map_fn(lambda row: tf.random.shuffle(row), x),
        lambda x: tf.cast(tf.random.categorical(x, 4), tf.float32),
        lambda x: x + tf.random.truncated_normal([4]),
    ],
    ids=["dropout", "shuffle", "categorical", "normal"],
)
def test_an_answer_that_is_drawn(draw, tmp_path):
    path = save(tmp_path / "1", a=lambda x: tf.reshape(draw(x), (-1, 4)))
    assert "Equal requests must get equal answers. Found: " in problems(path)


def test_a_draw_from_a_constant_seed_is_none(tmp_path):
    path = save(
        tmp_path / "1",
        a=lambda x: x + tf.random.stateless_normal([4], seed=[1, 2]),
    )
    assert problems(path) == ""
