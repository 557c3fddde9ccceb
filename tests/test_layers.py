import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from tests.support import networks


def test_marker_does_nothing_outside_of_a_training_step():
    for structure in networks.STRUCTURES:
        model = networks.mgda_model(structure)
        stock = networks.stock_model(structure)
        stock.set_weights(model.get_weights())
        x, _ = networks.data(model)
        got, expected = model(x), stock(x)
        keras.tree.map_structure(np.testing.assert_array_equal, got, expected)


def test_marker_keeps_the_type_of_what_it_marks():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            z = {"u": keras.Input((3,), dtype=dtype)}
            marked = SharedRepresentation()(z)
            assert marked["u"].dtype == dtype
            model = keras.Model(z, marked)
            assert model({"u": tf.ones((2, 3), dtype)})["u"].dtype == dtype
    finally:
        keras.config.set_dtype_policy(before)


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
