"""What was tried, and what validation chooses from it."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_mgda import pareto
from keras_mgda.comparison.methods import SINGLE_TASKS
from keras_mgda.comparison.problem import Line

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
    parts: Parts, reference: Mapping[str, float], lower: Iterable[str]
) -> tuple[dict[Any, list[Line]], float | None]:
    """The best mean score on validation, and the lines of it, in each part.

    A candidate that diverged for some seed is not chosen; a part in which all
    of them did is left out. What the lines say of the test split is not read.

    Args:
        parts: of a method.
        reference: `{task: R_t}`.
        lower: the tasks that are measured by an error.

    Returns:
        `{part: [line of each seed]}`, and the mean score; `None` if a part is
        missing.
    """

    def score(line: Line) -> float:
        values = line["validation"]
        if values is None:
            return -math.inf
        of_tasks = {task: reference[task] for task in values}
        return pareto.delta_m(values, of_tasks, set(lower) & set(values))

    chosen, scores = {}, []
    for part, candidates in parts.items():
        means = {
            candidate: float(np.mean([score(line) for line in of_seeds]))
            for candidate, of_seeds in candidates.items()
        }
        best = max(means, key=means.__getitem__)
        scores.append(means[best])
        if means[best] > -math.inf:
            chosen[part] = candidates[best]
    whole = len(chosen) == len(parts)
    return chosen, float(np.mean(scores)) if whole else None
