"""The loss of pairs, against NumPy."""

import keras
import numpy as np
import tensorflow as tf

from keras_mgda import problems


def by_hand(u, v, temperature):
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    similarity = u @ v.T / temperature
    return np.log(np.exp(similarity).sum(1)) - np.diag(similarity)


def test_values():
    u, v = np.random.default_rng(0).normal(size=(2, 5, 3))
    loss = problems.PairLoss(0.5, reduction=None)
    found = loss(np.ones(5), np.concatenate([u, v], axis=1))
    np.testing.assert_allclose(found, by_hand(u, v, 0.5), rtol=1e-5)


def test_rows_without_a_pair_are_nobodys_partner():
    u, v = np.random.default_rng(1).normal(size=(2, 6, 3))
    pairs = np.array([1, 0, 1, 1, 0, 1])
    loss = problems.PairLoss(0.5, reduction=None)
    y = tf.Variable(np.concatenate([u, v], axis=1))
    with tf.GradientTape() as tape:
        found = loss(pairs[:, None], y)
        total = tf.reduce_sum(found)
    here = pairs == 1
    expected = by_hand(u[here], v[here], 0.5)
    np.testing.assert_allclose(found.numpy()[here], expected, rtol=1e-5)
    assert not found.numpy()[~here].any()
    gradient = tape.gradient(total, y).numpy()
    assert np.isfinite(gradient).all()
    assert not gradient[~here].any()
    assert gradient[here].any(axis=1).all()


def test_no_pair_at_all_and_empty_texts():
    loss = problems.PairLoss()
    y = tf.Variable(tf.zeros([3, 4]))
    with tf.GradientTape() as tape:
        found = loss(tf.zeros([3]), y)
    assert float(found) == 0.0
    assert not tape.gradient(found, y).numpy().any()


def test_config():
    loss = problems.PairLoss(0.2)
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert copy.temperature == 0.2
