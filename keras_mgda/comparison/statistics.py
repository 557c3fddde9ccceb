"""What can be said from a few seeds: intervals and p values.

SciPy is imported when it is needed; it comes with the extra
`keras_mgda[compare]`.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# In percent. Below is what float32 metrics round away.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over the seeds, and half of the width of its 95 % interval.

    `half_width` is `None` of a single seed, which tells no interval.
    """

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.4g}"
        # Two digits of the half width; four of the mean where that is zero up
        # to rounding.
        smallest = self.half_width
        if smallest <= 1e-7 * abs(self.mean):
            smallest = abs(self.mean) / 100
        digits = 2
        if smallest > 0:
            digits = max(0, 1 - math.floor(math.log10(smallest)))
        mean = round(self.mean, digits) + 0.0  # not -0.0
        return f"{mean:.{digits}f} ± {self.half_width:.{digits}f}"


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of a few numbers, with the 95 % interval of Student's t.

    Example:

    >>> print(mean_interval([1.0, 2.0, 3.0]))
    2.0 ± 2.5
    """
    number = len(values)
    mean = float(np.mean(values))
    if number < 2:
        return Interval(mean, None)
    deviation = float(np.std(values, ddof=1))
    quantile = float(optional("scipy.special").stdtrit(number - 1, 0.975))
    return Interval(mean, quantile * deviation / math.sqrt(number))


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Of paired differences in percent: is their mean zero? Two-sided.

    Student's t. Where all are the same up to rounding, as metrics that count a
    few examples may be, t is infinite whatever the seeds; the share of signs
    that are all alike, `2^(1-S)`, is taken then, and 1 if they are zero.

    Returns:
        `None` for less than two.

    Example:

    >>> round(paired_p_value([1.0, 2.0, 3.0]), 4)
    0.0742
    >>> paired_p_value([1.0, 1.0, 1.0]), paired_p_value([0.0, 0.0])
    (0.25, 1.0)
    """
    number = len(differences)
    if number < 2:
        return None
    mean = float(np.mean(differences))
    deviation = float(np.std(differences, ddof=1))
    if deviation <= _ROUNDING:
        return 1.0 if abs(mean) <= _ROUNDING else 2.0 ** (1 - number)
    t = mean * math.sqrt(number) / deviation
    return float(2 * optional("scipy.special").stdtr(number - 1, -abs(t)))


def holm(p_values: Mapping[str, float | None]) -> dict[str, float]:
    """Holm's correction: `p_(i)` times how many are not smaller, monotone.

    Those that are `None` are left out.

    Example:

    >>> holm({"x": 0.25, "y": 0.125, "z": None})
    {'y': 0.25, 'x': 0.25}

    References:
        Holm, 1979. A Simple Sequentially Rejective Multiple Test Procedure.
    """
    known = {name: p for name, p in p_values.items() if p is not None}
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(known, key=known.__getitem__)):
        largest = max(largest, (len(known) - place) * known[name])
        corrected[name] = min(1.0, largest)
    return corrected


@functools.cache
def optional(module: str) -> Any:
    """A module of the extra. Raises an `ImportError` that says which extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"A comparison needs {package}: pip install 'keras_mgda[compare]'."
        ) from error
