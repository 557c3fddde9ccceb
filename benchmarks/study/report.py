"""The tables and the figure of the study, from the lines of its files."""

import contextlib
import functools
import math
import statistics

from benchmarks.harness import lines, load
from benchmarks.study import ranks
from benchmarks.study.run import SEEDS
from keras_mgda.comparison import Comparison

PLAIN_SUM, SINGLE_TASKS, FIXED = "plain sum", "single tasks", "fixed weights"
# What `diagnose` says of these is that another weighting may do better.
CALLS_FOR_ANOTHER = {"scale", "starves", "conflict"}


@functools.cache
def comparisons(folder):
    """`{problem: Comparison}`, of the problems that have all trainings."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        with contextlib.suppress(ValueError):  # in the midst of a seed
            comparison = Comparison.read(path)
            if len(comparison.seeds) == SEEDS:
                found[path.stem] = comparison
    return found


def under_way(folder):
    """The problems that are left out, for `run` has not ended."""
    names = {path.stem for path in folder.glob("*.jsonl")}
    return sorted(names - comparisons(folder).keys())


def differences(folder):
    """`{problem: {method: mean difference from the plain sum, %}}`.

    Without the single tasks, which have more trainings; minus infinity for a
    method that diverged.
    """
    return {
        problem: {
            row.method: row.difference.mean
            if row.difference
            else 0.0
            if row.method == PLAIN_SUM
            else -math.inf
            for row in sorted(comparison.rows, key=lambda row: row.method)
            if row.method != SINGLE_TASKS
        }
        for problem, comparison in comparisons(folder).items()
    }


def data_set(problem):
    """That of a problem; the units of a regression are no other data."""
    return problem.partition("-")[0]


def mean_ranks(folder):
    """Over the data sets; on one with two units by the mean of both ranks."""
    by_data = {}
    for problem, scores in differences(folder).items():
        of_problem = ranks.of_one(scores)
        by_data.setdefault(data_set(problem), []).append(of_problem)
    return ranks.of_scores(
        {
            data: {
                method: -statistics.mean(of[method] for of in found)
                for method in found[0]
            }
            for data, found in by_data.items()
        }
    )


def ranked(folder):
    """A row for each method, by its mean rank over the data sets.

    How often it is significantly better or worse than the plain sum on one
    problem, and its median, worst and best change against it.
    """
    found = mean_ranks(folder)
    header = [
        "method",
        "mean rank",
        "better than the sum on",
        "worse on",
        "median, %",
        "worst, %",
        "best, %",
        "time",
    ]
    rows = []
    for method, rank in found.mean.items():
        of_method = [
            row
            for comparison in comparisons(folder).values()
            for row in comparison.rows
            if row.method == method
        ]
        changes = [row.difference.mean for row in of_method if row.difference]
        times = [row.time for row in of_method if row.time]
        significant = [r for r in of_method if r.significant]
        rows.append(
            [method, f"{rank:.2f}"]
            + (
                [""] * 5
                if method == PLAIN_SUM
                else [
                    sum(row.difference.mean > 0 for row in significant),
                    sum(row.difference.mean < 0 for row in significant),
                    *(
                        f"{round(of(changes), 1) + 0.0:.1f}"
                        for of in (statistics.median, min, max)
                    ),
                ]
            )
            + [f"{statistics.median(times):.2f}"]
        )
    return header, rows


def verdict(folder):
    """What the ranks of all data sets tell, in a sentence."""
    found = mean_ranks(folder)
    number = len(comparisons(folder))
    text = (
        f"{found.number} data sets, {number} problems. Friedman's test: p = "
        f"{found.p_value:.2g}. Critical difference of two mean ranks "
        f"(Nemenyi, 5 %): {found.critical_difference:.2f}. "
    )
    best = found.mean[PLAIN_SUM] - found.critical_difference
    better = [m for m, rank in found.mean.items() if rank < best]
    worst = found.mean[PLAIN_SUM] + found.critical_difference
    worse = [m for m, rank in found.mean.items() if rank > worst]
    for which, names in (("better", better), ("worse", worse)):
        text += f"Significantly {which} than the plain sum over all of them: "
        text += f"{', '.join(names) or 'none'}. "
    return text.strip()


def by_problem(folder):
    """A row for each problem: how much each method changes it, in percent."""
    methods = list(mean_ranks(folder).mean)
    methods.remove(PLAIN_SUM)
    methods.append(SINGLE_TASKS)
    rows = []
    for problem, comparison in comparisons(folder).items():
        of_method = {row.method: row for row in comparison.rows}
        cells = [
            change(of_method[m]) if m in of_method else "" for m in methods
        ]
        rows.append([problem, *cells])
    return ["problem", *methods], rows


def change(row):
    """The difference and its interval, in bold type if it is significant."""
    if row.difference is None:
        return "diverged"
    mean, half = row.difference.mean, row.difference.half_width
    digits = 1 if half < 10 else 0
    mean = round(mean, digits) + 0.0  # not -0.0
    text = f"{mean:.{digits}f} ± {half:.{digits}f}"
    return f"**{text}**" if row.significant else text


def effort(folder):
    """A row for each problem, and one for all: how much it took."""
    rows, total, trainings = [], 0.0, 0
    for problem, comparison in comparisons(folder).items():
        found = lines(folder / f"{problem}.jsonl")
        seconds = sum(line["seconds"] for line in found)
        total, trainings = total + seconds, trainings + len(found)
        settings = found[0]["settings"]
        rows.append(
            [
                problem,
                len(comparison.task_names),
                len(found),
                settings["epochs"],
                f"{seconds / 60:.0f}",
                comparison.advice.partition(". ")[0].rstrip("."),
            ]
        )
    rows.append(["all", "", trainings, "", f"{total / 60:.0f}", ""])
    header = ["problem", "tasks", "trainings", "epochs", "minutes", "advice"]
    return header, rows


def judged(folder):
    """What `diagnose` said before training, and whether it was right.

    It is right if it asks for another method where one is significantly
    better than the plain sum, and for the plain sum where none is. Where it
    finds nothing it says nothing.

    Returns:
        A header, and a row for each problem and for all.
    """
    header = [
        "problem",
        "findings before training",
        "steps of the sum that harm a task",
        "so it says",
        "significantly better than the sum",
        "right",
    ]
    diagnosed = load(folder / "diagnosis.json")["problems"]
    rows, right = [], []
    for problem, comparison in comparisons(folder).items():
        kinds = [f["kind"] for f in diagnosed[problem]["findings"]]
        asks = bool(CALLS_FOR_ANOTHER & set(kinds))
        better = [
            row.method
            for row in comparison.rows
            if row.significant
            and row.difference.mean > 0
            and row.method != SINGLE_TASKS
        ]
        if kinds:
            right.append(asks == bool(better))
        rows.append(
            [
                problem,
                ", ".join(
                    f"{kind} ({kinds.count(kind)})"
                    for kind in sorted(set(kinds))
                )
                or "none",
                f"{100 * diagnosed[problem]['harmful']:.0f} %",
                "another method"
                if asks
                else "the plain sum"
                if kinds
                else "nothing",
                ", ".join(better) or "none",
                ("yes" if right[-1] else "no") if kinds else "",
            ]
        )
    of_all = f"{sum(right)} of {len(right)}"
    rows.append(["all", "", "", "", "", of_all])
    return header, rows


def draw(folder, path):
    """Critical differences: methods by mean rank; lines join equal ones."""
    from matplotlib.figure import Figure

    found = mean_ranks(folder)
    names = list(found.mean)
    half = math.ceil(len(names) / 2)
    below = 0.35 + 0.2 * len(found.groups)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0.2, len(names) + 0.8)
    axes.set_ylim(-below - 0.75 * (half - 1) - 0.4, 1.6)
    axes.axis("off")
    axes.hlines(0, 1, len(names), color="black", lw=1)
    for rank in range(1, len(names) + 1):
        axes.vlines(rank, 0, 0.15, color="black", lw=1)
        axes.text(rank, 0.25, str(rank), ha="center", fontsize=9)
    for i, name in enumerate(names):
        left = i < half
        place = i if left else len(names) - 1 - i
        y = -below - 0.75 * place
        end = 0.9 if left else len(names) + 0.1
        rank = found.mean[name]
        axes.plot([rank, rank, end], [0, y, y], color="0.4", lw=0.8)
        label = f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}"
        side = "right" if left else "left"
        weight = "bold" if name == PLAIN_SUM else "normal"
        axes.text(
            end + (-0.05 if left else 0.05),
            y,
            label,
            ha=side,
            va="center",
            fontsize=9,
            fontweight=weight,
        )
    for level, group in enumerate(found.groups):
        ends = [found.mean[group[0]] - 0.05, found.mean[group[-1]] + 0.05]
        axes.hlines(-0.25 - 0.2 * level, *ends, color="black", lw=3)
    axes.hlines(1.1, 1, 1 + found.critical_difference, color="black", lw=1.5)
    axes.text(
        1 + found.critical_difference / 2,
        1.2,
        f"critical difference {found.critical_difference:.2f}",
        ha="center",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
