"""What the weightings compute, beside their definitions in NumPy.

Gram matrices are in float64 here, so that what is compared is the method and
not the rounding of its input, to 1e-4 or better.
"""

import itertools

import numpy as np
import pytest
from scipy.optimize import nnls

from benchmarks.gram_matrices import gram_of, jacobian, random
from keras_mgda import weightings
from keras_mgda.weightings import (
    CRMOGM,
    DBMTL,
    EDM,
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    Fixed,
    GradVac,
    NashMTL,
    Normalized,
    PCGrad,
    Random,
    UPGrad,
)

EXAMPLE = np.float32([[-4, 1, 1], [6, 1, 1]])
each_m = pytest.mark.parametrize("m", [2, 5, 20])
each_spread = pytest.mark.parametrize("spread", [0, 2])


def direction(weighting, J):
    J = np.float64(J)
    return weighting(J @ J.T).numpy() @ J


def assert_close(actual, expected, rtol=1e-5):
    """Relative to the longest of the vectors."""
    size = np.linalg.norm(expected)
    assert np.linalg.norm(np.subtract(actual, expected)) <= rtol * size


# Of TorchJD 0.17, from its tests/unit/aggregation/test_values.py, to the digits
# there: the task weights, or the direction where there are no weights.
TORCHJD = {
    "aligned_mtl": [0.5591, 0.4083],
    "cagrad": [0.7041, 0.5],
    "config": [0.1588, 2.0706, 2.0706],
    "dualproj": [0.6109, 0.5],
    "fairgrad": [0.5915, 0.4071],
    "gradvac": [2.2222, 1.5789],
    "imtl_g": [0.5923, 0.4077],
    "mgda": [0.6, 0.4],
    "nash_mtl": [0.0542, 0.7061, 0.7061],
    "pcgrad": [2.2222, 1.5789],
    "upgrad": [1.1109, 0.7894],
}
# What it solves for these is the problem of another matrix.
REGULARIZED = ("dualproj", "upgrad")


@pytest.mark.parametrize("name", TORCHJD)
def test_values_are_those_of_torchjd(name):
    gram = np.float64(EXAMPLE @ EXAMPLE.T)
    if name in REGULARIZED:
        gram += 1e-4 * np.trace(gram) * np.eye(2)
    w = weightings.get(name)(gram).numpy()
    found = w if len(TORCHJD[name]) == 2 else w @ EXAMPLE
    np.testing.assert_allclose(found, TORCHJD[name], atol=6e-5)


def test_projections_of_the_example_are_exact():
    gram = gram_of(EXAMPLE)
    np.testing.assert_allclose(UPGrad()(gram), [10 / 9, 15 / 19], rtol=1e-6)
    np.testing.assert_allclose(DualProj()(gram), [11 / 18, 1 / 2], rtol=1e-6)


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
    extra = CAGrad(c)(J @ J.T).numpy() - np.float64(1 / m)
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
    w = IMTLG()(J @ J.T).numpy()
    gains = J @ (w @ J) / np.linalg.norm(J, axis=1)
    np.testing.assert_allclose(gains, gains.mean(), rtol=1e-4)
    assert gains.mean() > 0
    assert abs(w.sum()) == pytest.approx(1, rel=1e-5)


def test_imtl_g_does_not_climb_where_its_formula_does():
    # A short gradient that is nearly the sum of two others: the coefficients
    # of equal projections are negative for it, and it outweighs the others.
    unit = np.float64([[1, 0.2, 0], [1, -0.2, 0], [1, 0, 0.02]])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    J = unit * [[1], [1], [1e-2]]
    v = np.linalg.solve(J @ J.T, np.linalg.norm(J, axis=1))
    assert v.sum() < 0
    w = IMTLG()(J @ J.T).numpy()
    np.testing.assert_allclose(w, v / abs(v.sum()), rtol=1e-4)
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
    for weighting in (ConFIG(), AlignedMTL()):
        np.testing.assert_allclose(weighting(gram), [0, 0], atol=1e-6)


CANCELLING = {
    "opposite": [[1, 2], [-1, -2]],
    "opposite, one longer": [[1, 0], [-1e-3, 0]],
    "opposite pairs": [[1, 0], [-4, 0], [0, 2], [0, -3]],
    "triangle": [[2, 0], [-0.5, 0.75**0.5], [-1.5, -3 * 0.75**0.5]],
}


@pytest.mark.parametrize("name", CANCELLING)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_imtl_g_of_unit_gradients_that_cancel_is_no_direction(name, dtype):
    # By its definition: equal projections, and weights that add up to 1.
    J = np.array(CANCELLING[name])
    w = IMTLG()(gram_of(J, dtype)).numpy()
    lengths = np.linalg.norm(J, axis=1)
    np.testing.assert_allclose(w, 1 / lengths / (1 / lengths).sum(), rtol=1e-5)
    projections = J @ (w @ J) / lengths
    np.testing.assert_allclose(projections, 0, atol=1e-6 * lengths.min())
    assert w.sum() == pytest.approx(1, rel=1e-6)


# Bargains.


@each_m
@each_spread
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
def test_fairgrad_solves_its_equation(m, spread, alpha):
    gram = gram_of(jacobian(random, m, spread), np.float64)
    w = FairGrad(alpha)(gram).numpy().astype("float64")
    assert np.all(w > 0)
    np.testing.assert_allclose(gram @ w, w ** (-1 / alpha), rtol=1e-4)


@each_m
@each_spread
def test_nash_mtl_solves_its_equation(m, spread):
    gram = gram_of(jacobian(random, m, spread), np.float64)
    w = NashMTL(max_norm=None)(gram).numpy().astype("float64")
    np.testing.assert_allclose(
        gram / np.linalg.norm(gram) @ w, 1 / w, rtol=1e-4
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
    w = EDM()(J @ J.T).numpy()
    d = w @ J
    cosines = J @ d / np.linalg.norm(J, axis=1) / np.linalg.norm(d)
    np.testing.assert_allclose(cosines[w > 1e-6], cosines.min(), rtol=1e-4)


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
        g, aim = J[i], aims[i, j]
        own, other = np.linalg.norm(J[i]), np.linalg.norm(J[j])
        cosine = J[i] @ J[j] / (own * other)
        if cosine < aim:
            sine, aim_sine = np.sqrt(1 - cosine**2), np.sqrt(1 - aim**2)
            more = own * (aim * sine - cosine * aim_sine) / (other * aim_sine)
            g = g + more * J[j]
        aims[i, j] = (1 - beta) * aim + beta * cosine
        altered.append(g)
    return np.sum(altered, axis=0)


def test_gradvac_is_algorithm_1_step_by_step():
    aims = np.zeros([2, 2])
    weighting = GradVac(beta=0.3)
    for seed in range(12):
        J = jacobian(random, 2, 1, seed)
        assert_close(direction(weighting, J), vaccinated(J, aims, 0.3))
    assert np.abs(aims).max() > 0.1


# Random, and smoothed.


def test_random_weights_are_those_of_the_paper():
    weighting = Random(seed=1)
    draws = np.array([weighting(np.eye(3)).numpy() for _ in range(500)])
    np.testing.assert_allclose(draws.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(draws.mean(axis=0), 1 / 3, atol=0.05)
    logits = np.log(draws[:, 0] / draws[:, 1]) / np.sqrt(2)  # N(0, 1)
    assert logits.std() == pytest.approx(1, abs=0.1)


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


# In units of norms and losses.


def db_mtl(J, losses):
    """The authors' update, at `beta = 0`: their code, in NumPy."""
    gradients = J / losses[:, None]  # of the log losses
    lengths = np.linalg.norm(gradients, axis=1)
    return np.sum((lengths.max() / lengths)[:, None] * gradients, axis=0)


@each_m
@each_spread
def test_db_mtl_is_the_authors_update(m, spread):
    J = jacobian(random, m, spread)
    losses = np.random.default_rng(0).uniform(0.1, 10, m)
    w = DBMTL()(J @ J.T, losses).numpy()
    assert_close(w @ J, db_mtl(J, losses))


def test_db_mtl_leaves_out_a_task_without_labels():
    J = jacobian(random, 3, 1)
    wide = np.zeros([5, J.shape[1]])
    wide[[0, 2, 3]] = J
    losses = np.array([1.0, 0.0, 2.0, 0.5, 7.0])  # of the last no gradient
    w = DBMTL()(wide @ wide.T, losses).numpy()
    assert w[1] == w[4] == 0
    assert_close(w @ wide, db_mtl(J, losses[[0, 2, 3]]))


@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
def test_normalized_weighs_the_normalized_gradients(normalization):
    J = jacobian(random, 4, 1)
    losses = np.array([0.1, 1.0, 3.0, 20.0])
    norms = np.linalg.norm(J, axis=1)
    unit = {"none": 1, "l2": norms, "loss": losses, "loss+": losses * norms}
    scaled = J / np.reshape(unit[normalization] * np.ones(4), [4, 1])
    for other in (UPGrad(), CAGrad(0.4), IMTLG(), NashMTL(None)):
        w = Normalized(other, normalization)(J @ J.T, losses).numpy()
        assert_close(w @ J, direction(other, scaled), rtol=1e-4)


@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
def test_normalized_mgda_is_what_mgda_has(normalization):
    J = jacobian(random, 4, 1)
    losses = np.array([0.1, 1.0, 3.0, 20.0])
    w = Normalized(MGDA(), normalization)(J @ J.T, losses)
    expected = MGDA(normalization)(J @ J.T, losses)
    np.testing.assert_allclose(w, expected, rtol=1e-5)


def test_log_losses_are_what_a_model_with_log_losses_would_have():
    # Its Gram matrix, of the gradients `g_t / L_t`, and its weights of these.
    J, losses = jacobian(random, 3, 1), np.array([0.2, 1.0, 5.0])
    of_logs = J / losses[:, None]
    w = Normalized(UPGrad(), "loss")(J @ J.T, losses).numpy()
    expected = UPGrad()(of_logs @ of_logs.T).numpy() / losses
    np.testing.assert_allclose(w, expected, rtol=1e-5)
