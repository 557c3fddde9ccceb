"""Whether methods differ over several data sets (Demsar, 2006).

`k` methods, `N` data sets, `r_ij` the rank of method `j` on data set `i`, 1 the
best. Friedman's test asks whether the mean ranks `R_j` could be those of equal
methods. Nemenyi's says of two of them that they differ if their mean ranks do
by more than the critical difference, for any two of all at once:

    CD = q sqrt(k (k + 1) / (6 N)),

`q` the 95 % quantile of the studentized range of `k` normals, over `sqrt(2)`.

References:
    Demsar, 2006. Statistical Comparisons of Classifiers over Multiple Data
    Sets. Journal of Machine Learning Research 7.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.stats


class Ranks(NamedTuple):
    """What the ranks tell.

    Attributes:
        mean: `{method: R_j}`, the best first.
        p_value: of Friedman's test.
        critical_difference: of Nemenyi's, at 5 %.
        groups: methods of which no two differ, each group as large as can be.
        number: of data sets.
    """

    mean: dict[str, float]
    p_value: float
    critical_difference: float
    groups: list[list[str]]
    number: int


def of_scores(scores):
    """From `{data set: {method: score}}`, where large scores are better.

    Example:

    >>> found = of_scores({i: {"a": 2.0, "b": 1.0 + i} for i in range(3)})
    >>> {method: round(rank, 2) for method, rank in found.mean.items()}
    {'a': 1.5, 'b': 1.5}
    """
    methods = list(next(iter(scores.values())))
    table = np.array([[of[m] for m in methods] for of in scores.values()])
    ranks = scipy.stats.rankdata(-table, axis=1)
    mean = dict(zip(methods, ranks.mean(axis=0).tolist(), strict=True))
    mean = dict(sorted(mean.items(), key=lambda item: item[1]))
    number, k = table.shape
    p_value = scipy.stats.friedmanchisquare(*ranks.T).pvalue if k > 2 else None
    q = scipy.stats.studentized_range.ppf(0.95, k, np.inf) / math.sqrt(2)
    difference = q * math.sqrt(k * (k + 1) / (6 * number))
    return Ranks(mean, p_value, difference, groups(mean, difference), number)


def of_one(scores):
    """`{method: rank}` on one data set, from `{method: score}`.

    Example:

    >>> of_one({"a": 2.0, "b": 3.0, "c": 2.0})
    {'a': 2.5, 'b': 1.0, 'c': 2.5}
    """
    ranks = scipy.stats.rankdata([-score for score in scores.values()])
    return dict(zip(scores, ranks.tolist(), strict=True))


def groups(mean, difference):
    """Runs of neighbours within the difference, that are part of no other.

    Example:

    >>> groups({"a": 1.0, "b": 2.0, "c": 3.0}, 1.5)
    [['a', 'b'], ['b', 'c']]
    """
    names = list(mean)
    found = []
    for i, first in enumerate(names):
        run = [m for m in names[i:] if mean[m] - mean[first] <= difference]
        if not found or run[-1] != found[-1][-1]:
            found.append(run)
    return [run for run in found if len(run) > 1]
