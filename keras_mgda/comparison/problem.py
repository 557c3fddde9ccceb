"""What is compared: a problem, and the trainings that are to be run on it."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_mgda.comparison.methods import (
    DEFAULTS,
    PLAIN_SUM,
    REFERENCE,
    SINGLE_TASKS,
    check_options,
)
from keras_mgda.comparison.settings import described

Values = dict[str, float]  # {task: metric}
Line = dict[str, Any]  # of the file of results: a training that ended


@dataclasses.dataclass(frozen=True)
class Problem:
    """The arguments of `compare` that all trainings have in common.

    Raises:
        ValueError: if one of them is none.
    """

    build: Callable[[], keras.Model]
    train: Any
    validation: Any
    test: Any
    losses: Mapping[str, Any]
    metrics: Mapping[str, Any]
    select: Mapping[str, Sequence[str]]
    optimizer: Callable[[float], Any]
    epochs: int
    patience: int
    batch_size: int
    compile_options: Mapping[str, Any]
    shared: str | Sequence[str] | None
    reference: Mapping[str, float] | None

    def __post_init__(self) -> None:
        for what in ("epochs", "patience", "batch_size"):
            number = getattr(self, what)
            if not isinstance(number, int) or number < 1:
                raise ValueError(
                    f"`{what}` must be a whole number of at least 1. "
                    f"Received: {number!r}."
                )
        tasks = list(self.losses)
        for what in ("metrics", "select", "reference"):
            of_tasks = getattr(self, what)
            if of_tasks is None and what == "reference":
                continue
            if set(of_tasks) != set(tasks) or not tasks:
                raise ValueError(
                    f"`{what}` must name the tasks of `losses`, {tasks}. "
                    f"Received: {list(of_tasks)}. Give each task one entry in "
                    "both."
                )
        for task, metric in self.select.items():
            pair = not isinstance(metric, str) and len(metric) == 2
            if not pair or metric[1] not in ("max", "min"):
                raise ValueError(
                    "`select` must give each task the name of a metric and "
                    f"'max' or 'min'. Received: {metric!r} for {task!r}. Write "
                    "`('accuracy', 'max')`."
                )
            if metric[0] == "loss":
                raise ValueError(
                    "`select` must name a metric: Keras's loss of a model with "
                    "one task also holds its weight and regularization. "
                    f"Received: 'loss' for {task!r}. Add the loss to "
                    "`metrics`, such as 'mse', and select that."
                )
        for task, value in (self.reference or {}).items():
            if not math.isfinite(value) or not value:
                raise ValueError(
                    "`reference` must give each task a finite number other "
                    "than zero, because changes are relative to it. Received: "
                    f"{value!r} for {task!r}."
                )
        if not callable(self.optimizer):
            raise ValueError(
                "`optimizer` must be a function from the learning rate to a "
                f"new optimizer, as its class is. Received: {self.optimizer!r}."
                " For other arguments take a `functools.partial`."
            )
        check_options(self.compile_options, "compile_options")
        weights = self.compile_options.get("loss_weights")
        if weights is not None and not isinstance(weights, Mapping):
            raise ValueError(
                "`loss_weights` must be a dict, `{task: number}`, for single "
                f"tasks are trained, too. Received: {weights!r}."
            )

    def described(self) -> dict[str, Any]:
        """What has to be the same for results to be compared."""
        # Of `build` and the splits there are digests.
        left_out = ("build", "train", "validation", "test", "reference")
        return {
            field.name: described(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in left_out
        }


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of the search; of one task if `task` is not `None`."""

    method: str
    task: str | None
    options: Any
    learning_rate: float
    seed: int

    def described(self) -> dict[str, Any]:
        """As it stands in its line of the file of results."""
        return {
            field.name: described(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }

    @property
    def key(self) -> str:
        """What it is known by, as `key` of its line."""
        return key(self.described())

    def of_reference(self) -> "Training":
        """The plain sum at the same rate and seed."""
        return dataclasses.replace(
            self, method=REFERENCE, task=None, options=DEFAULTS[PLAIN_SUM]
        )


def key(line: Mapping[str, Any]) -> str:
    """What a training is known by: two of the same key are the same."""
    names = [field.name for field in dataclasses.fields(Training)]
    return json.dumps([line[name] for name in names], sort_keys=True)


def plan(
    tries: Mapping[str, Sequence[tuple[float, Any]]],
    tasks: Sequence[str],
    seeds: Sequence[int],
) -> list[Training]:
    """All trainings of the search, all of a seed before the next one."""
    return [
        Training(method, task, options, rate, int(seed))
        for seed in seeds
        for method, of_method in tries.items()
        for rate, options in of_method
        for task in (tasks if method == SINGLE_TASKS else [None])
    ]


def check_search(
    learning_rates: Any, seeds: Any
) -> tuple[list[float], list[int]]:
    """Both as lists. A `ValueError` for no such number, one twice, or none."""
    if not isinstance(learning_rates, Iterable):
        raise ValueError(
            "`learning_rates` must be several numbers. Received: "
            f"{learning_rates!r}. Take `[{learning_rates!r}]` for one."
        )
    if not isinstance(seeds, Iterable):
        raise ValueError(
            "`seeds` must be the seeds themselves, not how many there are. "
            f"Received: {seeds!r}. Take `range({seeds!r})`."
        )
    learning_rates, seeds = [float(rate) for rate in learning_rates], [*seeds]
    positive = all(math.isfinite(r) and r > 0 for r in learning_rates)
    if not positive or not 0 < len(learning_rates) == len(set(learning_rates)):
        raise ValueError(
            "`learning_rates` must be different positive numbers, one at "
            f"least. Received: {learning_rates}. Leave out what is twice."
        )
    whole = all(isinstance(seed, (int, np.integer)) for seed in seeds)
    if not whole or not 0 < len(seeds) == len(set(seeds)):
        raise ValueError(
            "`seeds` must be different whole numbers, one at least. "
            f"Received: {seeds}. Take `range(5)`."
        )
    return learning_rates, seeds


def lower_is_better(select: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks that are measured by an error."""
    return [task for task, (_, mode) in select.items() if mode == "min"]
