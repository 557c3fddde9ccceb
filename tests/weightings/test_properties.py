"""What every weighting promises, on Gram matrices that break solvers.

All settings are the defaults, but for seeds. The promises are those of the
docstrings; a rounded Gram matrix can be held to none of them but up to its own
rounding, which is that of the largest term in a sum.
"""

import functools

import numpy as np
import pytest

from benchmarks.gram_matrices import FAMILIES, gram_of, jacobian
from keras_mgda import weightings
from tests.support.weighting_cases import OTHERS, PROMISES, SEEDED

# New weightings, without anything to remember, `{name: maker}`.
MAKERS = {
    name: functools.partial(SEEDED[name], seed=1)
    if name in SEEDED
    else functools.partial(weightings.get, name)
    for name in PROMISES
} | {name: make for name, (make, _) in OTHERS.items()}
PROMISED = PROMISES | {name: promises for name, (_, promises) in OTHERS.items()}


def each(promise):
    """The names of all weightings that promise this."""
    return pytest.mark.parametrize(
        "weighting",
        [name for name, of in PROMISED.items() if promise in of.split()],
    )


each_size = pytest.mark.parametrize(
    "m", [1, 5, *(pytest.param(m, marks=pytest.mark.slow) for m in (2, 64))]
)


@functools.cache
def hostile(m):
    """`{name: gram}`, with zero rows in some."""
    grams = {}
    # One gradient is of one family.
    for family in FAMILIES if m > 1 else FAMILIES[:1]:
        for spread in (0, 4):
            J = jacobian(family, m, spread)
            name = f"{family.__name__} 1e{spread}"
            grams[name] = gram_of(J)
            if spread == 4:
                J[:: max(2, m // 3)] = 0
                grams[f"{name} with zeros"] = gram_of(J)
    grams["all zero"] = np.zeros((m, m), np.float32)
    return grams


def losses(m):
    return np.float32(10 ** np.linspace(-1, 1, m))


def weigh(weighting, gram, task_losses):
    return MAKERS[weighting]()(gram, task_losses).numpy()


@functools.cache
def weights_of(weighting, m):
    """`{name: task weights}` of all matrices, which each promise is about."""
    return {
        name: weigh(weighting, gram, losses(m))
        for name, gram in hostile(m).items()
    }


def float64(gram, w):
    gram, w = np.float64(gram), np.float64(w)
    norms = np.sqrt(np.diag(gram))
    return gram, w, norms, norms @ np.abs(w)


def check(weighting, m, holds):
    """Calls `holds` for all matrices, and names those for which it does not."""
    failed = []
    for name, w in weights_of(weighting, m).items():
        assert w.dtype == np.float32
        assert w.shape == (m,)
        assert np.isfinite(w).all(), name
        if not holds(hostile(m)[name], w):
            failed.append(name)
    assert not failed


@each_size
@each("non_conflicting")
@pytest.mark.sample(5)
def test_no_task_objects(weighting, m):
    def holds(gram, w):
        gram, w, norms, size = float64(gram, w)
        length = np.sqrt(max(w @ gram @ w, 0))
        rounding = np.finfo(np.float32).eps * norms * size
        return np.all(gram @ w >= -1e-5 * norms * length - rounding)

    check(weighting, m, holds)


@each_size
@each("simplex")
@pytest.mark.sample(3)
def test_on_the_simplex(weighting, m):
    def holds(gram, w):
        return np.all(w >= 0) and abs(np.float64(w).sum() - 1) < 1e-5

    check(weighting, m, holds)


@each_size
@each("scale")
@pytest.mark.sample(6)
def test_scale_changes_nothing(weighting, m):
    def holds(gram, w):
        return all(
            np.allclose(
                weigh(weighting, gram * np.float32(scale), losses(m)),
                w,
                rtol=1e-5,
            )
            for scale in (2.0**-40, 2.0**40)
        )

    check(weighting, m, holds)


@pytest.mark.parametrize("weighting", MAKERS)
@pytest.mark.sample(14)
def test_each_says_whether_scale_changes_its_weights(weighting):
    """Beside what the weights do, on a matrix that is not special."""
    gram = gram_of(jacobian(FAMILIES[0], 5, 2))
    at_scale = [
        weigh(weighting, gram * np.float32(2.0**power), losses(5))
        for power in (0, -10, 10)
    ]
    same = all(np.allclose(w, at_scale[0], rtol=1e-5) for w in at_scale)
    assert MAKERS[weighting]().scale_invariant == same


def same_direction(gram, w, other, tolerance=1e-5):
    gram, w, norms, size = float64(gram, w)
    apart = gram @ (w - np.float64(other))
    return np.all(np.abs(apart) <= tolerance * norms * size)


@each_size
@each("permutation")
@pytest.mark.sample(20)
def test_order_changes_nothing(weighting, m):
    order = np.random.default_rng(0).permutation(m)

    def holds(gram, w):
        permuted = weigh(
            weighting, gram[np.ix_(order, order)], losses(m)[order]
        )
        return same_direction(gram, w, permuted[np.argsort(order)])

    check(weighting, m, holds)


@each_size
@each("permutation_of_line")
def test_order_changes_no_more_than_the_length(weighting, m):
    order = np.random.default_rng(0).permutation(m)

    def of_length_one(gram, w):
        return w / np.sqrt(max(w @ np.float64(gram) @ w, 1e-30))

    def holds(gram, w):
        permuted = weigh(
            weighting, gram[np.ix_(order, order)], losses(m)[order]
        )
        permuted = of_length_one(gram, permuted[np.argsort(order)])
        return same_direction(gram, of_length_one(gram, w), permuted)

    check(weighting, m, holds)


@each_size
@each("linear")
def test_linear_under_scaling(weighting, m):
    rng = np.random.default_rng(0)
    c = rng.uniform(0.5, 2, size=(2, m))

    def coefficients(gram, scales):
        """Of the raw gradients, when they are scaled."""
        scaled = np.float64(gram) * np.outer(scales, scales)
        return scales * weigh(weighting, scaled, losses(m))

    def holds(gram, w):
        parts = 3 * coefficients(gram, c[0]) + coefficients(gram, c[1])
        return same_direction(gram, coefficients(gram, 3 * c[0] + c[1]), parts)

    check(weighting, m, holds)
