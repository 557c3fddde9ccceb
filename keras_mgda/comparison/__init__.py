"""Which method to take: every method on the same data, by the same search.

`compare` trains, `Comparison` tells what was found. Letters: `t` a task of `m`,
`M_t` its metric, `s_t` plus one where the metric is to be large and minus one
where it is to be small. Statistics need SciPy and plots matplotlib: the extra
`keras_mgda[compare]`.

`methods`, `splits` and the other arguments make a `problem`. A `training` of it
runs in one of the `executors`, and leaves a line in the `results_file`. Among
these lines `search` chooses, `statistics` tells a difference from chance, and
`report` says what was found.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import keras

from keras_mgda.comparison import results_file, splits, training
from keras_mgda.comparison.executors import (
    FreshProcesses,
    InProcess,
    Submit,
    run_all,
    running,
)
from keras_mgda.comparison.methods import tries
from keras_mgda.comparison.problem import (
    Line,
    Problem,
    Training,
    check_search,
    plan,
)
from keras_mgda.comparison.report import Comparison, Row
from keras_mgda.comparison.settings import described, portable
from keras_mgda.comparison.statistics import Interval, optional

__all__ = [
    "Comparison",
    "FreshProcesses",
    "InProcess",
    "Interval",
    "Row",
    "compare",
]


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
    ...     found = keras_mgda.compare(
    ...         build, split(), split(), split(),
    ...         losses={"a": "mse", "b": "mae"},
    ...         metrics={"a": "mae", "b": "mae"},
    ...         select={"a": ("mae", "min"), "b": ("mae", "min")},
    ...         results=f"{folder}/runs.jsonl",
    ...         methods=["plain sum", "MGDA-UB"],
    ...         learning_rates=[0.01], seeds=[0, 1], epochs=2,
    ...         compile_options={"run_eagerly": True},
    ...         executor=keras_mgda.comparison.InProcess(),
    ...     )
    >>> sorted(row.method for row in found.rows)
    ['MGDA-UB', 'plain sum']

    References:
        Kurin et al., 2022. In Defense of the Unitary Scalarization for Deep
        Multi-Task Learning. https://arxiv.org/abs/2201.04122
        Maninis et al., 2019. Attentive single-tasking of multiple tasks.
        Equation 4. https://arxiv.org/abs/1904.08918
    """
    optional("scipy.special")  # before hours of training, not after them
    rates, seeds = check_search(learning_rates, seeds)
    problem = Problem(
        build=build,
        train=train,
        validation=validation,
        test=test,
        losses=losses,
        metrics=portable(metrics),
        select=select,
        optimizer=optimizer,
        epochs=epochs,
        patience=epochs if patience is None else patience,
        batch_size=batch_size,
        compile_options=portable(compile_options or {}),
        shared=shared,
        reference=reference,
    )
    planned = plan(tries(methods, list(losses), rates), list(losses), seeds)
    first = planned[0].of_reference()
    if reference is None:
        planned.insert(0, first)
    given = {"train": train, "validation": validation, "test": test}
    digests = splits.digests(given, allow_overlap)
    path = pathlib.Path(results)
    with running(executor, problem) as submit:
        settings = {
            **problem.described(),
            "splits": digests,
            **_network(submit, problem, planned, path),
            "reference": described(reference),
            "reference_training": None if reference else [rates[0], first.seed],
        }
        finished = results_file.go_on(path, name, settings, planned)
        todo = [run for run in planned if run.key not in finished]
        bar = None
        if verbose:
            bar = keras.utils.Progbar(len(planned), unit_name="training")
            bar.update(len(planned) - len(todo))

        def note(run: Training, ended: "Future[Line]") -> None:
            try:
                found = ended.result()
            except Exception as error:
                raise _failure(error, run, path) from error
            line = {
                "data": name,
                **run.described(),
                **found,
                "settings": settings,
            }
            results_file.append(path, line)
            finished[run.key] = line
            if bar is not None:
                bar.add(1)

        def run_those(runs: Sequence[Training], problem: Problem) -> None:
            run_all(
                lambda run: submit(training.train, problem, run), runs, note
            )

        if reference is None:
            # The others are scored by what this one reaches.
            run_those([run for run in todo if run == first], problem)
            reference = finished[first.key]["validation"]
            todo = [run for run in todo if run != first]
        run_those(todo, dataclasses.replace(problem, reference=reference))
    return Comparison([finished[run.key] for run in planned])


def _network(
    submit: Submit,
    problem: Problem,
    planned: Sequence[Training],
    path: pathlib.Path,
) -> dict[str, str]:
    """Digests of network and optimizer; one of each kind was compiled."""
    kinds: dict[str, Training] = {}
    for run in planned:
        kinds.setdefault(json.dumps(described([run.task, run.options])), run)
    ended = submit(training.check, problem, list(kinds.values()))
    try:
        digests: dict[str, str] = ended.result()
    except BrokenProcessPool as error:
        raise _failure(error, planned[0], path) from error
    return digests


def _failure(
    error: Exception, run: Training, path: pathlib.Path
) -> RuntimeError:
    which = {k: v for k, v in run.described().items() if v is not None}
    must = "Every training must end."
    if isinstance(error, BrokenProcessPool):
        must = (
            "A process ended before its training did: it was killed, as when "
            "memory is short, or the script starts `compare` as it is "
            "imported, where `if __name__ == '__main__':` must stand before it."
        )
    return RuntimeError(
        f"{must} Received: {type(error).__name__}: {error} from {which}. What "
        f"ended is in {path}; the same call goes on from there."
    )
