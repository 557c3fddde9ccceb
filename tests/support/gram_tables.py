"""Tables of `pytest.param(gram)`, float32, that break solvers."""

import numpy as np
import pytest

from benchmarks.gram_matrices import (
    FAMILIES,
    SPREADS,
    cancelling,
    gram_of,
    jacobian,
    pareto_stationary,
)


def table(sizes, seeds=1):
    return [
        pytest.param(
            gram_of(jacobian(family, m, spread, seed)),
            id=f"{family.__name__}-m={m}-spread=1e{spread}-seed={seed}",
        )
        for m in sizes
        for family in FAMILIES
        for spread in SPREADS
        for seed in range(seeds)
        if m > 1 or family is not pareto_stationary
    ]


SMALL = table([1, 2, 3, 5])
LARGE = table([10, 40]) + [
    pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
    for case in table([128])
]
# Here rounding decides: the solution need not be near that of the exact Gram
# matrix, but is one to the rounding of its entries.
ROUNDED_AWAY = [
    pytest.param(
        gram_of(cancelling(m, np.random.default_rng(seed), dimension)),
        id=f"cancelling-m={m}-dimension={dimension}-seed={seed}",
    )
    for m in [3, 10, 40, 128]
    for dimension in [1, 2]
    for seed in range(3)
]

# With the min-norm point of each, where there is one only.
KNOWN = [
    pytest.param(np.float32(gram), np.float32(task_weights), id=name)
    for name, gram, task_weights in [
        ("one_task", [[7.0]], [1.0]),
        ("one_zero_task", [[0.0]], [1.0]),
        ("balanced", [[18.0, -22.0], [-22.0, 38.0]], [0.6, 0.4]),
        ("first_is_shortest", [[1.0, 2.0], [2.0, 9.0]], [1.0, 0.0]),
        ("second_is_shortest", [[9.0, 2.0], [2.0, 1.0]], [0.0, 1.0]),
        ("opposite", [[1.0, -2.0], [-2.0, 4.0]], [2 / 3, 1 / 3]),
        ("one_of_two_zero", [[4.0, 0.0], [0.0, 0.0]], [0.0, 1.0]),
        ("diagonal", np.diag([1.0, 2.0, 4.0]), [4 / 7, 2 / 7, 1 / 7]),
        ("spread_1e8", np.diag([1e-8, 1.0, 1e8]), [1.0 - 1e-8, 1e-8, 1e-16]),
        ("one_of_three_zero", np.diag([3.0, 0.0, 5.0]), [0.0, 1.0, 0.0]),
        (
            "vertex_of_four",
            gram_of([[1, 0], [2, 1], [3, -1], [5, 0]]),
            [1.0, 0.0, 0.0, 0.0],
        ),
        (
            "triangle_around_zero",
            gram_of([[1, 0], [-1, 1], [-1, -1]]),
            [0.5, 0.25, 0.25],
        ),
    ]
]
