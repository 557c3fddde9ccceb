"""What the mean gradients are, from their products in single batches."""

from typing import Any

import numpy as np
import numpy.typing as npt

from keras_mgda.diagnosis.estimates import (
    Array,
    Estimate,
    Estimates,
    interval_of_ratio,
    means_and_covariance,
    of_each,
)
from keras_mgda.linalg.min_norm import min_norm_point


class Means:
    """Estimates of what the mean gradients are, `t = m` standing for the sum.

    Args:
        products: `[m, m, B, B]`.
        sketch_size: of the gradients, if they were sketched.

    Attributes:
        inner: `[m + 1, m + 1]`, `<mu_t, mu_s>`.
        squared: `[m + 1]`, `E |g_t|^2`.
        in_batches: `[m, m, B]`, the cosines within each batch; NaN where a
            gradient is zero.
    """

    def __init__(self, products: Array, sketch_size: int | None) -> None:
        m, B = products.shape[1:3]
        self.num_tasks, self.num_batches = m, B
        self._sketch_size = sketch_size
        # The sum is a task like the others.
        with_sum = np.concatenate([products, products.sum(0)[None]], axis=0)
        with_sum = np.concatenate([with_sum, with_sum.sum(1)[:, None]], axis=1)
        self._squares = np.einsum("ttii->ti", with_sum)
        self.squared = self._squares.mean(-1)
        within = np.einsum("tsii->tsi", products)
        norms = np.sqrt(self._squares[:m])
        lengths = norms[:, None] * norms[None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.in_batches = np.where(lengths > 0, within / lengths, np.nan)
        self._kernels = (with_sum + with_sum.swapaxes(-1, -2)) / 2
        i = np.arange(B)
        self._kernels[:, :, i, i] = 0.0
        self.inner = self._kernels.sum((-1, -2)) / (B * (B - 1))

    def cosines_in_batches(self) -> Array:
        known = np.isfinite(self.in_batches)
        total = np.where(known, self.in_batches, 0.0).sum(-1)
        counts = known.sum(-1)
        return np.where(counts, total / np.maximum(counts, 1), np.nan)

    def known_cosines(self, t: int, s: int) -> Array:
        """Of two tasks, in the batches where both have a gradient."""
        of_batches = self.in_batches[t, s]
        return of_batches[np.isfinite(of_batches)]

    def cosines(self, q: float) -> Estimates:
        """`[m + 1, m + 1]`: cosines of the means, and the ends of intervals.

        Nothing is said of a gradient that is not longer than its error.
        """
        n = self.num_tasks + 1
        norms = np.diag(self.inner)
        own = self._kernels[np.arange(n), np.arange(n)]
        _, covariance = means_and_covariance(own, own)
        known = norms > q * np.sqrt(covariance[:, 0, 0])
        safe = np.where(known, norms, 1.0)
        value, low, high = np.full([3, n, n], np.nan)
        for t in range(n):
            ratio = np.sqrt(safe / safe[t])[:, None, None]
            # The derivative of `|mu_t| |mu_s|`, whose value it has, too.
            lengths = (ratio * own[t] + own / ratio) / 2
            found = interval_of_ratio(
                self._kernels[t], lengths, q, self._sketch_error(t, safe)
            )
            both = known & known[t]
            found = found.clipped(-1, 1)
            value[t] = np.where(both, found.value, np.nan)
            low[t] = np.where(both, found.low, -1.0)
            high[t] = np.where(both, found.high, 1.0)
        return Estimates(value, low, high)

    def _sketch_error(self, t: int, norms: Array) -> Any:
        """The variance that sketches add to `<mu_t, mu_s>` at its cosine."""
        if self._sketch_size is None:
            return 0.0
        lengths = norms * norms[t]
        cosine2 = np.minimum(self.inner[t] ** 2 / lengths, 1.0)
        return lengths * (1 - cosine2) ** 2 / self._sketch_size

    def shares(self, q: float) -> Estimates:
        """`[m]`: `<mu_t, d> / |d|^2`."""
        m = self.num_tasks
        return interval_of_ratio(
            self._kernels[:m, m], self._kernels[m, m][None], q
        )

    def shares_of_norms(self, q: float) -> Estimates:
        """`[m]`: `|mu_t|^2 / sum_s |mu_s|^2`."""
        t = np.arange(self.num_tasks)
        own = self._kernels[t, t]
        return interval_of_ratio(own, own.sum(0)[None], q)

    def signals(self, q: float) -> Estimates:
        """`[m]`: `|mu_t|^2 / E |g_t|^2`."""
        t = np.arange(self.num_tasks)
        own, squares = self._kernels[t, t], of_each(self._squares[t])
        return interval_of_ratio(own, squares, q).clipped(0, 1)

    def contributions(self, q: float) -> Array:
        """`[m, m]`: lower ends of what the means add to a batch's cosine."""
        m = self.num_tasks
        squares = of_each(self._squares[:m])
        safe = np.where(self.squared[:m] > 0, self.squared[:m], 1.0)
        low = np.empty([m, m])
        for t in range(m):
            ratio = np.sqrt(safe / safe[t])[:, None, None]
            lengths = (ratio * squares[t] + squares / ratio) / 2
            low[t] = interval_of_ratio(self._kernels[t, :m], lengths, q).low
        return low

    def stationarity(self, active: npt.NDArray[np.bool_], q: float) -> Estimate:
        """Norm of the min-norm point, in parts of the smallest gradient's."""
        B, m = self.num_batches, self.num_tasks
        # Of the gradients as they are, whose Gram matrix is semidefinite; but
        # the norm at these weights is that of the means.
        between = self.inner[:m, :m] * (B - 1) / B
        lengths = np.sqrt(self.squared[:m, None] * self.squared[:m])
        within = np.nan_to_num(self.in_batches.mean(-1)) * lengths / B
        gram = between + (within + within.T) / 2
        w = min_norm_point(gram, active=active).task_weights.numpy()
        norms = np.where(active, np.diag(self.inner)[:m], np.inf)
        smallest = int(np.argmin(norms))
        combined = np.einsum("t,s,tsij->ij", w, w, self._kernels[:m, :m])
        found = interval_of_ratio(
            combined[None], self._kernels[smallest, smallest][None], q
        )
        return Estimates(*map(np.sqrt, found.clipped(0, 1))).at(0)
