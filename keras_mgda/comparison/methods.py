"""The methods, and the options that each is tried with."""

import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_mgda import weightings
from keras_mgda.comparison.settings import portable
from keras_mgda.model import MGDAModel

SINGLE_TASKS = "single tasks"
PLAIN_SUM = "plain sum"
FIXED_WEIGHTS = "fixed weights"
REFERENCE = "reference"  # a training that only gives the scale of the scores
DEFAULTS: dict[str, dict[str, Any]] = {
    SINGLE_TASKS: {"weighting": "uniform"},
    PLAIN_SUM: {"weighting": "uniform"},
    "MGDA-UB": {"weighting": "mgda"},
    "UPGrad": {"weighting": "upgrad"},
    "FAMO": {"weighting": "famo"},
    "Nash-MTL": {"weighting": "nash_mtl"},
    "IMTL-G": {"weighting": "imtl_g"},
    FIXED_WEIGHTS: {},  # `spread_weights`
}
# What `compare` itself passes to `compile`.
_NOT_OPTIONS = {"self", "optimizer", "loss", "metrics", "args", "kwargs"}


def tries(
    methods: Mapping[str, Any] | Iterable[str] | None,
    tasks: Sequence[str],
    learning_rates: Sequence[float],
) -> dict[str, list[tuple[float, Any]]]:
    """`{method: [(learning rate, options)]}`, as many for each method.

    Raises:
        ValueError: if two methods have one name, or one has no such options.
    """
    if methods is None:
        methods = DEFAULTS.keys()
    if isinstance(methods, str):
        methods = [methods]
    names = list(methods)
    given = dict(methods) if isinstance(methods, Mapping) else {}
    folded = [str(name).strip().casefold() for name in names]
    if len(set(folded)) < len(folded) or {"", REFERENCE} & set(folded):
        raise ValueError(
            "Every method must have a name of its own, other than "
            f"{REFERENCE!r}, whatever the case of its letters. Received: "
            f"{names}. Rename those that are the same."
        )
    if PLAIN_SUM not in names:
        names.insert(0, PLAIN_SUM)
    number = len(learning_rates)
    return {
        # No more tries for who has more options.
        method: [
            (rate, portable(dict(one)))
            for rate, one in zip(
                learning_rates,
                itertools.cycle(
                    _options(method, given.get(method), tasks, number)
                ),
                strict=False,
            )
        ]
        for method in names
    }


def _options(
    method: str, options: Any, tasks: Sequence[str], number: int
) -> Sequence[Mapping[str, Any]]:
    if options is None:
        if method not in DEFAULTS:
            raise ValueError(
                "A method without compile options must be one of "
                f"{list(DEFAULTS)}. Received: {method!r}. Give it options, as "
                "in `{'mine': {'weighting': 'dwa'}}`."
            )
        if method == FIXED_WEIGHTS:
            return spread_weights(tasks, number)
        return [DEFAULTS[method]]
    if method in (SINGLE_TASKS, PLAIN_SUM):
        raise ValueError(
            f"{method!r} must be what its name says, and have `None` as its "
            f"options. Received: {options!r}. Take another name."
        )
    if isinstance(options, Mapping):
        options = [options]
    if not isinstance(options, (list, tuple)) or not options:
        raise ValueError(
            "A method must be a dict of compile options, or a list of them. "
            f"Received: {options!r} for {method!r}. Write "
            "`{'weighting': ...}`."
        )
    for one in options:
        check_options(one, f"methods[{method!r}]")
    return options


def check_options(options: Any, where: str) -> None:
    """Raises a `ValueError` if `compile` does not take the options."""
    known = {"unlabelled"}
    for compiles in (MGDAModel.compile, keras.Model.compile):
        known |= set(inspect.signature(compiles).parameters) - _NOT_OPTIONS
    if not isinstance(options, Mapping) or set(options) - known:
        raise ValueError(
            f"`{where}` must be a dict of options of `compile`, some of "
            f"{sorted(known)}. Received: {options!r}. Losses, metrics and "
            "optimizer are arguments of `compare`."
        )
    if "weighting" in options:
        weightings.get(options["weighting"])


def spread_weights(tasks: Sequence[str], number: int) -> list[dict[str, Any]]:
    """Task weights of sum `m`: equal ones, then others all over the simplex.

    Points of low discrepancy `u [m]`, made uniform on the simplex by
    `w ~ -log u`. Each is the same however many there are.

    References:
        Roberts, 2018. The unreasonable effectiveness of quasirandom sequences.
    """
    m = len(tasks)
    root = 2.0  # of x^(m+1) = x + 1
    for _ in range(64):
        root = (1 + root) ** (1 / (m + 1))
    steps = root ** -np.arange(1.0, m + 1)
    options = []
    for k in range(number):
        w = -np.log((0.5 + k * steps) % 1)
        w = np.round(w * m / w.sum(), 6)
        options.append({"weighting": dict(zip(tasks, w.tolist(), strict=True))})
    return options
