"""Weightings by the task losses, beside their definitions in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda.weightings import (
    DWA,
    FAMO,
    STCH,
    GeometricMean,
    GradNorm,
    Uncertainty,
)

# Of the losses alone.


def gradient_of(scalarization, losses):
    losses = tf.constant(losses, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(losses)
        value = scalarization(losses)
    return tape.gradient(value, losses).numpy()


@pytest.mark.parametrize("losses", [[2.0], [0.3, 4.0], [1e-6, 1.0, 1e6]])
def test_weights_are_the_gradient_of_the_scalarization(losses):
    m = len(losses)
    p, z = np.arange(1.0, m + 1), np.full(m, -0.5)
    for weighting, scalarization in [
        (
            GeometricMean(),
            lambda L: tf.exp(tf.reduce_mean(tf.math.log(L))),
        ),
        (
            STCH(0.1),
            lambda L: 0.1 * tf.reduce_logsumexp(L / m / 0.1),
        ),
        (
            STCH(2.0, p, z),
            lambda L: 2 * tf.reduce_logsumexp(p * (L - z) / 2),
        ),
    ]:
        np.testing.assert_allclose(
            weighting(np.eye(m), losses),
            gradient_of(scalarization, losses),
            rtol=1e-5,
            atol=1e-30,
        )


@pytest.mark.parametrize(
    "weighting", [GeometricMean(), STCH(), FAMO()], ids=lambda w: type(w)
)
def test_a_task_without_labels_is_left_out(weighting):
    w = weighting(np.eye(4), [2.0, 0.0, 0.5, 0.0]).numpy()
    alone = type(weighting)()(np.eye(2), [2.0, 0.5]).numpy()
    np.testing.assert_allclose(w[[0, 2]], alone, rtol=1e-6)
    assert w[1] == w[3] == 0


# What learns.


def test_uncertainty_descends_its_loss():
    weighting = Uncertainty(learning_rate=0.1)
    s = np.zeros(2)
    for L in np.random.default_rng(0).uniform(0.5, 2, size=(20, 2)):
        w = weighting(np.eye(2), L)
        np.testing.assert_allclose(w, np.exp(-s) / 2, rtol=1e-5)
        s -= 0.1 * (1 - np.exp(-s) * L) / 2


def test_uncertainty_ends_at_its_minimum_whatever_the_losses():
    weighting = Uncertainty(learning_rate=0.5)
    L = np.float32([1e-6, 3.0, 1e12])
    for _ in range(100):
        w = weighting(np.eye(3), L)
    np.testing.assert_allclose(w, 1 / (2 * L), rtol=1e-3)


def test_dwa_weighs_by_the_rates_of_the_last_two_periods():
    weighting = DWA(temperature=0.5, period=2)
    losses = np.float32(
        [[4, 1], [6, 3], [2, 3], [2, 5], [8, 1], [8, 1], [1, 1]]
    )
    found = [weighting(np.eye(2), L).numpy() for L in losses]
    np.testing.assert_array_equal(found[:4], np.ones([4, 2]))
    means = losses[:6].reshape(3, 2, 2).mean(axis=1)
    for step, period in [(4, 1), (5, 1), (6, 2)]:
        x = np.exp(means[period] / means[period - 1] / 0.5)
        np.testing.assert_allclose(found[step], 2 * x / x.sum(), rtol=1e-5)


def test_dwa_counts_labelled_steps_only():
    weighting = DWA(period=2)
    for L in ([4, 2], [0, 4], [1, 0], [1, 0], [1, 1]):
        w = weighting(np.eye(2), np.float32(L)).numpy()
    x = np.exp(np.array([1 / 4, 1]) / 2)  # nothing known of the second
    np.testing.assert_allclose(w, 2 * x / x.sum(), rtol=1e-5)


def test_gradnorm_descends_its_loss():
    rng = np.random.default_rng(0)
    weighting = GradNorm(alpha=0.5, learning_rate=1e-4)
    w, first = np.ones(3), None
    for _ in range(10):
        n, L = rng.uniform(1, 2, 3), rng.uniform(1, 2, 3)
        found = weighting(np.diag(n**2), L)
        np.testing.assert_allclose(found, w, rtol=1e-5)
        first = L if first is None else first
        rates = L / first / np.mean(L / first)
        length = np.mean(w * n)
        w -= 1e-4 * np.sign(w * n - length * rates**0.5) * n / length
        w *= 3 / w.sum()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_gradnorm_brings_norms_to_their_aims(scale):
    n, L = scale * np.array([1.0, 10.0, 100.0]), np.ones(3)
    weighting = GradNorm()
    for _ in range(200):
        w = weighting(np.diag(n**2), L).numpy()
    np.testing.assert_allclose(w * n, np.mean(w * n), rtol=0.05)
    assert w.min() > 0
    assert w.sum() == pytest.approx(3, rel=1e-5)


def test_gradnorm_prefers_the_task_that_lags():
    weighting = GradNorm()
    weighting(np.eye(2), [1.0, 1.0])
    for _ in range(20):
        w = weighting(np.eye(2), [1.0, 0.1]).numpy()
    assert w[0] > 1 > w[1]


def test_famo_follows_its_gradient_by_adam():
    rng = np.random.default_rng(0)
    x = keras.Variable(np.zeros(3), dtype="float32")
    adam = keras.optimizers.Adam(0.025, epsilon=1e-8)
    weighting, before = FAMO(), None
    for L in rng.uniform(0.5, 2, size=(20, 3)):
        if before is not None:
            now = x.numpy()
            z = np.exp(now) / np.exp(now).sum()
            gains = np.log(before) - np.log(L)
            gradient = z * (gains - z @ gains) + 1e-3 * now
            adam.apply([tf.constant(gradient, tf.float32)], [x])
        before = L
        v = np.exp(x.numpy()) / L
        w = weighting(np.eye(3), L)
        np.testing.assert_allclose(w, v / v.sum(), rtol=1e-4)


def test_famo_gives_weight_to_the_loss_that_goes_down_least():
    weighting = FAMO()
    for step in range(20):
        w = weighting(np.eye(2), [1.0, 0.99**step]).numpy()
    even = np.array([1.0, 1 / 0.99**19])
    assert w[0] > even[0] / even.sum()
