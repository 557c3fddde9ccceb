"""What was found: a row for each method, the table, a plot and the advice."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_mgda import pareto
from keras_mgda.comparison import results_file
from keras_mgda.comparison.methods import PLAIN_SUM, REFERENCE, SINGLE_TASKS
from keras_mgda.comparison.problem import Line, lower_is_better
from keras_mgda.comparison.search import Parts, choose, searches
from keras_mgda.comparison.statistics import (
    Interval,
    holm,
    mean_interval,
    optional,
    paired_p_value,
)

_SIGNIFICANT = 0.05
_MAX_TASK_COLUMNS = 6


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

    @property
    def significant(self) -> bool:
        """Whether it differs from the plain sum with `p < 0.05`."""
        return self.p_value is not None and self.p_value < _SIGNIFICANT


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
        task_names: the tasks in order.
        seeds: those of the trainings.

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

    def __init__(self, runs: Iterable[Line]) -> None:
        runs = list(runs)
        of_methods = [run for run in runs if run["method"] != REFERENCE]
        if PLAIN_SUM not in {run["method"] for run in of_methods}:
            raise ValueError(
                "A comparison must have trainings by the plain sum. Received: "
                f"{len(runs)} trainings, none of them."
            )
        self._data = {key: runs[0][key] for key in ("data", "settings")}
        self._select = self._data["settings"]["select"]
        self._lower = lower_is_better(self._select)
        self.task_names = list(self._select)
        self.seeds = sorted({run["seed"] for run in of_methods})
        tried = searches(of_methods, self.task_names, self.seeds)
        reference = self._data["settings"].get("reference") or next(
            (r["validation"] for r in runs if r["method"] == REFERENCE), None
        )
        if reference is None:
            raise ValueError(
                "A comparison must have the training of its reference. "
                f"Received: {len(runs)} trainings without it. Read the whole "
                "file."
            )
        chosen = {
            method: choose(parts, reference, self._lower)
            for method, parts in tried.items()
        }
        self._test = {
            method: values
            for method, (of_parts, _) in chosen.items()
            if (values := self._on_test(of_parts)) is not None
        }
        self.baseline = next(
            (
                method
                for method in (SINGLE_TASKS, PLAIN_SUM)
                if method in self._test and self._test[method].mean(0).all()
            ),
            None,
        )
        self.rows = self._make_rows(tried, chosen)

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
        lines = results_file.read(path)
        names = list(dict.fromkeys(line["data"] for line in lines))
        if name is None and len(names) == 1:
            (name,) = names
        if name is None or name not in names:
            raise ValueError(
                "`name` must be that of the data of a comparison in the file, "
                f"one of {names}. Received: {name!r}."
            )
        return cls(results_file.of_data(lines, name).values())

    def _on_test(
        self, chosen: Mapping[Any, list[Line]]
    ) -> NDArray[np.float64] | None:
        """`M [S, m]` of the chosen lines; `None` if some diverged."""
        columns = []
        for task in self.task_names:
            lines = chosen.get(task, chosen.get(None))
            if lines is None or any(line["test"] is None for line in lines):
                return None
            columns.append([line["test"][task] for line in lines])
        return np.array(columns, float).T

    def _changes(self) -> dict[str, NDArray[np.float64]]:
        """`100 s_t (M_ts - B_t) / |B_t|  [S, m]` of each method."""
        if self.baseline is None:
            return {}
        mean = self._test[self.baseline].mean(axis=0)
        signs = [-1 if task in self._lower else 1 for task in self.task_names]
        return {
            method: 100 * np.array(signs) * (values - mean) / np.abs(mean)
            for method, values in self._test.items()
        }

    def _make_rows(
        self,
        tried: Mapping[str, Parts],
        chosen: Mapping[str, tuple[dict[Any, list[Line]], float | None]],
    ) -> list[Row]:
        delta_m = {m: of.mean(axis=1) for m, of in self._changes().items()}
        differences = {
            method: change - delta_m[PLAIN_SUM]
            for method, change in delta_m.items()
            if method != PLAIN_SUM and PLAIN_SUM in delta_m
        }
        p_values = holm({m: paired_p_value(d) for m, d in differences.items()})
        ranks: dict[str, float] = {}
        if self._test:
            means = np.array([of.mean(axis=0) for of in self._test.values()])
            signs = [1 if t in self._lower else -1 for t in self.task_names]
            # Equal ones differ by the order in which seeds were added up.
            largest = np.abs(means).max(axis=0)
            means = np.round(means / np.where(largest > 0, largest, 1), 12)
            of_tasks = optional("scipy.stats").rankdata(means * signs, axis=0)
            ranks = dict(zip(self._test, of_tasks.mean(1).tolist()))  # noqa: B905
        seconds_of_sum = _seconds(tried[PLAIN_SUM])
        rows = []
        for method, parts in tried.items():
            of_parts, score = chosen[method]
            diverged = method not in self._test
            values = self._test.get(method, np.empty((0, 0)))
            rows.append(
                Row(
                    method=method,
                    test={
                        task: mean_interval(values)
                        for task, values in zip(self.task_names, values.T)  # noqa: B905
                    },
                    delta_m=_interval(delta_m.get(method)),
                    difference=_interval(differences.get(method)),
                    p_value=p_values.get(method),
                    time=_ratio(_seconds(parts), seconds_of_sum),
                    rank=ranks.get(method),
                    chosen=_settings(of_parts),
                    score=score,
                    note=_how_it_diverged(parts) if diverged else "",
                )
            )
        return sorted(
            rows, key=lambda r: math.inf if r.rank is None else r.rank
        )

    @property
    def table(self) -> str:
        """The rows in Markdown, with the mean and its 95 % interval."""
        tasks = self.task_names
        if len(tasks) > _MAX_TASK_COLUMNS:
            tasks = []
        lines = [
            [
                "method",
                *(
                    f"{task}: {self._select[task][0]} "
                    + ("↓" if task in self._lower else "↑")
                    for task in tasks
                ),
                f"delta-m to {self.baseline}, %"
                if self.baseline
                else "delta-m",
                f"against {PLAIN_SUM}, %",
                "p",
                "time",
                "rank",
                "learning rate",
            ]
        ]
        for row in self.rows:
            cells = [
                row.method,
                *(row.test.get(task) for task in tasks),
                row.note or row.delta_m,
                row.difference,
                None if row.p_value is None else f"{row.p_value:.2g}",
                None if row.time is None else f"{row.time:.2f}",
                None if row.rank is None else f"{row.rank:.2f}",
                _rates(row.chosen),
            ]
            lines.append(["" if c is None else str(c) for c in cells])
        widths = [max(map(len, column)) for column in zip(*lines)]  # noqa: B905
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(
            f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines
        )

    @property
    def advice(self) -> str:
        """What to use on these data, in a sentence.

        A method is advised if its difference from the plain sum is positive
        with `p < 0.05`. Among several of them validation decides.
        """
        plain = next(row for row in self.rows if row.method == PLAIN_SUM)
        if plain.rank is None:
            return (
                f"Nothing can be compared with the plain sum, which "
                f"{plain.note}: try lower learning rates."
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
        compared = [(r.difference, r) for r in self.rows if r.difference]
        better = [r for d, r in compared if r.significant and d.mean > 0]
        worse = [repr(r.method) for d, r in compared if r.significant]
        if better:
            best = max(
                better, key=lambda r: -math.inf if r.score is None else r.score
            )
            how, cost = repr(best.method), ""
            if best.method == SINGLE_TASKS:
                how = "a model of its own for each task"
            if best.time:
                cost = f", for {best.time:.2g} times the time of an epoch"
            return (
                f"Use {how}, at the learning rate {_rates(best.chosen)}"
                f"{_options(best.chosen)}: on the test split it is better than "
                f"the plain sum by {best.difference} % in the mean of the "
                f"tasks (p = {best.p_value:.2g}){cost}."
            )
        rate = f"Use the plain sum, at the learning rate {_rates(plain.chosen)}"
        if worse:
            last = " and ".join(worse[-2:])
            named = ", ".join([*worse[:-2], last])
            return f"{rate}: nothing is better, and worse are {named}."
        if not compared:
            return f"{rate}: there is nothing that it was compared with."
        room = max(abs(d.mean) + (d.half_width or 0.0) for d, _ in compared)
        return (
            f"No difference was shown. {rate}: no method is significantly "
            f"better or worse over {len(self.seeds)} seeds, although they "
            f"leave room for differences of up to {room:.2g} %."
        )

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.advice}"

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Rows, advice and settings as JSON, which is written if asked for."""
        found = {
            **self._data,
            "tasks": self._select,
            "seeds": self.seeds,
            "baseline": self.baseline,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "advice": self.advice,
        }
        text = json.dumps(found, indent=1, allow_nan=False)
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
        figure = optional("matplotlib.figure").Figure(
            figsize=(11, 4.5), layout="constrained"
        )
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        changes = self._changes()
        ranked = [row for row in self.rows if row.method in changes]
        if not ranked:
            raise ValueError(
                "A plot needs single tasks or a plain sum that did not "
                "diverge, with no metric of zero. Received: "
                f"{self.advice} Train these, too, at lower learning rates."
            )
        points = {row.method: -changes[row.method] for row in ranked}
        if len(self.task_names) == 2:
            pareto.plot_two(left, points)
            left.set_xlabel(f"{self.task_names[0]}: worse by %")
            left.set_ylabel(f"{self.task_names[1]}: worse by %")
        else:
            pareto.plot_many(left, points, self.task_names)
            left.set_ylabel("worse by %")
        left.set_title(f"Against {self.baseline}; smaller is better")
        ranked.reverse()
        for place, row in enumerate(ranked):
            right.plot([row.rank], [place], "o", color="0.2")
        names = [row.method + " *" * row.significant for row in ranked]
        right.set_yticks(range(len(ranked)), names)
        right.grid(axis="x", color="0.9")
        right.set_xlim(0.5, len(ranked) + 0.5)
        right.set_title("Mean rank over the tasks; 1 is best")
        return figure


def _interval(values: Sequence[float] | None) -> Interval | None:
    return None if values is None else mean_interval(values)


def _seconds(parts: Parts) -> float | None:
    """Median time of an epoch; of all single-task models together."""
    total = 0.0
    for candidates in parts.values():
        lines = itertools.chain(*candidates.values())
        seconds = [s for line in lines if (s := line["epoch_seconds"])]
        if not seconds:
            return None
        total += float(np.median(seconds))
    return total


def _ratio(left: float | None, right: float | None) -> float | None:
    return left / right if left and right else None


def _settings(chosen: Mapping[Any, list[Line]]) -> dict[str, Any]:
    settings: dict[Any, Any] = {
        part: {key: lines[0][key] for key in ("learning_rate", "options")}
        for part, lines in chosen.items()
    }
    return settings.get(None, settings)


def _how_it_diverged(parts: Parts) -> str:
    of_seeds = itertools.chain(*(tried.values() for tried in parts.values()))
    ends = [line["diverged"] for line in itertools.chain(*of_seeds)]
    wrong = [end for end in ends if end]
    return f"diverged in {len(wrong)} of {len(ends)} trainings: {wrong[0]}"


def _told(option: Any) -> str:
    """A call where an instance was given, which stands as class and config."""
    if isinstance(option, dict) and len(option) == 1:
        ((name, config),) = option.items()
        if isinstance(config, dict):
            given = ", ".join(f"{k}={v!r}" for k, v in config.items())
            return f"{name.rpartition('.')[2]}({given})"
    return repr(option)


def _rates(chosen: Mapping[str, Any]) -> str:
    of_parts = [chosen] if "learning_rate" in chosen else chosen.values()
    rates = [f"{of_part['learning_rate']:g}" for of_part in of_parts]
    return ", ".join(dict.fromkeys(rates))


def _options(chosen: Mapping[str, Any]) -> str:
    options = chosen.get("options") or {}
    told = ", ".join(
        f"{name}={_told(value)}" for name, value in options.items()
    )
    return f" and with `compile({told})`" if told else ""
