"""Weightings by the task losses, beside their definitions in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda.weightings import (
    COSMOS,
    CRMOGM,
    DBMTL,
    DWA,
    FAMO,
    IMTLL,
    MGDA,
    PBI,
    STCH,
    GeometricMean,
    GradNorm,
    Normalized,
    Uncertainty,
    UPGrad,
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


def learns_log_scales(L, s, learning_rate):
    """IMTL-L: a gradient step on `exp(s) L - s`, not past its minimum."""
    after = s - learning_rate * (np.exp(s) * L - 1)
    return np.clip(after, np.minimum(s, -np.log(L)), np.maximum(s, -np.log(L)))


def test_imtl_l_descends_its_loss():
    weighting, s = IMTLL(learning_rate=0.1), np.zeros(2)
    for L in np.random.default_rng(0).uniform(0.5, 2, size=(20, 2)):
        np.testing.assert_allclose(
            weighting(np.eye(2), L), np.exp(s), rtol=1e-5
        )
        s = learns_log_scales(L, s, 0.1)


def test_imtl_l_is_twice_uncertainty_at_twice_its_rate():
    # TorchJD states it: their losses differ by a factor of two and the sign.
    imtl_l, uncertainty = IMTLL(0.05), Uncertainty(0.1)
    for L in 10.0 ** np.random.default_rng(0).uniform(-2, 2, size=(20, 3)):
        np.testing.assert_allclose(
            imtl_l(np.eye(3), L), 2 * uncertainty(np.eye(3), L), rtol=1e-5
        )


def test_imtl_l_brings_all_losses_to_one_whatever_their_units():
    weighting, L = IMTLL(learning_rate=0.5), np.float32([1e-6, 3.0, 1e12])
    for _ in range(100):
        w = weighting(np.eye(3), L)
    np.testing.assert_allclose(w * L, 1, rtol=1e-3)


# Lower bounds of losses, and losses that a weighting does not admit.


def test_famo_sees_losses_above_their_lower_bounds():
    rng = np.random.default_rng(0)
    bounds = np.array([-3.0, 0.5])
    bounded, plain = FAMO(min_losses={"b": 0.5, "a": -3.0}), FAMO()
    bounded.build(["a", "b"])
    for above in rng.uniform(0.5, 2, size=(10, 2)):
        # The authors': `log(L - b)`, and weights `z / (L - b)`.
        np.testing.assert_allclose(
            bounded(np.eye(2), above + bounds),
            plain(np.eye(2), above),
            rtol=1e-5,
        )


def test_famo_with_bounds_leaves_out_a_task_without_labels():
    w = FAMO(min_losses=[-1.0, -1.0, -1.0])(np.eye(3), [1.0, 0.0, 3.0])
    np.testing.assert_allclose(w, [2 / 3, 0, 1 / 3], rtol=1e-6)


NOT_POSITIVE = {
    "famo": FAMO,
    "geometric_mean": GeometricMean,
    "uncertainty": Uncertainty,
    "imtl_l": IMTLL,
    "dwa": DWA,
    "gradnorm": GradNorm,
    "db_mtl": DBMTL,
    "cr_mogm of famo": lambda: CRMOGM(FAMO()),
    "normalized gradnorm": lambda: Normalized(GradNorm()),
}


@pytest.mark.parametrize("name", NOT_POSITIVE)
def test_negative_losses_are_refused_where_they_are_seen(name):
    with pytest.raises(
        ValueError, match=r"must have .*task losses.*Received: \{.*'1': -1\.0"
    ):
        NOT_POSITIVE[name]()(np.eye(2), [2.0, -1.0])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", ["famo", "geometric_mean", "db_mtl"])
def test_in_a_graph_negative_losses_give_nan_and_change_nothing(
    name, jit_compile
):
    weighting = NOT_POSITIVE[name]()
    weighting.build(["a", "b"])

    @tf.function(jit_compile=jit_compile)
    def step(losses):
        return weighting(tf.eye(2), losses), weighting.admits(losses)

    w, admitted = step(tf.constant([2.0, 1.0]))
    assert np.isfinite(w).all()
    assert admitted.numpy().tolist() == [True, True]
    before = weighting.state.get_weights() if weighting.state else []
    w, admitted = step(tf.constant([2.0, -1.0]))
    assert np.isnan(w).all()
    assert admitted.numpy().tolist() == [True, False]
    after = weighting.state.get_weights() if weighting.state else []
    for one, two in zip(after, before, strict=True):
        np.testing.assert_array_equal(one, two)
    # The way out that the message names goes on.
    message = str(weighting.losses_error({"a": 2.0, "b": -1.0}))
    assert "'b': -1.0" in message
    assert "FAMO(min_losses=...)" in message
    assert np.isfinite(FAMO(min_losses=[-2, -2])(np.eye(2), [2.0, -1.0])).all()


@pytest.mark.parametrize("name", NOT_POSITIVE)
def test_zero_and_nan_are_admitted(name):
    admitted = NOT_POSITIVE[name]().admits(tf.constant([0.0, np.nan, 1.0]))
    assert admitted.numpy().all()


@pytest.mark.parametrize(
    "weighting",
    [
        STCH(),
        PBI(reference=[-2.0, -2.0]),
        COSMOS(),
        MGDA("loss"),
        MGDA("loss+"),
        Normalized(UPGrad(), "loss"),
    ],
    ids=lambda weighting: type(weighting).__name__,
)
def test_the_others_take_any_loss(weighting):
    w = weighting(np.float32([[2, -1], [-1, 3]]), [1.5, -1.0])
    assert np.isfinite(w).all()


def test_mgda_by_losses_conflicts_with_no_task_below_zero_either():
    J = np.float64([[1, 2, 0], [-2, 1, 1], [0, -1, 1]])
    for normalization in ("loss", "loss+"):
        w = MGDA(normalization)(J @ J.T, [-3.0, 0.5, -0.1]).numpy()
        assert np.all(J @ (w @ J) >= -1e-6)


# Scalarizations with negative weights.


@pytest.mark.parametrize("losses", [[2.0], [0.3, 4.0], [1e-3, 1.0, 1e3]])
def test_pbi_and_cosmos_are_the_gradient_of_their_scalarization(losses):
    m = len(losses)
    p, z = np.arange(1.0, m + 1), np.full(m, -0.5)

    def pbi(L, p, z, theta):
        e = p / np.linalg.norm(p)
        along = tf.tensordot(L - z, e, 1)
        aside = L - z - along * e
        return along + theta * tf.sqrt(tf.tensordot(aside, aside, 1) + 1e-24)

    def cosmos(L, p, penalty):
        weighed = tf.tensordot(L, p, 1)
        return weighed - penalty * weighed / tf.norm(L) / np.linalg.norm(p)

    even = np.full(m, 1 / m)
    for weighting, scalarization in [
        (PBI(), lambda L: pbi(L, even, 0 * z, 5.0)),
        (PBI(0.5, p, z), lambda L: pbi(L, p, z, 0.5)),
        (COSMOS(), lambda L: cosmos(L, even, 1.0)),
        (COSMOS(8.0, p), lambda L: cosmos(L, p, 8.0)),
    ]:
        expected = gradient_of(scalarization, losses)
        np.testing.assert_allclose(
            weighting(np.eye(m), losses),
            expected,
            rtol=1e-5,
            atol=1e-6 * np.abs(expected).max(),
        )


def test_pbi_goes_straight_on_its_ray():
    w = PBI(5.0, [1.0, 2.0], [-1.0, -1.0])(np.eye(2), [1.0, 3.0])
    np.testing.assert_allclose(w, [1 / 5**0.5, 2 / 5**0.5], rtol=1e-6)


@pytest.mark.parametrize("kind", [PBI, COSMOS])
def test_scalarizations_leave_out_a_task_without_labels(kind):
    w = kind()(np.eye(4), [2.0, 0.0, 0.5, 0.0]).numpy()
    # With the preference of two tasks, whose share is all of it.
    alone = kind()(np.eye(2), [2.0, 0.5]).numpy()
    np.testing.assert_allclose(w[[0, 2]], alone, rtol=1e-6)
    assert w[1] == w[3] == 0
