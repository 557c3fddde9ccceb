"""What the weightings compute, beside their definitions in NumPy."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from gram_matrices import (
    all_positive,
    common_offset,
    gram_of,
    jacobian,
    random,
)
from scipy.optimize import nnls

from keras_mgda import weightings
from keras_mgda.weightings import (
    CRMOGM,
    DWA,
    EDM,
    FAMO,
    IMTLG,
    MGDA,
    STCH,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    Fixed,
    GeometricMean,
    GradNorm,
    GradVac,
    NashMTL,
    PCGrad,
    Random,
    Uncertainty,
    UPGrad,
)

EXAMPLE = np.float32([[-4, 1, 1], [6, 1, 1]])
each_m = pytest.mark.parametrize("m", [2, 5, 20])
each_spread = pytest.mark.parametrize("spread", [0, 2])


def direction(weighting, J, losses=None):
    w = weighting(gram_of(J), losses).numpy()
    return np.float64(w) @ J


def assert_close(actual, expected, rtol=1e-5):
    """Relative to the longest of the vectors."""
    size = np.linalg.norm(expected)
    assert np.linalg.norm(np.subtract(actual, expected)) <= rtol * size


# Of TorchJD 0.17, from its tests/unit/aggregation/test_values.py, to the digits
# there. UPGrad and DualProj add 1e-4 of the trace to the diagonal there: theirs
# are [1.1109, 0.7894] and [0.6109, 0.5].
TORCHJD = {
    "aligned_mtl": [0.5591, 0.4083],
    "cagrad": [0.7041, 0.5],
    "dualproj": [0.6111, 0.5],
    "fairgrad": [0.5915, 0.4071],
    "gradvac": [2.2222, 1.5789],
    "imtl_g": [0.5923, 0.4077],
    "mgda": [0.6, 0.4],
    "pcgrad": [2.2222, 1.5789],
    "upgrad": [1.1111, 0.7895],
}


@pytest.mark.parametrize("name", TORCHJD)
def test_weights_are_those_of_torchjd(name):
    w = weightings.get(name)(gram_of(EXAMPLE))
    np.testing.assert_allclose(w, TORCHJD[name], atol=1e-4)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (ConFIG(), [0.1588, 2.0706, 2.0706]),
        (NashMTL(), [0.0542, 0.7061, 0.7061]),
        (DualProj(), [5 / 9, 10 / 9, 10 / 9]),  # exactly
    ],
    ids=["config", "nash_mtl", "dualproj"],
)
def test_directions_are_those_of_torchjd(weighting, expected):
    np.testing.assert_allclose(
        direction(weighting, EXAMPLE), expected, atol=1e-4
    )


# Projections.


def onto_dual_cone(J, g):
    """By SciPy's non-negative least squares: `g + J'x`."""
    x = nnls(J.T, -g, maxiter=100 * len(J))[0]
    return g + J.T @ x


@each_m
@each_spread
def test_upgrad_is_the_mean_of_the_projections(m, spread):
    J = jacobian(random, m, spread)
    expected = np.mean([onto_dual_cone(J, g) for g in J], axis=0)
    assert_close(direction(UPGrad(), J), expected)


@each_m
@each_spread
def test_dualproj_is_the_projection_of_the_mean(m, spread):
    J = jacobian(random, m, spread)
    assert_close(direction(DualProj(), J), onto_dual_cone(J, J.mean(axis=0)))


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-3, 1e-6])
def test_projections_have_no_dead_zone(scale):
    # TorchJD's turn into the mean, which conflicts, below a norm of 0.01.
    for weighting in (UPGrad(), DualProj()):
        d = direction(weighting, EXAMPLE * np.float32(scale))
        assert_close(d, scale * direction(weighting, EXAMPLE))
        assert np.all(EXAMPLE @ d >= -1e-5 * scale)


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0, 3.0])
@each_m
@each_spread
def test_cagrad_is_optimal(c, m, spread):
    # The optimality conditions of the paper's problem, which is convex: `d`
    # leaves the mean by a positive combination of its worst task gradients.
    J = jacobian(random, m, spread)
    extra = CAGrad(c)(gram_of(J)).numpy() - np.float64(1 / m)
    mean = J.mean(axis=0)
    assert np.all(extra >= -1e-6)
    assert_close([np.linalg.norm(extra @ J)], [c * np.linalg.norm(mean)])
    gains = J @ (mean + extra @ J)
    size = np.abs(J @ mean).max() + np.abs(gains).max()
    assert np.all(gains[extra > 1e-5] <= gains.min() + 1e-4 * size)


def test_cagrad_of_radius_zero_is_the_mean():
    gram = gram_of(jacobian(random, 5, 2))
    np.testing.assert_allclose(CAGrad(0)(gram), np.full(5, 0.2), rtol=1e-6)


def test_cagrad_stays_in_its_ball_where_tasks_are_stationary():
    J = np.float32([[1, 0], [-1, 1], [-1, -1]])  # around zero
    for c in (0.5, 1.0, 2.0):
        d = direction(CAGrad(c), J)
        mean = J.mean(axis=0)
        assert np.linalg.norm(d - mean) <= (c + 1e-5) * np.linalg.norm(mean)


@pytest.mark.parametrize("weighting", [UPGrad(), DualProj(), CAGrad()])
@pytest.mark.parametrize("excess", [1e-6, 1e-4, 1e-2])
def test_a_matrix_that_is_more_than_rounded_gives_no_huge_weights(
    weighting, excess
):
    gram = np.eye(3) + 0.1
    gram[0, 1] = gram[1, 0] = -(1.1 + excess)  # a cosine beyond -1
    w = weighting(gram).numpy()
    assert np.all(np.abs(w) <= 10 / np.sqrt(excess))


def test_preferences_are_weights_of_the_projections():
    J = jacobian(random, 4, 2)
    p = np.array([0.5, 0.0, 2.0, 1.0])
    expected = sum(q * onto_dual_cone(J, g) for q, g in zip(p, J, strict=True))
    assert_close(direction(UPGrad(p), J), expected)
    assert_close(direction(DualProj(p), J), onto_dual_cone(J, p @ J))


# Alignment.


@each_m
@each_spread
def test_imtl_g_gains_equally_on_all_tasks(m, spread):
    J = jacobian(random, m, spread)
    w = IMTLG()(gram_of(J)).numpy()
    gains = J @ (w @ J) / np.linalg.norm(J, axis=1)
    np.testing.assert_allclose(gains, gains.mean(), rtol=1e-2)
    assert gains.mean() > 0
    assert abs(w.sum()) == pytest.approx(1, rel=1e-3)


def test_imtl_g_does_not_climb_where_its_formula_does():
    # A short gradient that is nearly the sum of two others: the coefficients
    # of equal projections are negative for it, and it outweighs the others.
    unit = np.float64([[1, 0.2, 0], [1, -0.2, 0], [1, 0, 0.02]])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    J = unit * [[1], [1], [1e-2]]
    v = np.linalg.solve(J @ J.T, np.linalg.norm(J, axis=1))
    assert v.sum() < 0
    w = IMTLG()(J @ J.T).numpy()
    np.testing.assert_allclose(w, v / abs(v.sum()), rtol=1e-3)
    assert np.all(J @ (w @ J) > 0)


@each_m
@each_spread
def test_config_is_its_pseudoinverse(m, spread):
    J = jacobian(random, m, spread)
    unit = J / np.linalg.norm(J, axis=1, keepdims=True)
    for weighting, p in [
        (ConFIG(), np.full(m, 1 / m)),
        (ConFIG(np.arange(1, m + 1)), np.arange(1.0, m + 1)),
    ]:
        x = np.linalg.pinv(unit) @ p
        x /= np.linalg.norm(x)
        assert_close(direction(weighting, J), (J @ x).sum() * x, rtol=1e-4)


@each_m
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl_is_the_polar_factor(m, scale):
    J = jacobian(random, m, 0)
    p = np.arange(1.0, m + 1)
    U, singular, V = np.linalg.svd(J, full_matrices=False)
    squares = np.sort(singular**2)
    square = {
        "min": squares[0],
        "median": squares[(m - 1) // 2],
        "rmse": squares.mean(),
    }[scale]
    expected = np.sqrt(square) * p @ U @ V
    assert_close(direction(AlignedMTL(p, scale), J), expected, rtol=1e-4)


def test_aligned_mtl_keeps_a_short_task_gradient():
    # An eigenvalue 1e8 times smaller than another is no rounding here.
    J = np.diag([1.0, 1e-4])
    np.testing.assert_allclose(
        AlignedMTL()(gram_of(J)), [0.5e-4, 0.5], rtol=1e-5
    )


def test_there_is_no_aligned_direction_of_opposite_tasks():
    gram = gram_of([[1, 2], [-1, -2]])
    for weighting in (IMTLG(), ConFIG(), AlignedMTL()):
        np.testing.assert_allclose(weighting(gram), [0, 0], atol=1e-6)


# Bargains.


@each_m
@each_spread
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
def test_fairgrad_solves_its_equation(m, spread, alpha):
    gram = np.float64(gram_of(jacobian(random, m, spread)))
    w = FairGrad(alpha)(gram).numpy().astype("float64")
    assert np.all(w > 0)
    np.testing.assert_allclose((gram @ w) ** -alpha, w, rtol=2e-3)


@each_m
@each_spread
def test_nash_mtl_solves_its_equation(m, spread):
    gram = np.float64(gram_of(jacobian(random, m, spread)))
    w = NashMTL(max_norm=None)(gram).numpy().astype("float64")
    np.testing.assert_allclose(
        w * (gram / np.linalg.norm(gram) @ w), np.ones(m), rtol=1e-3
    )
    limited = NashMTL()(gram).numpy()
    length = np.sqrt(w @ gram @ w)
    np.testing.assert_allclose(limited, w / max(length, 1), rtol=1e-5)


def test_nash_mtl_does_not_depend_on_the_scales_of_the_losses():
    J = jacobian(random, 4, 0)
    scales = np.float32([[1.0], [10.0], [0.01], [3.0]])
    assert_close(direction(NashMTL(), scales * J), direction(NashMTL(), J))


# The hull.


@each_m
@each_spread
def test_edm_has_equal_angles_with_what_it_is_made_of(m, spread):
    J = jacobian(random, m, spread)
    w = EDM()(gram_of(J)).numpy()
    d = w @ J
    cosines = J @ d / np.linalg.norm(J, axis=1) / np.linalg.norm(d)
    np.testing.assert_allclose(cosines[w > 1e-6], cosines.min(), rtol=1e-3)


def test_edm_of_two_tasks_is_the_bisector():
    J = np.float64([[3, 0], [1, 1]])
    norms = np.linalg.norm(J, axis=1)
    np.testing.assert_allclose(
        EDM()(gram_of(J)), 1 / norms / (1 / norms).sum(), rtol=1e-6
    )


# Surgery.


def operated(J, orders):
    """Algorithm 1 of PCGrad, with an order of the others for each task."""
    altered = []
    for g, order in zip(J, orders, strict=True):
        g = g.copy()
        for j in order:
            g -= min(g @ J[j], 0) * J[j] / (J[j] @ J[j])
        altered.append(g)
    return np.sum(altered, axis=0)


def test_pcgrad_takes_every_order():
    J = np.float64([[1, 0.2], [-1, 0.3], [0.1, -1]])
    others = [itertools.permutations({0, 1, 2} - {i}) for i in range(3)]
    possible = [operated(J, orders) for orders in itertools.product(*others)]
    weighting = PCGrad(seed=1)
    taken = set()
    for _ in range(60):
        d = direction(weighting, J)
        apart = [np.linalg.norm(d - one) for one in possible]
        assert min(apart) <= 1e-5
        taken.add(int(np.argmin(apart)))
    different = {tuple(np.round(one, 4)) for one in possible}
    assert len(different) == 8
    assert len(taken) == 8


def test_pcgrad_of_two_tasks_is_twice_upgrad():
    for seed in range(5):
        gram = gram_of(jacobian(random, 2, 2, seed))
        np.testing.assert_allclose(
            PCGrad()(gram), 2 * UPGrad()(gram), rtol=1e-5
        )


@pytest.mark.parametrize("kind", [PCGrad, GradVac, Random])
def test_seeds_repeat_and_differ(kind):
    gram = gram_of(jacobian(random, 10, 0))
    runs = [
        [weighting(gram).numpy() for _ in range(3)]
        for weighting in (kind(seed=1), kind(seed=1), kind(seed=2), kind())
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    for other in runs[2:]:
        assert np.any(np.subtract(runs[0], other))
    assert np.any(runs[0][0] != runs[0][1])


def vaccinated(J, aims, beta):
    """Algorithm 1 of GradVac, for two tasks; updates `aims`."""
    altered = []
    for i, j in [(0, 1), (1, 0)]:
        g, h = J[i].copy(), J[j]
        length = np.linalg.norm(g)
        cosine = g @ h / length / np.linalg.norm(h)
        if cosine < aims[i, j]:
            sines = np.sqrt(1 - np.square([cosine, aims[i, j]]))
            g += length * (aims[i, j] * sines[0] - cosine * sines[1]) * h
            g -= (1 - 1 / (np.linalg.norm(h) * sines[1])) * (g - J[i])
        aims[i, j] = (1 - beta) * aims[i, j] + beta * cosine
        altered.append(g)
    return np.sum(altered, axis=0)


def test_gradvac_is_algorithm_1_step_by_step():
    aims = np.zeros([2, 2])
    weighting = GradVac(beta=0.3)
    for seed in range(12):
        J = jacobian(random, 2, 1, seed)
        assert_close(direction(weighting, J), vaccinated(J, aims, 0.3))
    assert np.abs(aims).max() > 0.1


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


def test_geometric_mean_of_losses_that_are_not_positive_is_nan():
    assert np.isnan(GeometricMean()(np.eye(2), [1.0, -1.0])).all()


@pytest.mark.parametrize(
    "weighting", [GeometricMean(), STCH(), FAMO()], ids=lambda w: type(w)
)
def test_a_task_without_labels_is_left_out(weighting):
    w = weighting(np.eye(4), [2.0, 0.0, 0.5, 0.0]).numpy()
    alone = type(weighting)()(np.eye(2), [2.0, 0.5]).numpy()
    np.testing.assert_allclose(w[[0, 2]], alone, rtol=1e-6)
    assert w[1] == w[3] == 0


def test_random_weights_are_those_of_the_paper():
    weighting = Random(seed=1)
    draws = np.array([weighting(np.eye(3)).numpy() for _ in range(500)])
    np.testing.assert_allclose(draws.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(draws.mean(axis=0), 1 / 3, atol=0.05)
    logits = np.log(draws[:, 0] / draws[:, 1]) / np.sqrt(2)  # N(0, 1)
    assert logits.std() == pytest.approx(1, abs=0.1)


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


def test_cr_mogm_is_the_moving_average():
    weighting, alone = CRMOGM(UPGrad(), alpha=0.7), UPGrad()
    expected = None
    for seed in range(5):
        gram = gram_of(jacobian(random, 3, 2, seed))
        new = alone(gram).numpy()
        expected = new if expected is None else 0.7 * expected + 0.3 * new
        np.testing.assert_allclose(weighting(gram), expected, rtol=1e-5)


def test_cr_mogm_stands_still_without_labels():
    weighting = CRMOGM(MGDA(), alpha=0.5)
    first = weighting(np.diag([1.0, 2.0, 3.0])).numpy()
    w = weighting(np.diag([1.0, 0.0, 3.0])).numpy()
    assert w[1] == first[1]
    np.testing.assert_allclose(w[[0, 2]], first[[0, 2]] / 2 + [3 / 8, 1 / 8])


def test_cr_mogm_keeps_the_task_names_of_the_other():
    weighting = CRMOGM(Fixed({"b": 1.0, "a": 2.0}))
    weighting.build(["a", "b"])
    assert weighting(np.eye(2)).numpy().tolist() == [2.0, 1.0]


# Tasks without gradient, and who is left.


@pytest.mark.parametrize(
    "family", [random, all_positive, common_offset], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(
    "weighting",
    [
        UPGrad(),
        UPGrad([1.0, 3.0, 2.0, 1.0, 1.0]),
        DualProj(),
        CAGrad(),
        NashMTL(),
        FairGrad(),
        FairGrad(2.0),
        AlignedMTL(),
        EDM(),
    ],
    ids=lambda w: f"{type(w).__name__} {w.get_config()}",
)
def test_zero_gradients_leave_the_others_as_they_would_be(weighting, family):
    J = jacobian(family, 3, 2)
    wide = np.zeros([5, J.shape[1]])
    wide[[0, 2, 3]] = J
    w = weighting(gram_of(wide)).numpy()
    assert w[1] == w[4] == 0
    config = weighting.get_config()
    if config.get("preference"):  # of the same sum
        config["preference"] = [2.0, 4.0, 2.0]
    alone = type(weighting).from_config(config)
    assert_close(w[[0, 2, 3]] @ J, direction(alone, J), rtol=1e-4)


def test_preferences_for_tasks_that_are_away_do_not_stop_the_others():
    gram = np.diag([1.0, 0.0, 4.0])
    w = UPGrad([0.0, 1.0, 0.0])(gram).numpy()
    np.testing.assert_allclose(w, [0.5, 0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("numbers", [{"b": 0.0, "a": 1.0}, [1.0, 0.0]])
@pytest.mark.parametrize("kind", [UPGrad, DualProj, AlignedMTL, ConFIG])
def test_preferences_by_name_are_those_in_order(kind, numbers):
    weighting = kind(preference=numbers)
    weighting.build(["a", "b"])
    gram = gram_of(EXAMPLE)
    expected = kind(preference=[1.0, 0.0])(gram)
    np.testing.assert_array_equal(weighting(gram), expected)


# Errors.


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: UPGrad([1.0, -1.0]), r"Preferences .* not negative\. Rec"),
        (lambda: DualProj([1.0, np.nan]), r"Preferences must be finite.* Rec"),
        (lambda: STCH(preference={"a": np.inf}), "Preferences must be finite"),
        (
            lambda: STCH(reference=[-np.inf]),
            r"losses must be finite\. Received",
        ),
        (lambda: STCH(0), r"`mu` must be positive\. Received: 0"),
        (lambda: CAGrad(-0.1), r"`c` must be .* Received: -0\.1"),
        (lambda: FairGrad(0), r"`alpha` must be from 0\.2.*Received: 0"),
        (lambda: NashMTL(0), r"`max_norm` must be positive.*Received: 0"),
        (lambda: AlignedMTL(scale="max"), r"`scale` .*Received: 'max'"),
        (lambda: GradVac(1.5), r"`beta` must be from 0 to 1\. Received: 1\.5"),
        (lambda: DWA(0), r"`temperature` must be positive\. Received: 0"),
        (lambda: DWA(period=0), r"`period` must be positive\. Received: 0"),
        (lambda: GradNorm(-1), r"`alpha` must be positive\. Received: -1"),
        (lambda: FAMO(decay=-1), r"`decay` must be positive or zero\. Rec"),
        (lambda: CRMOGM("mgda"), r"must be a `Weighting`\. Received: 'mgda'"),
        (lambda: CRMOGM(alpha=2), r"`alpha` must be from 0 to 1\. Received: 2"),
    ],
)
def test_settings_that_cannot_be(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("kind", [UPGrad, Fixed, STCH])
def test_numbers_that_do_not_fit_the_tasks(kind):
    numbers = {"preference": [1.0, 2.0]}
    if kind is Fixed:
        numbers = {"task_weights": [1.0, 2.0]}
    weighting = kind(**numbers)
    with pytest.raises(ValueError, match=r"as many as the tasks\. Received"):
        weighting.build(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"fit the Gram matrix\. Received"):
        weighting(np.eye(3), np.ones(3))
    (name,) = numbers
    weighting = kind(**{name: {"a": 1.0, "b": 2.0}})
    with pytest.raises(ValueError, match=r"must name the tasks\. Received"):
        weighting.build(["a", "c"])
    with pytest.raises(ValueError, match=r"Named ones need `build"):
        weighting(np.eye(2), np.ones(2))


@pytest.mark.parametrize("name", sorted(set(weightings._BY_NAME)))
def test_what_is_no_gram_matrix(name):
    weighting = weightings.get(name)
    if not weighting.uses_gram:
        return
    losses = np.ones(2)
    for gram in (np.ones([2, 3]), np.ones(2), np.zeros([0, 0])):
        with pytest.raises(ValueError, match=r"square matrix.* Received: sh"):
            weighting(gram, losses)
    with pytest.raises(ValueError, match=r"must be symmetric.*Received"):
        weighting(np.float32([[1, 0.5], [0.2, 1]]), losses)


@pytest.mark.parametrize(
    "name", ["cagrad", "config", "edm", "fairgrad", "pcgrad", "upgrad"]
)
def test_an_asymmetric_matrix_in_a_graph_is_nan(name):
    weigh = tf.function(weightings.get(name))
    assert np.isnan(weigh(tf.constant([[1.0, 0.5], [0.2, 1.0]]))).all()


@pytest.mark.parametrize("name", sorted(weightings._BY_NAME))
def test_losses_that_are_missing_or_do_not_fit(name):
    weighting = weightings.get(name)
    if not weighting.uses_losses:
        return
    with pytest.raises(ValueError, match=r"needs the task losses\. Received"):
        weighting(np.eye(2))
    with pytest.raises(ValueError, match=r"one task loss for each row.*Rec"):
        weighting(np.eye(2), [1.0, 2.0, 3.0])
