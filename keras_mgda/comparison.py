"""Which method to take: every method on the same data, by the same search.

`compare` trains, `Comparison` tells what was found. Letters: `t` a task of `m`,
`M_t` its metric, `s_t` plus one where the metric is to be large and minus one
where it is to be small. Statistics need SciPy and plots matplotlib: the extra
`keras_mgda[compare]`.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import io
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import pickle
import platform
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mgda import pareto, weightings
from keras_mgda.model import MGDAModel

SINGLE_TASKS = "single tasks"
PLAIN_SUM = "plain sum"
FIXED_WEIGHTS = "fixed weights"
REFERENCE = "reference"  # a training that only gives the scale of the scores
_METHODS: dict[str, dict[str, Any]] = {
    SINGLE_TASKS: {"weighting": "uniform"},
    PLAIN_SUM: {"weighting": "uniform"},
    "MGDA-UB": {"weighting": "mgda"},
    "UPGrad": {"weighting": "upgrad"},
    "FAMO": {"weighting": "famo"},
    "Nash-MTL": {"weighting": "nash_mtl"},
    "IMTL-G": {"weighting": "imtl_g"},
    FIXED_WEIGHTS: {},
}
# What `compare` itself passes to `compile`.
_NOT_OPTIONS = {"self", "optimizer", "loss", "metrics", "args", "kwargs"}
# Every line begins so, and what does not is not one of ours.
_BEGINNING = '{"comparison": 1, '
_SIGNIFICANT = 0.05
# In percent. Below is what float32 metrics round away.
_ROUNDING = 1e-5
_MAX_TASK_COLUMNS = 6

Values = dict[str, float]
Line = dict[str, Any]


def compare(
    build: Callable[[], keras.Model],
    train: Any,
    validation: Any,
    test: Any,
    *,
    losses: Mapping[str, Any],
    metrics: Mapping[str, Any],
    select: Mapping[str, tuple[str, str]],
    results: str | os.PathLike[str],
    methods: Mapping[str, Any] | Iterable[str] | None = None,
    optimizer: Callable[[float], Any] = keras.optimizers.Adam,
    learning_rates: Sequence[float] = (3e-4, 1e-3, 3e-3),
    seeds: Iterable[int] = range(5),
    epochs: int = 50,
    patience: int | None = 10,
    batch_size: int = 32,
    compile_options: Mapping[str, Any] | None = None,
    shared: str | Sequence[str] | None = None,
    reference: Mapping[str, float] | None = None,
    name: str = "data",
    executor: Executor | int | None = None,
    allow_overlap: bool = False,
    verbose: int = 0,
) -> "Comparison":
    """Trains a model by every method, with the same search for each.

    A method has one training for each learning rate and each seed. A training
    keeps its epoch, and a method its learning rate, by the score on the
    validation split

        score(M) = 100 / m  sum_t  s_t (M_t - R_t) / |R_t|,

    the mean relative change against a reference `R`: no unit of a metric
    counts, and no other method. The mean over the seeds decides on the rate.
    The metrics of the test split are computed once in each training, after its
    epoch is chosen, and no choice looks at them.

    The single tasks are models with one output of `build()` each, trained for
    it alone. Each has the whole search, and the best rate for itself.

    Args:
        build: makes a new model of random variables at each call: functional
            with a dict of outputs, `{task: tensor}`, or an `MGDAModel`.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, where `y` is a
            dict, `{task: labels}`; a `tf.data.Dataset` of such batches; or a
            function of no arguments that returns one of these, for large data
            and for data sets, which do not go to another process.
        validation: the same; chooses epochs and learning rates.
        test: the same; chooses nothing.
        losses: `{task: loss}`.
        metrics: `{task: metrics}`, one or several, as in Keras.
        select: `{task: (name, mode)}`: the metric that counts, by its name in
            the logs, and `"max"` or `"min"`.
        results: a file with a line of JSON for each training that ended. The
            same call goes on where it was interrupted; methods, seeds and
            learning rates may have been added at the end.
        methods: `{name: compile options}`, or the names of default methods,
            which is also what `None` as the options stands for. A list of
            options is searched along with the learning rates: the k-th rate is
            tried with the k-th of them, in a circle, so that the number of
            trainings is that of all. `None`: single tasks, plain sum, MGDA-UB,
            UPGrad, FAMO, Nash-MTL, IMTL-G, and fixed task weights, equal ones
            and others spread over the simplex. The plain sum is always there.
        optimizer: makes the optimizer of a learning rate.
        learning_rates: those that are tried.
        seeds: of the variables and of the order of the examples.
        epochs: at most.
        patience: the number of epochs without a better score after which a
            training ends. `None`: it never does.
        batch_size: of arrays.
        compile_options: of all methods, as `{"unlabelled": "nan"}`.
        shared: as in `MGDAModel.from_model`.
        reference: `R`. `None`: the best that one more training by the plain
            sum reaches in each task on the validation split, with the first
            learning rate and the first seed.
        name: of the data, in the lines of `results`.
        executor: what runs the trainings: any `concurrent.futures.Executor`,
            or how many processes at a time, `None` for one. Each training then
            has a process of its own, because one that trains many models
            grows. `comparison.InProcess()` trains in this process.
        allow_overlap: whether an example may be in two splits.
        verbose: 1 shows a progress bar.

    Returns:
        What was found.

    Raises:
        ValueError: if an argument does not fit; if splits overlap; if
            `results` holds trainings of other settings, or is another file; if
            a metric is missing or not finite before any training.
        RuntimeError: if a training failed other than by diverging.
        OSError: if `results` cannot be written.
        ImportError: if SciPy is missing.

    Example:

    >>> import tempfile
    >>> import keras, keras_mgda, numpy as np
    >>> from keras_mgda import comparison
    >>> def build():
    ...     inputs = keras.Input((4,))
    ...     z = keras.layers.Dense(3, activation="relu")(inputs)
    ...     z = keras_mgda.SharedRepresentation()(z)
    ...     heads = {task: keras.layers.Dense(1)(z) for task in ("a", "b")}
    ...     return keras_mgda.MGDAModel(inputs, heads)
    >>> rng = np.random.default_rng(0)
    >>> def split():
    ...     x = rng.normal(size=(32, 4)).astype("float32")
    ...     return x, {"a": x[:, :1], "b": x[:, 1:2] - x[:, 2:3]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = comparison.compare(
    ...         build, split(), split(), split(),
    ...         losses={"a": "mse", "b": "mae"},
    ...         metrics={"a": "mae", "b": "mae"},
    ...         select={"a": ("mae", "min"), "b": ("mae", "min")},
    ...         results=f"{folder}/runs.jsonl",
    ...         methods=["plain sum", "MGDA-UB"],
    ...         learning_rates=[0.01], seeds=[0, 1], epochs=2,
    ...         compile_options={"run_eagerly": True},
    ...         executor=comparison.InProcess(),
    ...     )
    >>> sorted(row.method for row in found.rows)
    ['MGDA-UB', 'plain sum']

    References:
        Kurin et al., 2022. In Defense of the Unitary Scalarization for Deep
        Multi-Task Learning. https://arxiv.org/abs/2201.04122
        Maninis et al., 2019. Attentive single-tasking of multiple tasks.
        Equation 4. https://arxiv.org/abs/1904.08918
    """
    _scipy_special()  # before hours of training, not after them
    seeds, learning_rates = list(seeds), [float(r) for r in learning_rates]
    _check_numbers(learning_rates, seeds, epochs, patience, batch_size)
    _check_tasks(losses, metrics, select, reference)
    seeds = [int(seed) for seed in seeds]
    if not callable(optimizer):
        raise ValueError(
            "`optimizer` must be a function from the learning rate to a new "
            f"optimizer, as its class is. Received: {optimizer!r}. For other "
            "arguments take a `functools.partial`."
        )
    _check_options(compile_options or {}, "compile_options")
    problem = _Problem(
        build=build,
        train=train,
        validation=validation,
        test=test,
        losses=dict(losses),
        metrics=_portable(dict(metrics)),
        select={task: tuple(of_task) for task, of_task in select.items()},
        optimizer=optimizer,
        epochs=epochs,
        patience=epochs if patience is None else patience,
        batch_size=batch_size,
        compile_options=_portable(dict(compile_options or {})),
        shared=shared,
    )
    tries = _tries(methods, list(losses), learning_rates)
    planned = [
        _Training(method, task, options, rate, seed)
        for seed in seeds
        for method, of_method in tries.items()
        for rate, options in of_method
        for task in (losses if method == SINGLE_TASKS else [None])
    ]
    path = pathlib.Path(results)
    digests = _check_splits(train, validation, test, allow_overlap)
    _check_writable(path)
    with _running(executor, problem) as run:
        kinds = {
            json.dumps(_described([training.task, training.options])): training
            for training in reversed(planned)  # the first of each stays
        }
        try:
            network = run(_check, problem, list(kinds.values())).result()
        except BrokenProcessPool as error:
            raise _failure(error, planned[0], path) from error
        settings = json.loads(
            json.dumps(
                {
                    **problem.described(),
                    "splits": digests,
                    "network": network,
                    "reference": dict(reference) if reference else None,
                    "reference_training": (
                        None if reference else [learning_rates[0], seeds[0]]
                    ),
                }
            )
        )
        finished = _finished(path, name, settings, tries)

        def write(training: _Training, found: Line) -> None:
            line = {
                "comparison": 1,
                "data": name,
                **training.described(),
                **found,
                "settings": settings,
            }
            _append(path, line)
            finished[training.key] = line

        if reference is None:
            first = _plain_sum(planned[0])
            if first.key not in finished:
                _run_all(run, problem, [first], write, path, None)
            planned = [first, *planned]
            reference = finished[first.key]["validation"]
        problem = dataclasses.replace(problem, reference=dict(reference))
        bar = None
        if verbose:
            bar = keras.utils.Progbar(len(planned), unit_name="training")
        todo = [t for t in planned if t.key not in finished]
        _run_all(run, problem, todo, write, path, bar)
    return Comparison([finished[training.key] for training in planned])


# What is compared: the arguments, checked and made ready for other processes.


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What all trainings have in common."""

    build: Callable[[], keras.Model]
    train: Any
    validation: Any
    test: Any
    losses: dict[str, Any]
    metrics: Any
    select: dict[str, Any]
    optimizer: Callable[[float], Any]
    epochs: int
    patience: int
    batch_size: int
    compile_options: Any
    shared: str | Sequence[str] | None
    reference: Values | None = None

    @property
    def lower(self) -> list[str]:
        return _lower(self.select)

    def described(self) -> dict[str, Any]:
        """What has to be the same for results to be compared."""
        # Of `build` and the splits there are digests.
        left_out = ("build", "train", "validation", "test", "reference")
        return {
            field.name: _described(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in left_out
        }


@dataclasses.dataclass(frozen=True)
class _Training:
    """One training of the search; of one task if `task` is not `None`."""

    method: str
    task: str | None
    options: Any
    learning_rate: float
    seed: int

    def described(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "task": self.task,
            "options": _described(self.options),
            "learning_rate": self.learning_rate,
            "seed": self.seed,
        }

    @property
    def key(self) -> str:
        return _key(self.described())


def _plain_sum(training: _Training) -> _Training:
    """The training of the reference, at the same rate and seed."""
    return dataclasses.replace(
        training, method=REFERENCE, task=None, options=_METHODS[PLAIN_SUM]
    )


def _key(described: Mapping[str, Any]) -> str:
    """What a training is known by: two of the same key are the same."""
    names = ("method", "task", "options", "learning_rate", "seed")
    return json.dumps([described[name] for name in names], sort_keys=True)


class _Portable(NamedTuple):
    """A metric or weighting, as what makes a new one: it has variables."""

    cls: Any
    config: dict[str, Any]

    def new(self) -> Any:
        return self.cls.from_config(self.config)


def _portable(value: Any) -> Any:
    if isinstance(value, (keras.metrics.Metric, weightings.Weighting)):
        return _Portable(type(value), value.get_config())
    if isinstance(value, Mapping):
        return {key: _portable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(v) for v in value]
    return value


def _new(value: Any) -> Any:
    """What `_portable` was made of, as new."""
    if isinstance(value, _Portable):
        return value.new()
    if isinstance(value, dict):
        return {key: _new(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_new(v) for v in value]
    is_class = isinstance(value, type)
    if isinstance(value, functools.partial):
        is_class = isinstance(value.func, type)
    return value() if is_class else value


def _described(value: Any) -> Any:
    """The same in every process, and as JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return _described(value.tolist())
    if isinstance(value, _Portable):
        return {_name(value.cls): _described(value.config)}
    if isinstance(value, Mapping):
        return {str(key): _described(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(v) for v in value]
    if isinstance(value, functools.partial):
        given = [_described(value.args), _described(value.keywords)]
        return {_name(value.func): given}
    if isinstance(value, type) or inspect.isroutine(value):
        return _name(value)
    if hasattr(value, "get_config"):
        return {_name(type(value)): _described(value.get_config())}
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _name(thing: Any) -> str:
    # Not where in Keras it is, nor which module runs as `__main__`.
    module = re.sub(r"^keras\.src\..*", "keras", thing.__module__)
    prefix = "" if module == "__main__" else f"{module}."
    return f"{prefix}{thing.__qualname__}"


def _tries(
    methods: Mapping[str, Any] | Iterable[str] | None,
    tasks: list[str],
    learning_rates: list[float],
) -> dict[str, list[tuple[float, Any]]]:
    """`{method: [(learning rate, options)]}`, as many for each method."""
    if methods is None:
        methods = list(_METHODS)
    if isinstance(methods, str):
        methods = [methods]
    pairs = (
        list(methods.items())
        if isinstance(methods, Mapping)
        else [(method, None) for method in methods]
    )
    names = [method for method, _ in pairs]
    folded = [str(method).strip().casefold() for method in names]
    if len(set(folded)) < len(folded) or "" in folded or REFERENCE in folded:
        raise ValueError(
            "Every method must have a name of its own, other than "
            f"{REFERENCE!r}, whatever the case of its letters. Received: "
            f"{names}. Rename those that are the same."
        )
    if PLAIN_SUM not in names:
        pairs.insert(0, (PLAIN_SUM, None))
    tries = {}
    for method, options in pairs:
        known = method in _METHODS
        if options is None and not known:
            raise ValueError(
                "A method without compile options must be one of "
                f"{list(_METHODS)}. Received: {method!r}. Give it options, as "
                "in `{'mine': {'weighting': 'dwa'}}`."
            )
        if options is not None and method in (SINGLE_TASKS, PLAIN_SUM):
            raise ValueError(
                f"{method!r} must be what its name says, and have `None` as "
                f"its options. Received: {options!r}. Take another name."
            )
        if options is None and method == FIXED_WEIGHTS:
            options = _spread_weights(tasks, len(learning_rates))
        elif options is None:
            options = _METHODS[method]
        if isinstance(options, Mapping):
            options = [options]
        if not isinstance(options, (list, tuple)) or not options:
            raise ValueError(
                "A method must be a dict of compile options, or a list of "
                f"them. Received: {options!r} for {method!r}. Write "
                "`{'weighting': ...}`."
            )
        for one in options:
            _check_options(one, f"methods[{method!r}]")
        # No more tries for who has more options.
        tries[method] = [
            (rate, _portable(dict(one)))
            for rate, one in zip(
                learning_rates, itertools.cycle(options), strict=False
            )
        ]
    return tries


def _spread_weights(tasks: list[str], number: int) -> list[dict[str, Any]]:
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


def _check_options(options: Any, where: str) -> None:
    known = set()
    for compiles in (MGDAModel.compile, keras.Model.compile):
        known |= set(inspect.signature(compiles).parameters)
    known = (known | {"unlabelled"}) - _NOT_OPTIONS
    if not isinstance(options, Mapping) or set(options) - known:
        raise ValueError(
            f"`{where}` must be a dict of options of `compile`, some of "
            f"{sorted(known)}. Received: {options!r}. Losses, metrics and "
            "optimizer are arguments of `compare`."
        )
    if "weighting" in options:
        weightings.get(options["weighting"])


def _check_numbers(
    learning_rates: list[float],
    seeds: list[int],
    epochs: int,
    patience: int | None,
    batch_size: int,
) -> None:
    positive = all(math.isfinite(r) and r > 0 for r in learning_rates)
    if not positive or not _different(learning_rates):
        raise ValueError(
            "`learning_rates` must be different positive numbers, one at "
            f"least. Received: {learning_rates}. Leave out what is twice."
        )
    whole = all(isinstance(s, (int, np.integer)) for s in seeds)
    if not whole or not _different(seeds):
        raise ValueError(
            "`seeds` must be different whole numbers, one at least. "
            f"Received: {seeds}. Take `range(5)`."
        )
    for what, number in (
        ("epochs", epochs),
        ("patience", 1 if patience is None else patience),
        ("batch_size", batch_size),
    ):
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                f"`{what}` must be a whole number of at least 1. "
                f"Received: {number!r}."
            )


def _different(numbers: Sequence[float]) -> bool:
    return 0 < len(numbers) == len(set(numbers))


def _check_tasks(
    losses: Mapping[str, Any],
    metrics: Mapping[str, Any],
    select: Mapping[str, tuple[str, str]],
    reference: Mapping[str, float] | None,
) -> None:
    tasks = list(losses)
    given: dict[str, Any] = {"metrics": metrics, "select": select}
    if reference is not None:
        given["reference"] = reference
    for what, of_tasks in given.items():
        if set(of_tasks) != set(tasks) or not tasks:
            raise ValueError(
                f"`{what}` must name the tasks of `losses`, {tasks}. "
                f"Received: {list(of_tasks)}. Give each task one entry in both."
            )
    for task, of_task in select.items():
        if (
            isinstance(of_task, str)
            or len(of_task) != 2
            or of_task[1] not in ("max", "min")
        ):
            raise ValueError(
                "`select` must give each task the name of a metric and 'max' "
                f"or 'min'. Received: {of_task!r} for {task!r}. Write "
                "`('accuracy', 'max')`."
            )
    for task, value in (reference or {}).items():
        if not math.isfinite(value) or not value:
            raise ValueError(
                "`reference` must give each task a finite number other than "
                "zero, because changes are relative to it. Received: "
                f"{value!r} for {task!r}."
            )


# The splits.


def _given(split: Any) -> Any:
    """The split itself, if a function was given that returns it."""
    is_function = callable(split) and not isinstance(split, tf.data.Dataset)
    return split() if is_function else split


def _of_tasks(split: Any, tasks: Sequence[str]) -> Any:
    """The split with the labels of these tasks alone."""

    def cut(
        x: Any, y: Any, sample_weight: Any = None
    ) -> tuple[Any, Any] | tuple[Any, Any, Any]:
        y = {task: y[task] for task in tasks}
        if sample_weight is None:
            return x, y
        if isinstance(sample_weight, Mapping):
            sample_weight = {task: sample_weight[task] for task in tasks}
        return x, y, sample_weight

    if isinstance(split, tf.data.Dataset):
        return split.map(cut)
    return cut(*split)


def _check_splits(
    train: Any, validation: Any, test: Any, allow_overlap: bool
) -> dict[str, Any]:
    """A digest of each split; `None` where the data are no arrays.

    Raises:
        ValueError: if a split is missing, is another one, or shares examples
            with it.
    """
    splits = {"train": train, "validation": validation, "test": test}
    examples: dict[str, set[bytes]] = {}
    digests: dict[str, str | None] = {}
    for split, given in splits.items():
        others = [s for s, other in splits.items() if other is given]
        if given is None or len(others) > 1:
            raise ValueError(
                "Three splits must be given: `train`, `validation`, which "
                "chooses, and `test`, which does not. Received: "
                f"{'None' if given is None else 'the same data'} as "
                f"{' and '.join(f'`{s}`' for s in others)}. Hold examples out, "
                "as by `sklearn.model_selection.train_test_split`."
            )
        data = _given(given)
        if isinstance(data, tf.data.Dataset):
            digests[split] = None
            continue
        pair = isinstance(data, (tuple, list)) and len(data) in (2, 3)
        if not pair or not isinstance(data[1], Mapping):
            raise ValueError(
                f"`{split}` must be `(x, {{task: labels}})`, with sample "
                "weights or without, a `tf.data.Dataset`, or a function that "
                f"returns one. Received: {type(data).__name__}. Name the "
                "labels of each task."
            )
        try:
            of_split = _hashes(data[0])
            of_labels = [h for part in data[1:] for h in _hashes(part)]
        except (TypeError, ValueError):  # not what NumPy takes
            digests[split] = None
            continue
        for other, found in examples.items():
            both = found & set(of_split)
            if both and not allow_overlap:
                raise ValueError(
                    "No example must be in two splits: what was trained on is "
                    f"no test. Received: {len(both)} different inputs that "
                    f"are in `{other}` and in `{split}`. Leave them out of "
                    "one, or pass `allow_overlap=True` if different examples "
                    "have the same inputs."
                )
        examples[split] = set(of_split)
        everything = hashlib.blake2b(digest_size=8)
        for one in of_split + of_labels:
            everything.update(one)
        digests[split] = everything.hexdigest()
    return digests


def _hashes(structure: Any) -> list[bytes]:
    """A hash of every example in a structure of arrays."""
    arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(structure)]
    hashes = [hashlib.blake2b(digest_size=8) for _ in range(len(arrays[0]))]
    for array in arrays:
        if array.dtype.kind == "f":
            # Zero has two signs, and the type may differ between splits.
            array = array.astype("float32") + np.float32(0)
        elif array.dtype.kind in "iub":
            array = array.astype("int64")
        for hashed, row in zip(hashes, array, strict=True):
            as_text = array.dtype.kind not in "fiub"
            hashed.update(
                repr(np.asarray(row).tolist()).encode()
                if as_text
                else np.ascontiguousarray(row).tobytes()
            )
    return [hashed.digest() for hashed in hashes]


# One training. Runs in a process of its own.

# Keras has one random seed in a process: threads of an executor take turns.
_turn = threading.Lock()


def _train(problem: _Problem, training: _Training) -> Line:
    """Trains, chooses the epoch on validation, then looks at the test split."""
    with _turn:
        return _train_alone(problem, training)


def _train_alone(problem: _Problem, training: _Training) -> Line:
    started = time.perf_counter()
    tasks = list(problem.losses) if training.task is None else [training.task]
    keras.utils.set_random_seed(training.seed)
    train = _of_tasks(_given(problem.train), tasks)
    validation = _of_tasks(_given(problem.validation), tasks)
    # Whatever random numbers the data took.
    keras.utils.set_random_seed(training.seed)
    model = _compiled(problem, training)

    only_scale = training.method == REFERENCE
    monitor = _Monitor(problem, tasks, only_scale=only_scale)
    choose = keras.callbacks.EarlyStopping(
        "score",
        mode="max",
        patience=problem.patience,
        restore_best_weights=not only_scale,
    )
    model.fit(
        *_arguments(train, problem.batch_size),
        epochs=problem.epochs,
        validation_data=validation,
        validation_batch_size=_batch_size(validation, problem),
        callbacks=[monitor, choose],
        verbose=0,
        **_fit_options(train, problem),
    )
    found: Line = {
        "validation": None,
        "test": None,
        "epoch": None,
        "epochs": len(monitor.seconds),
        "diverged": monitor.diverged,
    }
    if only_scale:
        found["validation"] = monitor.best_of_tasks()
    elif monitor.diverged is None:
        found["validation"] = monitor.values[choose.best_epoch]
        found["epoch"] = choose.best_epoch + 1
        # The epoch is chosen: from here on nothing is.
        logs = _evaluated(
            model, _of_tasks(_given(problem.test), tasks), problem
        )
        values = _selected(logs, problem, tasks)
        if all(map(math.isfinite, values.values())):
            found["test"] = values
        else:
            found["diverged"] = f"{_not_finite(values)} on the test split"
    return {
        **found,
        "seconds": time.perf_counter() - started,
        "epoch_seconds": monitor.epoch_seconds(),
        "versions": _versions(),
    }


def _compiled(problem: _Problem, training: _Training) -> MGDAModel:
    model = _built(problem)
    if not isinstance(model, MGDAModel):
        with contextlib.redirect_stdout(io.StringIO()):
            model = MGDAModel.from_model(model, problem.shared)
    losses, metrics = problem.losses, problem.metrics
    options = {**problem.compile_options, **training.options}
    if training.task is not None:
        task = training.task
        output = getattr(model, "output", None)
        if not isinstance(output, Mapping):
            raise ValueError(
                f"For {SINGLE_TASKS!r} the model must be functional, so that "
                "one output can be cut out of it. Received: "
                f"{type(model).__name__}. Leave them out of `methods`."
            )
        model = MGDAModel(model.input, {task: output[task]})
        losses, metrics = {task: losses[task]}, {task: metrics[task]}
        for name, value in options.items():
            if isinstance(value, Mapping) and task in value:
                options[name] = {task: value[task]}
    model.compile(
        problem.optimizer(training.learning_rate),
        loss=dict(losses),
        metrics=_new(metrics),
        **_new(options),
    )
    return model


def _built(problem: _Problem) -> keras.Model:
    model = problem.build()
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`build` must return a Keras model with a dict of outputs. "
            f"Received: {type(model).__name__}."
        )
    return model


def _check(problem: _Problem, trainings: Sequence[_Training]) -> str:
    """Whether all methods compile and all metrics are there, before training.

    Returns:
        A digest of the network: not its variables, but their shapes, and the
        layers with their settings.
    """
    with _turn:
        tasks = list(problem.losses)
        built = [_built(problem), _built(problem)]
        if _share_variables(*built):
            raise ValueError(
                "`build` must return a new model at each call. Received: "
                "models that share variables, and so would go on from one "
                "training to the next. Make the layers in `build`."
            )
        for training in trainings:
            model = _compiled(problem, training)
        model = _compiled(problem, _plain_sum(trainings[0]))
        validation = _of_tasks(_given(problem.validation), tasks)
        logs = _evaluated(model, validation, problem)
        values = _selected(logs, problem, tasks)
        if not all(map(math.isfinite, values.values())):
            raise ValueError(
                "A metric must be finite on the validation split. Received: "
                f"{_not_finite(values)} of a model that was not trained. Look "
                "for labels that are NaN (`compile_options={'unlabelled': "
                "'nan'}`) or of one class only, or take another metric."
            )
        return _network(built[0])


def _share_variables(left: keras.Model, right: keras.Model) -> bool:
    of_left = {id(variable) for variable in left.variables}
    return any(id(variable) in of_left for variable in right.variables)


def _network(model: keras.Model) -> str:
    described: list[Any] = [list(v.shape) for v in model.weights]

    def visit(layers: Iterable[keras.layers.Layer]) -> None:
        for layer in layers:
            if inner := getattr(layer, "layers", None):
                visit(inner)
                continue
            config: Any = None
            with contextlib.suppress(NotImplementedError):
                config = layer.get_config()
            described.append([_name(type(layer)), _described(config)])

    visit(model.layers)
    # Keras numbers the names of layers, the further the more were made.
    text = re.sub(r'(: "\w+?)(_\d+)?"', r'\1"', json.dumps(described))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _arguments(split: Any, batch_size: int) -> tuple[Any, ...]:
    """Of `fit` and `evaluate`: x, y, batch size or the data set alone."""
    if isinstance(split, tf.data.Dataset):
        return (split,)
    return split[0], split[1], batch_size


def _fit_options(split: Any, problem: _Problem) -> dict[str, Any]:
    weighted = not isinstance(split, tf.data.Dataset) and len(split) == 3
    return {"sample_weight": split[2]} if weighted else {}


def _batch_size(split: Any, problem: _Problem) -> int | None:
    return None if isinstance(split, tf.data.Dataset) else problem.batch_size


def _evaluated(model: MGDAModel, split: Any, problem: _Problem) -> Values:
    x, *y = split if not isinstance(split, tf.data.Dataset) else (split,)
    names = ("y", "sample_weight")
    logs = model.evaluate(
        x,
        **dict(zip(names, y, strict=False)),
        batch_size=_batch_size(split, problem),
        return_dict=True,
        verbose=0,
    )
    return {key: float(value) for key, value in logs.items()}


def _selected(
    logs: Mapping[str, float],
    problem: _Problem,
    tasks: Sequence[str],
    prefix: str = "",
) -> Values:
    """The metrics that count, by task, from the logs of Keras."""
    values = {}
    for task in tasks:
        name, _ = problem.select[task]
        # Keras names the metrics of a single output without it.
        key = prefix + (name if len(tasks) == 1 else f"{task}_{name}")
        if key not in logs:
            known = sorted(set(logs) - {f"{prefix}loss"})
            raise ValueError(
                "`select` must name a metric of the task, as Keras logs it. "
                f"Received: {name!r} for {task!r}, but the logs hold {known}. "
                "Add it to `metrics`, or take one of these."
            )
        values[task] = float(logs[key])
    return values


def _not_finite(values: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value}"
        for name, value in values.items()
        if not math.isfinite(value)
    )


class _Monitor(keras.callbacks.Callback):
    """Adds the score to the logs, and ends what diverges.

    Attributes:
        values: `{task: metric}` on the validation split, of each epoch.
        diverged: what was not finite and when; `None` if all was finite.
        seconds: of each epoch, without its validation.
    """

    def __init__(
        self, problem: _Problem, tasks: Sequence[str], only_scale: bool
    ) -> None:
        super().__init__()
        self._problem, self._tasks = problem, tasks
        self._only_scale, self._improvements = only_scale, 0
        self.values: list[Values] = []
        self.seconds: list[float] = []
        self.diverged: str | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = time.perf_counter()
        self._in_training = True

    def on_test_begin(self, logs: Any = None) -> None:
        if self._in_training:
            self.seconds.append(time.perf_counter() - self._began)
        self._in_training = False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = _selected(logs, self._problem, self._tasks, "val_")
        losses = {key: logs[key] for key in ("loss", "val_loss")}
        if wrong := _not_finite({**losses, **values}):
            self.diverged = f"{wrong} in epoch {epoch + 1}"
            self.model.stop_training = True
            logs["score"] = -math.inf
            return
        self.values.append(values)
        logs["score"] = self._score(values)

    def _score(self, values: Values) -> float:
        lower = self._problem.lower
        if self._only_scale:
            # Grows for as long as some task gets better than it ever was.
            self._improvements += len(self.values) == 1 or any(
                (
                    values[task] < min(before)
                    if task in lower
                    else values[task] > max(before)
                )
                for task in self._tasks
                if (before := [v[task] for v in self.values[:-1]])
            )
            return float(self._improvements)
        reference = self._problem.reference
        assert reference is not None
        return pareto.delta_m(
            values,
            {task: reference[task] for task in self._tasks},
            [task for task in self._tasks if task in lower],
        )

    def best_of_tasks(self) -> Values:
        """What each task reached at its best, in whatever epoch.

        Raises:
            ValueError: if there is none, or no change relative to it.
        """
        best = {}
        for task in self._tasks:
            best_of = min if task in self._problem.lower else max
            of_task = [values[task] for values in self.values]
            best[task] = best_of(of_task, default=math.nan)
        if any(not value or value != value for value in best.values()):
            raise ValueError(
                "The reference must be finite and not zero in each task. "
                f"Received: {best} from the plain sum with the first learning "
                f"rate{f', {self.diverged}' if self.diverged else ''}. Begin "
                "with a lower learning rate, or pass "
                "`reference={task: number}`."
            )
        return best

    def epoch_seconds(self) -> float | None:
        """The median, without the first epoch, which compiles."""
        seconds = self.seconds[1:] or self.seconds
        return float(np.median(seconds)) if seconds else None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("keras", "numpy"):
        versions[package] = importlib.metadata.version(package)
    versions["tensorflow"] = tf.__version__
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["keras_mgda"] = importlib.metadata.version("keras_mgda")
    return versions


# Where trainings run.


class InProcess(Executor):
    """Runs each call at once, in this process: for debugging and notebooks.

    A process that trains many models grows; a long comparison is better off
    with processes.

    Example:

    >>> from keras_mgda.comparison import InProcess
    >>> InProcess().submit(max, 1, 2).result()
    2
    """

    def submit(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class FreshProcesses(Executor):
    """Runs each call in a new process, so many of them at a time.

    As `ProcessPoolExecutor(max_tasks_per_child=1)`, which Python 3.10 does not
    have, with a pool for each call: a process that is killed takes no other
    with it. The cores are shared out among the processes.

    Args:
        number: of processes at a time.

    Example:

    >>> from keras_mgda.comparison import FreshProcesses
    >>> with FreshProcesses(2) as executor:
    ...     executor.submit(max, 1, 2).result()
    2
    """

    def __init__(self, number: int = 1) -> None:
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                "The number of processes must be a whole number of at least "
                f"1. Received: {number!r}."
            )
        self._threads = concurrent.futures.ThreadPoolExecutor(number)
        self._cores = max(1, (os.cpu_count() or 1) // number)

    def submit(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        return self._threads.submit(
            self._in_new_process, function, *args, **kwargs
        )

    def _in_new_process(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        with ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=_begin_process,
            initargs=(self._cores,),
        ) as pool:
            return pool.submit(function, *args, **kwargs).result()

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False
    ) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


def _begin_process(cores: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        # A pool's process does not notice that nobody reads its results.
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def _running(
    executor: Executor | int | None, problem: _Problem
) -> Iterator[Callable[..., "Future[Any]"]]:
    if isinstance(executor, Executor):
        yield executor.submit
        return
    if isinstance(executor, bool) or not isinstance(
        executor, (int, type(None))
    ):
        raise ValueError(
            "`executor` must be a `concurrent.futures.Executor`, a number of "
            f"processes, or `None`. Received: {executor!r}. A Dask client has "
            "`get_executor()`."
        )
    _check_picklable(problem)
    with FreshProcesses(1 if executor is None else executor) as own:
        yield own.submit


def _check_picklable(problem: _Problem) -> None:
    """Raises a `ValueError` that names what cannot go to another process."""
    interactive = not hasattr(sys.modules["__main__"], "__file__")
    for field in dataclasses.fields(problem):
        value = getattr(problem, field.name)
        reason = ""
        try:
            pickle.dumps(value)
        except Exception as error:
            reason = str(error)
        if interactive and getattr(value, "__module__", "") == "__main__":
            reason = "it was defined in an interactive session"
        if reason:
            raise ValueError(
                f"`{field.name}` must be picklable, because every training "
                "has a process of its own: a function at the top level of a "
                "module is, a lambda, a nested function or a "
                f"`tf.data.Dataset` is not. Received: {value!r} ({reason}). "
                "Move it to a module, or pass "
                "`executor=keras_mgda.comparison.InProcess()`."
            )


def _run_all(
    run: Callable[..., "Future[Any]"],
    problem: _Problem,
    trainings: Sequence[_Training],
    write: Callable[[_Training, Line], None],
    path: pathlib.Path,
    bar: Any,
) -> None:
    """Runs and writes each training as it ends.

    Raises:
        RuntimeError: if one failed. Those that run end and are written first.
    """
    waiting: dict[Future[Any], _Training] = {}
    failed: list[Exception] = []
    if bar is not None:
        bar.update(bar.target - len(trainings))

    def note(future: "Future[Any]") -> None:
        training = waiting.pop(future)
        if future.cancelled():
            return
        try:
            found = future.result()
        except Exception as error:
            failed.append(_failure(error, training, path))
        else:
            try:
                write(training, found)
            except OSError as error:
                failed.append(error)
            if bar is not None:
                bar.add(1)
        if failed:
            for other in waiting:
                other.cancel()

    try:
        for training in trainings:
            future = run(_train, problem, training)
            waiting[future] = training
            # In this process it is over, and may be the last that is.
            for ended in [f for f in waiting if f.done()]:
                note(ended)
            if failed:
                break
        while waiting:
            ended_now, _ = concurrent.futures.wait(
                waiting, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for ended in ended_now:
                note(ended)
    finally:
        for future in waiting:
            future.cancel()
    if failed:
        raise failed[0]


def _failure(
    error: Exception, training: _Training, path: pathlib.Path
) -> Exception:
    which = {k: v for k, v in training.described().items() if v is not None}
    keep = f"What ended is in {path}; the same call goes on from there."
    if isinstance(error, BrokenProcessPool):
        failure = RuntimeError(
            "A process ended before its training did: it was killed, as when "
            "memory is short, or the script starts `compare` as it is "
            "imported, where `if __name__ == '__main__':` must stand before "
            f"it. Received: {error} of {which}. {keep}"
        )
    else:
        failure = RuntimeError(
            f"Every training must end. Received: {type(error).__name__}: "
            f"{error} from {which}. {keep}"
        )
    failure.__cause__ = error
    return failure


# The file of results.


def _check_writable(path: pathlib.Path) -> None:
    """Makes the file. Raises an `OSError` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise OSError(
            error.errno,
            "`results` must be a file that can be written, for every training "
            f"leaves a line there. Received: {error.strerror}. Take another "
            "path.",
            str(path),
        ) from error


def _append(path: pathlib.Path, line: Line) -> None:
    """Writes a whole line, or nothing."""
    text = (json.dumps(line, allow_nan=False) + "\n").encode()
    assert text.startswith(_BEGINNING.encode())
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    size = os.fstat(file).st_size
    try:
        written = os.write(file, text)  # at once, as others may append, too
        if written < len(text):
            raise OSError(f"only {written} of {len(text)} bytes were written")
        os.fsync(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        raise OSError(
            error.errno,
            "The result of a training must be written. Received: "
            f"{error.strerror or error}. Make room on the disk and call "
            "`compare` again: what was written is not repeated.",
            str(path),
        ) from error
    finally:
        os.close(file)


def _read(path: str | os.PathLike[str]) -> tuple[list[Line], int]:
    """The lines, and the length in bytes without one that was torn.

    Raises:
        ValueError: if the file is not one of results.
    """
    content = pathlib.Path(path).read_bytes()
    lines: list[Line] = []
    whole = 0
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        start = text[: len(_BEGINNING)]
        ours = _BEGINNING.encode().startswith(start)
        try:
            line = json.loads(text)
            settings = line["settings"]
        except (ValueError, TypeError, KeyError):
            settings = None
        if settings is None and ours and not text.endswith(b"\n"):
            break  # a process was killed as it wrote
        if settings is None or not ours:
            raise ValueError(
                "`results` must be a file that `compare` wrote, or a new one. "
                f"Received: {path}, whose line {number} is no training. Take "
                "another path."
            )
        lines.append(line)
        whole += len(text)
    return lines, whole


def _finished(
    path: pathlib.Path,
    name: str,
    settings: dict[str, Any],
    tries: Mapping[str, list[tuple[float, Any]]],
) -> dict[str, Line]:
    """`{key: line}` of the trainings that ended, of the data of this name.

    Raises:
        ValueError: if they had other settings.
    """
    lines, whole = _read(path)
    size = path.stat().st_size
    if whole < size:
        os.truncate(path, whole)
    elif lines and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    lines = [line for line in lines if line["data"] == name]
    options = {
        method: [_described(one) for _, one in of_method]
        for method, of_method in tries.items()
    }
    options[REFERENCE] = [_described(_METHODS[PLAIN_SUM])]
    for line in lines:
        differ = {
            key: (line["settings"].get(key), settings.get(key))
            for key in {**line["settings"], **settings}
            if line["settings"].get(key) != settings.get(key)
        }
        if differ:
            told = "; ".join(
                f"`{key}` was {before!r} and is {now!r}"
                for key, (before, now) in differ.items()
            )
            raise ValueError(
                "A comparison must go on with the settings of its start. "
                f"Received: {told}. Take another path than {path}, or another "
                "`name` for the data."
            )
        method = line["method"]
        if method in options and line["options"] not in options[method]:
            raise ValueError(
                "A method must keep its options. Received: "
                f"{options[method]} for {method!r}, which was trained with "
                f"{line['options']}. Give it another name."
            )
    versions = _versions()
    older = [line for line in lines if line["versions"] != versions]
    if older:
        warnings.warn(
            f"{len(older)} of the trainings in {path} were run with other "
            f"versions, {older[0]['versions']}, than now, {versions}.",
            stacklevel=3,
        )
    finished: dict[str, Line] = {}
    for line in lines:
        finished.setdefault(_key(line), line)
    return finished


# What was found.


class Interval(NamedTuple):
    """A mean over the seeds, and half of the width of its 95 % interval.

    `half_width` is `None` of a single seed, which tells no interval.
    """

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.4g}"
        digits = 2
        if self.half_width > 0:
            digits = max(0, 1 - math.floor(math.log10(self.half_width)))
        digits = min(digits, 6)
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"


@dataclasses.dataclass(frozen=True)
class Row:
    """What a method reached, at what validation chose for it.

    Attributes:
        method: its name.
        test: `{task: metric}` on the test split. Empty if it diverged.
        delta_m: the mean relative change against the baseline, in percent.
        difference: how much more `delta_m` is than that of the plain sum, with
            the seeds paired. `None` for the plain sum itself.
        p_value: of no difference, corrected for the number of methods.
        time: of an epoch, in units of that of the plain sum.
        rank: the mean over the tasks of the rank of its mean metric.
        chosen: learning rate and compile options; of the single tasks
            `{task: ...}` of them.
        score: the mean score on the validation split.
        note: how it diverged; empty if it did not.
    """

    method: str
    test: dict[str, Interval]
    delta_m: Interval | None
    difference: Interval | None
    p_value: float | None
    time: float | None
    rank: float | None
    chosen: dict[str, Any]
    score: float | None
    note: str


class Comparison:
    """What `compare` found.

    Of each method, the learning rate with the best mean score on validation is
    taken. From there on the numbers are those of the test split, `M_ts` of
    task `t` and seed `s`:

        delta-m      D_s = 100 / m  sum_t  s_t (M_ts - B_t) / |B_t|
        difference   D_s - D_s of the plain sum, for the same seed
        interval     mean +- t_(0.975, S-1) * deviation / sqrt(S), S seeds
        p            of Student's t for the mean difference, two-sided; Holm's
                     over all methods but the plain sum
        rank         of the mean over `s` of `M_ts`, then the mean over `t`

    with the mean of the single tasks as the baseline `B`, or of the plain sum
    where there are none. `B` is taken as a constant. Where all differences are
    the same, Student's t has no meaning, and `p` is that of all signs alike,
    `2^(1-S)`, or 1 if the differences are zero.

    The intervals are about seeds. How far the test examples stand for others
    is another question, which more of them answer.

    Args:
        runs: lines of the file of results, of one comparison.

    Attributes:
        rows: a `Row` for each method, the best rank first.
        baseline: what `B` is the mean of; `None` if both diverged.

    Raises:
        ValueError: if the methods have not the same search.
        ImportError: if SciPy is missing.

    Example:

    >>> from keras_mgda.comparison import Comparison
    >>> settings = {"select": {"a": ("acc", "max")}, "reference": {"a": 0.5}}
    >>> def run(method, seed, accuracy):
    ...     return {
    ...         "data": "data", "method": method, "task": None, "options": {},
    ...         "learning_rate": 0.1, "seed": seed, "diverged": None,
    ...         "validation": {"a": accuracy}, "test": {"a": accuracy},
    ...         "epoch_seconds": 1.0, "settings": settings,
    ...     }
    >>> found = Comparison(
    ...     [run("plain sum", seed, 0.5 + seed / 100) for seed in range(3)]
    ...     + [run("better", 0, 0.7), run("better", 1, 0.72)]
    ...     + [run("better", 2, 0.715)]
    ... )
    >>> found.rows[0].method
    'better'
    >>> found.advice.startswith("Use 'better'")
    True

    References:
        Holm, 1979. A Simple Sequentially Rejective Multiple Test Procedure.
    """

    def __init__(self, runs: Iterable[Mapping[str, Any]]) -> None:
        runs = list(runs)
        of_methods = [run for run in runs if run["method"] != REFERENCE]
        if PLAIN_SUM not in {run["method"] for run in of_methods}:
            raise ValueError(
                "A comparison must have trainings by the plain sum. Received: "
                f"{len(runs)} trainings, none of them."
            )
        settings = runs[0]["settings"]
        self._select = settings["select"]
        self.task_names = list(self._select)
        self._lower = _lower(self._select)
        self._runs = runs
        reference = settings.get("reference") or next(
            (r["validation"] for r in runs if r["method"] == REFERENCE), None
        )
        if reference is None:
            raise ValueError(
                "A comparison must have the training of its reference. "
                f"Received: {len(runs)} trainings without it. Read the whole "
                "file."
            )
        self.seeds = sorted({run["seed"] for run in of_methods})
        self._search = _searches(of_methods, self.task_names)
        self._chosen: dict[str, dict[Any, Any]] = {}
        scores: dict[str, float | None] = {}
        for method, parts in self._search.items():
            # Of the lines, the choice sees what is on validation alone.
            found = {
                part: _choose(
                    {
                        candidate: [run["validation"] for run in of.values()]
                        for candidate, of in candidates.items()
                    },
                    reference,
                    self._lower,
                )
                for part, candidates in parts.items()
            }
            self._chosen[method] = {p: c for p, (c, _) in found.items()}
            of_parts = [score for _, score in found.values()]
            scores[method] = (
                None
                if None in of_parts
                else float(np.mean([s for s in of_parts if s is not None]))
            )
        self._test = {
            method: self._results(method, "test") for method in self._search
        }
        self.baseline = next(
            (m for m in (SINGLE_TASKS, PLAIN_SUM) if self._is_baseline(m)), None
        )
        self.rows = self._make_rows(scores)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], name: str | None = None
    ) -> "Comparison":
        """From a file of results.

        Args:
            path: of the file.
            name: of the data; `None` if the file has those of one.

        Raises:
            ValueError: if it is no such file, has other data, or a comparison
                that did not end.
        """
        lines, _ = _read(path)
        names = list(dict.fromkeys(line["data"] for line in lines))
        if name is None and len(names) == 1:
            (name,) = names
        if name not in names:
            raise ValueError(
                "`name` must be that of the data of a comparison in the file, "
                f"one of {names}. Received: {name!r}."
            )
        runs: dict[str, Line] = {}
        for line in lines:
            if line["data"] == name:
                runs.setdefault(_key(line), line)
        return cls(list(runs.values()))

    def _results(
        self, method: str, split: str
    ) -> dict[str, list[float]] | None:
        """`{task: [metric of each seed]}`; `None` if it diverged."""
        results = {}
        for part, candidates in self._search[method].items():
            chosen = self._chosen[method][part]
            if chosen is None:
                return None
            of_seeds = [candidates[chosen][s][split] for s in self.seeds]
            if None in of_seeds:
                return None
            for task in self.task_names if part is None else [part]:
                results[task] = [values[task] for values in of_seeds]
        return results

    def _is_baseline(self, method: str) -> bool:
        """Whether it did not diverge, and there are changes relative to it."""
        results = self._test.get(method)
        return results is not None and all(map(np.mean, results.values()))

    def _delta_m(self, method: str) -> list[float] | None:
        """`D_s`, for each seed."""
        results = self._test[method]
        if results is None or self.baseline is None:
            return None
        of_baseline = self._test[self.baseline]
        assert of_baseline is not None
        means = {t: float(np.mean(of_baseline[t])) for t in self.task_names}
        return [
            pareto.delta_m(
                {task: results[task][s] for task in self.task_names},
                means,
                self._lower,
            )
            for s in range(len(self.seeds))
        ]

    def _make_rows(self, scores: Mapping[str, float | None]) -> list[Row]:
        changes = {method: self._delta_m(method) for method in self._search}
        of_sum = changes[PLAIN_SUM]
        differences: dict[str, list[float]] = {}
        for method, change in changes.items():
            if change and of_sum and method != PLAIN_SUM:
                differences[method] = np.subtract(change, of_sum).tolist()
        p_values = _holm(
            {m: paired_p_value(values) for m, values in differences.items()}
        )
        ranks = self._ranks()
        seconds = {method: self._seconds(method) for method in self._search}
        rows = []
        for method in self._search:
            results = self._test[method]
            change = changes[method]
            took, of_sum_took = seconds[method], seconds[PLAIN_SUM]
            rows.append(
                Row(
                    method=method,
                    test={
                        task: mean_interval(values)
                        for task, values in (results or {}).items()
                    },
                    delta_m=mean_interval(change) if change else None,
                    difference=(
                        mean_interval(differences[method])
                        if method in differences
                        else None
                    ),
                    p_value=p_values.get(method),
                    time=took / of_sum_took if took and of_sum_took else None,
                    rank=ranks.get(method),
                    chosen=self._settings_chosen(method),
                    score=scores[method],
                    note="" if results else self._how_it_diverged(method),
                )
            )
        return sorted(
            rows, key=lambda r: math.inf if r.rank is None else r.rank
        )

    def _ranks(self) -> dict[str, float]:
        """Mean over the tasks; equal metrics share the mean of their ranks."""
        ranked = {m: found for m, found in self._test.items() if found}
        of_tasks = []
        for task in self.task_names:
            sign = 1 if task in self._lower else -1
            values = np.array(
                [sign * np.mean(found[task]) for found in ranked.values()]
            )
            below = (values[None] < values[:, None]).sum(axis=1)
            equal = (values[None] == values[:, None]).sum(axis=1)
            of_tasks.append(below + (equal + 1) / 2)
        means = np.mean(of_tasks, axis=0) if ranked else []
        return {m: float(r) for m, r in zip(ranked, means, strict=True)}

    def _seconds(self, method: str) -> float | None:
        """Median time of an epoch; of all single-task models together."""
        total = 0.0
        for candidates in self._search[method].values():
            seconds = [
                run["epoch_seconds"]
                for of_seeds in candidates.values()
                for run in of_seeds.values()
                if run["epoch_seconds"] is not None
            ]
            if not seconds:
                return None
            total += float(np.median(seconds))
        return total

    def _settings_chosen(self, method: str) -> dict[str, Any]:
        chosen = {}
        for part, candidates in self._search[method].items():
            candidate = self._chosen[method][part]
            if candidate is not None:
                run = candidates[candidate][self.seeds[0]]
                chosen[part] = {
                    key: run[key] for key in ("learning_rate", "options")
                }
        return chosen.get(None, chosen)

    def _how_it_diverged(self, method: str) -> str:
        runs = [
            run
            for candidates in self._search[method].values()
            for of_seeds in candidates.values()
            for run in of_seeds.values()
        ]
        wrong = [run for run in runs if run.get("diverged")]
        return (
            f"diverged in {len(wrong)} of {len(runs)} trainings: "
            f"{wrong[0]['diverged']}"
        )

    @property
    def table(self) -> str:
        """The rows in Markdown, with the mean and its 95 % interval."""
        tasks = self.task_names
        if len(tasks) > _MAX_TASK_COLUMNS:
            tasks = []
        sign = {t: "down" if t in self._lower else "up" for t in tasks}
        arrows = {"up": "↑", "down": "↓"}
        head = [
            "method",
            *(f"{t}: {self._select[t][0]} {arrows[sign[t]]}" for t in tasks),
            f"delta-m to {self.baseline}, %" if self.baseline else "delta-m",
            f"against {PLAIN_SUM}, %",
            "p",
            "time",
            "rank",
            "learning rate",
        ]
        lines = [
            [
                row.method,
                *(str(row.test.get(task, "")) for task in tasks),
                row.note or str(row.delta_m or ""),
                "" if row.difference is None else str(row.difference),
                "" if row.p_value is None else f"{row.p_value:.2g}",
                "" if row.time is None else f"{row.time:.2f}",
                "" if row.rank is None else f"{row.rank:.2f}",
                _rates(row.chosen),
            ]
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *lines)]  # noqa: B905
        rule = ["-" * width for width in widths]
        return "\n".join(
            "| "
            + " | ".join(
                cell.ljust(width)
                for cell, width in zip(line, widths, strict=True)
            )
            + " |"
            for line in (head, rule, *lines)
        )

    @property
    def advice(self) -> str:
        """What to use on these data, in a sentence.

        A method is advised if its difference from the plain sum is positive
        with `p < 0.05`. Among several of them validation decides.
        """
        rows = {row.method: row for row in self.rows}
        plain = rows[PLAIN_SUM]
        if plain.rank is None:
            return (
                f"Nothing can be compared with the plain sum, which "
                f"{plain.note}: begin with lower learning rates."
            )
        if self.baseline is None:
            return (
                "No method can be advised, because a metric of the plain sum "
                "is zero on the test split, and no change is relative to "
                "zero: select another one."
            )
        if len(self.seeds) < 2:
            return (
                "One seed does not tell a difference from chance: add seeds, "
                "five if you can; until then use the plain sum."
            )
        significant = [
            row
            for row in self.rows
            if row.p_value is not None and row.p_value < _SIGNIFICANT
        ]
        better = [
            row
            for row in significant
            if row.difference and row.difference[0] > 0
        ]
        worse = [row.method for row in significant if row not in better]
        if better:
            best = max(better, key=_score)
            how = f"{best.method!r}"
            if best.method == SINGLE_TASKS:
                how = "a model of its own for each task"
            cost = f", for {best.time:.2g} times the time of an epoch"
            return (
                f"Use {how}, at the learning rate {_rates(best.chosen)}"
                f"{_told(best.chosen)}: on the "
                f"test split it is better than the plain sum by "
                f"{best.difference} % in the mean of the tasks "
                f"(p = {best.p_value:.2g}){cost if best.time else ''}."
            )
        rate = f"Use the plain sum, at the learning rate {_rates(plain.chosen)}"
        if worse:
            return f"{rate}: nothing is better, and worse are {_listed(worse)}."
        compared = [row.difference for row in self.rows if row.difference]
        if not compared:
            return f"{rate}: there is nothing that it was compared with."
        room = max(abs(mean) + (half or 0.0) for mean, half in compared)
        return (
            f"It makes no difference here. {rate}: no method is significantly "
            f"better or worse over {len(self.seeds)} seeds, although they "
            f"leave room for differences of up to {room:.2g} %."
        )

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.advice}"

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Rows, advice and settings as JSON, which is written if asked for."""
        text = json.dumps(
            {
                "data": self._runs[0]["data"],
                "tasks": self._select,
                "seeds": self.seeds,
                "baseline": self.baseline,
                "rows": [
                    {
                        **vars(row),
                        "test": {t: i._asdict() for t, i in row.test.items()},
                        "delta_m": row.delta_m and row.delta_m._asdict(),
                        "difference": (
                            row.difference and row.difference._asdict()
                        ),
                    }
                    for row in self.rows
                ],
                "advice": self.advice,
                "settings": self._runs[0]["settings"],
            },
            indent=1,
            allow_nan=False,
        )
        if path is not None:
            pathlib.Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def plot(self) -> Any:
        """A figure: what each training reached in each task, and the ranks.

        On the left, how much worse than the baseline each seed of each method
        is, in percent: in the plane of two tasks, or in parallel coordinates.
        On the right the mean ranks; an asterisk marks a significant
        difference from the plain sum.

        Returns:
            A `matplotlib.figure.Figure`, which `savefig` writes.

        Raises:
            ImportError: if matplotlib is missing.
            ValueError: if every method diverged.
        """
        figure = _optional("matplotlib.figure").Figure(
            figsize=(11, 4.5), layout="constrained"
        )
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        points = self._points()
        if not points:
            raise ValueError(
                "A plot needs a method that did not diverge. Received: "
                f"{[row.note for row in self.rows]}."
            )
        if len(self.task_names) == 2:
            pareto.plot_two(left, points)
            left.set_xlabel(f"{self.task_names[0]}: worse by %")
            left.set_ylabel(f"{self.task_names[1]}: worse by %")
        else:
            pareto.plot_many(left, points, self.task_names)
            left.set_ylabel("worse by %")
        left.set_title(f"Against {self.baseline}; smaller is better")
        ranked = [row for row in self.rows if row.rank is not None]
        for place, row in enumerate(reversed(ranked)):
            right.plot([row.rank], [place], "o", color="0.2")
        right.set_yticks(
            range(len(ranked)),
            [
                row.method
                + " *"
                * bool(row.p_value is not None and row.p_value < _SIGNIFICANT)
                for row in reversed(ranked)
            ],
        )
        right.grid(axis="x", color="0.9")
        right.set_xlim(0.5, len(ranked) + 0.5)
        right.set_title("Mean rank over the tasks; 1 is best")
        return figure

    def _points(self) -> dict[str, Any]:
        if self.baseline is None:
            return {}
        of_baseline = self._test[self.baseline]
        assert of_baseline is not None
        points = {}
        for row in self.rows:
            results = self._test[row.method]
            if results is None:
                continue
            columns = []
            for task in self.task_names:
                mean = float(np.mean(of_baseline[task]))
                sign = 1 if task in self._lower else -1
                change = np.subtract(results[task], mean) / abs(mean)
                columns.append(100 * sign * change)
            points[row.method] = np.stack(columns, axis=1)
        return points


def _searches(
    runs: Sequence[Mapping[str, Any]], tasks: Sequence[str]
) -> dict[str, dict[Any, dict[str, dict[int, Mapping[str, Any]]]]]:
    """`{method: {task or None: {candidate: {seed: run}}}}`.

    Raises:
        ValueError: if they are not as many for each method.
    """
    searches: dict[str, Any] = {}
    for run in runs:
        candidate = json.dumps([run["learning_rate"], run["options"]])
        parts = searches.setdefault(run["method"], {})
        candidates = parts.setdefault(run["task"], {})
        candidates.setdefault(candidate, {})[run["seed"]] = run
    seeds = {run["seed"] for run in runs}
    numbers = {
        f"{method}, {task}" if task else method: {
            candidate: len(of_seeds)
            for candidate, of_seeds in candidates.items()
        }
        for method, parts in searches.items()
        for task, candidates in parts.items()
    }
    single = searches.get(SINGLE_TASKS)
    if (
        len({len(of) for of in numbers.values()}) > 1
        or {n for of in numbers.values() for n in of.values()} != {len(seeds)}
        or (single is not None and set(single) != set(tasks))
    ):
        counts = {name: sum(of.values()) for name, of in numbers.items()}
        raise ValueError(
            "Every method must have the same search: as many learning rates, "
            f"each with all {len(seeds)} seeds. Received: {counts} trainings. "
            "If `compare` was interrupted, call it again: it goes on."
        )
    return searches


def _choose(
    validation: Mapping[str, Sequence[Values | None]],
    reference: Mapping[str, float],
    lower: Sequence[str],
) -> tuple[str | None, float | None]:
    """The candidate with the best mean score, and that score.

    One that diverged for some seed is not chosen. Knows of no test split.
    """
    best: tuple[str | None, float | None] = (None, None)
    for candidate, of_seeds in validation.items():
        scores = [
            pareto.delta_m(
                values,
                {task: reference[task] for task in values},
                [task for task in values if task in lower],
            )
            for values in of_seeds
            if values is not None
        ]
        if len(scores) == len(of_seeds):
            score = float(np.mean(scores))
            if best[1] is None or score > best[1]:
                best = candidate, score
    return best


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
    quantile = float(_scipy_special().stdtrit(number - 1, 0.975))
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
    return float(2 * _scipy_special().stdtr(number - 1, -abs(t)))


def _holm(p_values: Mapping[str, float | None]) -> dict[str, float]:
    """Holm's correction: `p_(i)` times how many are not smaller, monotone."""
    known = {m: p for m, p in p_values.items() if p is not None}
    corrected, largest = {}, 0.0
    for place, method in enumerate(sorted(known, key=known.__getitem__)):
        largest = max(largest, (len(known) - place) * known[method])
        corrected[method] = min(1.0, largest)
    return corrected


def _lower(select: Mapping[str, Sequence[str]]) -> list[str]:
    return [task for task, (_, mode) in select.items() if mode == "min"]


def _score(row: Row) -> float:
    return -math.inf if row.score is None else row.score


def _rates(chosen: Mapping[str, Any]) -> str:
    if "learning_rate" in chosen:
        return f"{chosen['learning_rate']:g}"
    rates = [f"{of_task['learning_rate']:g}" for of_task in chosen.values()]
    return ", ".join(dict.fromkeys(rates))


def _told(chosen: Mapping[str, Any]) -> str:
    options = chosen.get("options") or {}
    told = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f" and with `compile({told})`" if told else ""


def _listed(names: Sequence[str]) -> str:
    return (
        ", ".join(map(repr, names[:-1]))
        + " and " * (len(names) > 1)
        + repr(names[-1])
    )


@functools.cache
def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"A comparison needs {package}: pip install 'keras_mgda[compare]'."
        ) from error


def _scipy_special() -> Any:
    return _optional("scipy.special")
