"""What was tried, and what validation chooses from it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_mgda import pareto
from keras_mgda.comparison.methods import SINGLE_TASKS
from keras_mgda.comparison.problem import Line, Values

# {task or None: {candidate: [line of each seed]}}, of a method. A candidate is
# a learning rate with options.
Parts = dict[Any, dict[str, list[Line]]]


def searches(
    lines: Sequence[Line], tasks: Iterable[str], seeds: Sequence[int]
) -> dict[str, Parts]:
    """`{method: parts}`; its parts are the tasks, or `None` for all of them.

    Raises:
        ValueError: if not all have as many candidates with all seeds.
    """
    found: dict[str, dict[Any, dict[str, dict[int, Line]]]] = {}
    for line in lines:
        candidate = json.dumps([line["learning_rate"], line["options"]])
        parts = found.setdefault(line["method"], {})
        candidates = parts.setdefault(line["task"], {})
        candidates.setdefault(candidate, {})[line["seed"]] = line
    numbers = {
        f"{method}, {part}" if part else method: list(map(len, tried.values()))
        for method, parts in found.items()
        for part, tried in parts.items()
    }
    same = [len(seeds)] * max(map(len, numbers.values()))
    single = set(found.get(SINGLE_TASKS, tasks))
    if any(of != same for of in numbers.values()) or single != set(tasks):
        counts = {name: sum(of) for name, of in numbers.items()}
        raise ValueError(
            "Every method must have the same search: as many learning rates, "
            f"each with all {len(seeds)} seeds. Received: {counts} trainings. "
            "If `compare` was interrupted, call it again: it goes on."
        )
    return {
        method: {
            part: {
                candidate: [of_seeds[seed] for seed in seeds]
                for candidate, of_seeds in tried.items()
            }
            for part, tried in parts.items()
        }
        for method, parts in found.items()
    }


def choose(
    validation: Mapping[str, Sequence[Values | None]],
    reference: Mapping[str, float],
    lower: Iterable[str],
) -> tuple[str, float] | None:
    """The candidate with the best mean score, and that score.

    One that diverged for some seed is not chosen. Knows of no test split.

    Args:
        validation: `{candidate: [metrics of each seed]}`, `None` where it
            diverged.
        reference: `{task: R_t}`.
        lower: the tasks that are measured by an error.
    """

    def score(values: Values) -> float:
        of_tasks = {task: reference[task] for task in values}
        return pareto.delta_m(values, of_tasks, set(lower) & set(values))

    scores = {
        candidate: float(np.mean([score(v) for v in of_seeds if v is not None]))
        for candidate, of_seeds in validation.items()
        if None not in of_seeds
    }
    return max(scores.items(), key=lambda item: item[1], default=None)
