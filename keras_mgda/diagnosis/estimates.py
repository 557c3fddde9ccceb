"""Averages over pairs of batches, and where the true numbers lie.

Gradients of different batches are independent. A *kernel* is an array `[B, B]`,
symmetric, whose entry at `i, j` is a function of the batches `i` and `j`; its
average over `i != j` (a U-statistic) has the mean of this function, and the
kernel tells the variance of the average, too.
"""

import math
import statistics
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Of every interval, and of all findings together.
CONFIDENCE = 0.95

# Fewer batches than this leave the variance of a variance to chance.
MIN_BATCHES = 8


class Estimate(NamedTuple):
    """A number from some batches, and where the true one lies.

    Attributes:
        value: the estimate; NaN if the batches do not tell.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "not to be told"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Estimates(NamedTuple):
    """Several numbers: arrays of what an `Estimate` has of each."""

    value: Array
    low: Array
    high: Array

    def at(self, index: Any) -> Estimate:
        return Estimate(*(float(part[index]) for part in self))

    def clipped(self, low: float, high: float) -> "Estimates":
        return Estimates(*(np.clip(part, low, high) for part in self))


def of_each(values: Array) -> Array:
    """`[..., B, B]`: the kernel whose average over `i != j` is the mean."""
    kernels = (values[..., :, None] + values[..., None, :]) / 2
    return kernels * (1 - np.eye(values.shape[-1]))


def means_and_covariance(x: Array, y: Array) -> tuple[Array, Array]:
    """Averages of two kernels over `i != j`, and the covariance of these.

    With `p = E h(1, 2) h(1, 3)` and `s = E h(1, 2)^2`, less the squared mean,
    the variance of the average is

        2 / (B (B - 1)) * (2 (B - 2) p + s)

    (Hoeffding, 1948). All three have unbiased estimates; that of `p`, which
    noise may make negative, is cut at zero. To draw batches with replacement
    would take the sampling error of the projection for signal, and triple the
    variance where noise prevails.

    Args:
        x: `[n, B, B]`, symmetric, with a zero diagonal.
        y: alike; or `[1, B, B]`, one for all.

    Returns:
        `[n, 2]` and `[n, 2, 2]`.
    """
    B = x.shape[-1]
    pairs = B * (B - 1)
    triples, quadruples = pairs * (B - 2), pairs * (B - 2) * (B - 3)
    of_two = np.stack(np.broadcast_arrays(x, y), axis=-3)
    rows = of_two.sum(-1)
    total = rows.sum(-1)
    flat = of_two.reshape(*of_two.shape[:-2], -1)
    squares = flat @ flat.swapaxes(-1, -2)
    chains = rows @ rows.swapaxes(-1, -2) - squares
    product = total[..., :, None] * total[..., None, :]
    apart = (product - 4 * chains - 2 * squares) / quadruples
    projected = _semidefinite(chains / triples - apart)
    whole = _semidefinite(squares / pairs - apart)
    return total / pairs, 2 / pairs * (2 * (B - 2) * projected + whole)


def _semidefinite(matrices: Array) -> Array:
    values, vectors = np.linalg.eigh(matrices)
    scaled = vectors * np.maximum(values, 0.0)[..., None, :]
    return scaled @ vectors.swapaxes(-1, -2)


def interval_of_ratio(
    x: Array, y: Array, q: float, more: Any = 0.0
) -> Estimates:
    """The ratio of two averages, and the interval of Fieller (1954).

    It holds the `r` with `(x - r y)^2 <= q^2 Var(x - r y)`, and is not bounded
    if the denominator may as well be zero.

    Args:
        x: `[n, B, B]`, kernels, as in `means_and_covariance`.
        y: alike, of the denominators.
        q: half the interval, in standard errors.
        more: added to the variance of `x`.
    """
    means, covariance = means_and_covariance(x, y)
    mean_x, mean_y = means[..., 0], means[..., 1]
    a = mean_y**2 - q**2 * covariance[..., 1, 1]
    b = mean_x * mean_y - q**2 * covariance[..., 0, 1]
    c = mean_x**2 - q**2 * (covariance[..., 0, 0] + more)
    # Rounding is no signal.
    bounded = (mean_y > 0) & (a > 1e-12 * mean_y**2)
    safe = np.where(bounded, a, 1.0)
    root = np.sqrt(np.maximum(b * b - a * c, 0.0))
    value = np.where(bounded, mean_x / np.where(bounded, mean_y, 1.0), np.nan)
    return Estimates(
        value,
        np.where(bounded, np.minimum((b - root) / safe, value), -np.inf),
        np.where(bounded, np.maximum((b + root) / safe, value), np.inf),
    )


def student(p: float, degrees: int) -> float:
    """A quantile of Student's distribution, by its expansion at the normal.

    Hill, 1970. To 1 % where it is used here; without SciPy.
    """
    z = statistics.NormalDist().inv_cdf(p)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def wilson(count: float, number: int, z: float) -> Estimate:
    """The interval of Wilson (1927) for a share."""
    share = count / number
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = (
        z
        * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
        / (1 + z**2 / number)
    )
    return Estimate(share, max(middle - half, 0.0), min(middle + half, 1.0))
