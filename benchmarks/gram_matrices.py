"""Gram matrices that break solvers, for benchmarks and for tests.

A family makes `m` task gradients, the rows of `J`; spreads scale the rows by
up to 10^4.
"""

import numpy as np
from scipy.optimize import nnls


def random(m, rng):
    return rng.normal(size=(m, m + 3))


def low_rank(m, rng):
    return rng.normal(size=(m, max(1, m // 2)))


def nearly_low_rank(m, rng):
    spanned = rng.normal(size=(m, 2)) @ rng.normal(size=(2, m + 3))
    return spanned + 1e-3 * rng.normal(size=(m, m + 3))


def nearly_parallel(m, rng):
    return rng.normal(size=m + 3) + 1e-3 * rng.normal(size=(m, m + 3))


def nearly_opposite(m, rng):
    signs = rng.choice([-1.0, 1.0], size=(m, 1))
    return signs * nearly_parallel(m, rng)


def all_positive(m, rng):
    """Cosines near .999."""
    return rng.normal(size=m + 3) + 0.03 * rng.normal(size=(m, m + 3))


def opposite_pairs(m, rng):
    J = rng.normal(size=(m, m + 3))
    J[m - m // 2 :] = -J[: m // 2]
    return J


def duplicated(m, rng):
    J = rng.normal(size=(m, m + 3))
    J[m - m // 2 :] = J[: m // 2]
    return J


def pareto_stationary(m, rng):
    """The last gradient balances a positive combination of the others."""
    J = rng.normal(size=(m, m + 3))
    J[-1] = -rng.uniform(size=m - 1) @ J[:-1]
    return J


def common_offset(m, rng):
    """Stationary but for a component that all tasks have alike."""
    return np.c_[low_rank(m, rng), np.full(m, 0.1)]


def orthogonal(m, rng):
    return np.linalg.qr(rng.normal(size=(m + 3, m)))[0].T


def integer(m, rng):
    """Gram matrices without rounding, singular ones among them."""
    J = rng.integers(-2, 3, size=(m, max(2, m // 2))).astype(float)
    J[:, 0] += J[:, 0] == 0  # no zero rows: they have a test of their own
    return J


def cancelling(m, rng, dimension):
    """Large gradients that cancel, but for a part that float32 rounds away."""
    large = rng.normal(size=(m, dimension)) * 10 ** rng.uniform(0, 3, (m, 1))
    return np.c_[large, np.full(m, 1e-3)]


FAMILIES = (
    random,
    low_rank,
    nearly_low_rank,
    nearly_parallel,
    nearly_opposite,
    all_positive,
    opposite_pairs,
    duplicated,
    pareto_stationary,
    common_offset,
    orthogonal,
    integer,
)
SPREADS = (0, 2, 4)  # rows are scaled by 10^U(0, spread), as powers of two


def jacobian(family, m, spread, seed=0):
    rng = np.random.default_rng([seed, m, spread, FAMILIES.index(family)])
    scales = 2.0 ** np.round(rng.uniform(0, spread * np.log2(10), size=(m, 1)))
    return family(m, rng) * scales


def gram_of(J, dtype=np.float32):
    J = np.asarray(J, np.float64)
    return (J @ J.T).astype(dtype)


def scaled(gram):
    """Cosines, and `c_t = min_s n_s / n_t` of the gradient norms `n`."""
    gram = np.float64(gram)
    norms = np.sqrt(gram.diagonal())
    return gram / np.outer(norms, norms), norms.min() / norms


def weights_by_nnls(gram):
    """The min-norm point by SciPy, from a factor of the cosines.

    `w ~ c u` where `u >= 0` has least `||F u||^2 + (c'u - 1)^2`, `F'F` the
    cosines. An oracle for any `m` and for singular matrices, of no zero row.
    """
    cosines, c = scaled(gram)
    eigenvalues, vectors = np.linalg.eigh(cosines)
    factor = np.sqrt(np.maximum(eigenvalues, 0))[:, None] * vectors.T
    system, right = np.vstack([factor, c]), np.r_[np.zeros(len(c)), 1.0]
    u = nnls(system, right, maxiter=100 * len(c))[0]
    return u * c / (u @ c)


def squared_norm(gram, task_weights):
    """`w'Gw` in float64; zero where rounding made the matrix indefinite."""
    w = np.float64(task_weights)
    return max(w @ np.float64(gram) @ w, 0.0)
