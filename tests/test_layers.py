import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from keras_mgda.descent.forward import record_forward_pass
from tests.support import networks
from tests.support.dtype_policy import dtype_policy


@pytest.mark.slow
def test_marker_does_nothing_outside_of_a_training_step():
    for structure in networks.STRUCTURES:
        model = networks.mgda_model(structure)
        stock = networks.stock_model(structure)
        stock.set_weights(model.get_weights())
        x, _ = networks.data(model)
        got, expected = model(x), stock(x)
        keras.tree.map_structure(np.testing.assert_array_equal, got, expected)


def test_marker_keeps_the_type_of_what_it_marks():
    with dtype_policy("mixed_float16"):
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            z = {"u": keras.Input((3,), dtype=dtype)}
            marked = SharedRepresentation()(z)
            assert marked["u"].dtype == dtype
            model = keras.Model(z, marked)
            assert model({"u": tf.ones((2, 3), dtype)})["u"].dtype == dtype


def test_mask_arrives_at_the_heads_of_a_training_step():
    masks = []

    class SeesMask(layers.Layer):
        def call(self, x, mask=None):
            masks.append(mask)
            return x[:, -1]

    x = keras.Input((7,), dtype="int32")
    h = layers.Embedding(10, 6, mask_zero=True)(x)
    z = SharedRepresentation()(h)
    model = MGDAModel(x, networks.heads(SeesMask()(z)))
    model.compile("sgd", loss="mse", run_eagerly=True)
    ids = np.array([[1, 2, 3, 0, 0, 0, 0], [4, 5, 6, 7, 8, 0, 0]])
    masks.clear()
    model.train_on_batch(ids, {t: np.ones((2, 1)) for t in "ab"})
    (mask,) = masks
    np.testing.assert_array_equal(mask, ids != 0)


STRUCTURES = {
    "tuple": lambda u, v: (u, v),
    "list": lambda u, v: [u, v],
    "dict": lambda u, v: {"v": v, "u": u},
    "nested": lambda u, v: {"k": [u], "j": {"v": (v,)}},
}


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_marks_structures_of_tensors(structure):
    u, v = keras.Input((3,)), keras.Input((5, 2), dtype="float16")
    given = structure(u, v)
    marked = SharedRepresentation()(given)
    keras.tree.assert_same_structure(marked, given)
    for after, before in zip(
        keras.tree.flatten(marked), keras.tree.flatten(given), strict=True
    ):
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        assert after is not before

    values = structure(tf.ones((2, 3)), tf.zeros((2, 5, 2), "float16"))
    layer = SharedRepresentation()
    with record_forward_pass() as recording:
        found = layer(values)
        layer(tf.ones((4, 1)))
        SharedRepresentation()(tf.ones((4, 1)))
    keras.tree.assert_same_structure(found, values)
    keras.tree.map_structure(np.testing.assert_array_equal, found, values)
    groups = [z.group for z in recording.representations]
    assert len(groups) == 4
    assert groups[0] is groups[1] is groups[2] is layer
    assert groups[3] is not layer


def test_masks_arrive_in_their_structure():
    u, v = keras.Input((4,)), keras.Input((4,))
    masked = layers.Embedding(5, 2, mask_zero=True)
    seen = {}

    class SeesMasks(layers.Layer):
        def call(self, z, mask=None):
            seen.update(mask)
            return z["u"] + z["v"]

        def compute_output_shape(self, shapes):
            return shapes["u"]

    z = SharedRepresentation()(
        {"v": masked(v), "u": layers.Dense(2)(masked(u))}
    )
    model = keras.Model([u, v], SeesMasks()(z))
    ids = np.array([[1, 2, 0, 0]]), np.array([[3, 0, 0, 0]])
    for context in (contextlib.nullcontext, record_forward_pass):
        with context():
            model(list(ids))
        np.testing.assert_array_equal(seen["u"], ids[0] != 0)
        np.testing.assert_array_equal(seen["v"], ids[1] != 0)


def test_what_has_no_gradient_is_passed_on():
    values, indices = tf.ones((2, 3)), tf.ones((2, 3), "int32")
    with record_forward_pass() as recording:
        found = SharedRepresentation()([values, indices, None])
    assert found[1] is indices
    assert found[2] is None
    assert len(recording.representations) == 1
    with (
        record_forward_pass(),
        pytest.raises(ValueError, match="must be floating point"),
    ):
        SharedRepresentation()([indices])


def test_values_of_a_ragged_tensor_are_marked():
    z = tf.RaggedTensor.from_row_lengths(tf.ones((5, 3)), [2, 3])
    with record_forward_pass() as recording:
        found = SharedRepresentation()(z)
    assert isinstance(found, tf.RaggedTensor)
    (marked,) = recording.representations
    assert marked.read.shape == (5, 3)
    assert found.flat_values is marked.read


def test_config_says_what_is_inside():
    assert "inside" not in SharedRepresentation().get_config()
    for inside in ("z", ["z"], ("z",)):
        layer = SharedRepresentation(inside=inside, name="mark")
        again = SharedRepresentation.from_config(layer.get_config())
        assert again.inside == layer.inside == ("z",)
        assert again.name == "mark"
    with record_forward_pass() as recording:
        layer(tf.ones((2, 3)))
    assert not recording.representations


@pytest.mark.filterwarnings("ignore:No two tasks read")
def test_each_task_may_read_a_part_of_what_one_layer_marks():
    x = keras.Input((8,))
    mark = SharedRepresentation()
    h = networks.dense(5)(x)
    u, v = mark([networks.dense(4)(h), networks.dense(3)(h)])
    model = MGDAModel(x, networks.heads(u, "a") | networks.heads(v, "b"))
    model.compile("sgd", loss="mse", run_eagerly=True)
    model.train_on_batch(*networks.data(model))
    # The Gram matrix is diagonal: each weight is as the square of the other
    # task's gradient is long.
    assert 0 < model.task_weights["a"] < 1

    # Of two layers, each may be read by one task where it comes from variables
    # that both share, but not where it is that task's alone.
    x = keras.Input((8,))
    u, v = (SharedRepresentation()(networks.dense(3)(x)) for _ in "ab")
    model = MGDAModel(x, networks.heads(u, "a") | networks.heads(v, "b"))
    model.compile("sgd", loss="mse", run_eagerly=True)
    with pytest.raises(ValueError, match="read by at least two tasks"):
        model.train_on_batch(*networks.data(model))
