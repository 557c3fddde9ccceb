"""Reads what the benchmarks found, and what it says over all seeds.

The files are those in results/.
"""

import json
import math
import pathlib
import statistics

import scipy.stats

from keras_mgda.pareto import delta_m

RESULTS = pathlib.Path(__file__).parent / "results"
CONFLICT = -1e-4  # a cosine below is one


def load(name):
    return json.loads((RESULTS / name).read_text())


def lines(name):
    """Of a file that grows by a line for each result."""
    path = RESULTS / name
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def accuracy_epochs():
    """The numbers of epochs that were trained for, but for the search."""
    runs = lines("accuracy.jsonl")
    return sorted({run["epochs"] for run in runs if not run["search"]})


def accuracy_runs(epochs):
    """`{method: {seed: run}}`, at the learning rate that validation chose."""
    of_method = {}
    for run in lines("accuracy.jsonl"):
        if run["epochs"] == epochs:
            of_method.setdefault(run["method"], []).append(run)
    found = {}
    for method, runs in of_method.items():
        first = max(
            (run for run in runs if run["seed"] == 0),
            key=lambda run: statistics.mean(run["validation"].values()),
        )
        found[method] = {
            run["seed"]: run
            for run in runs
            if run["learning_rate"] == first["learning_rate"]
        }
    return found


def interval(values):
    """The mean, and half the width of its 95 % interval (Student)."""
    values = list(values)
    if len(values) < 2:
        return values[0], math.nan
    quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), quantile * error


def accuracy_rows(epochs):
    """`{method: {column: (mean, half of the interval)}}`."""
    runs = accuracy_runs(epochs)
    single = {
        seed: left["test"] | runs["single task, right"][seed]["test"]
        for seed, left in runs.get("single task, left", {}).items()
        if seed in runs.get("single task, right", {})
    }
    rows = {}
    for method, of_seeds in runs.items():
        tests = [run["test"] for run in of_seeds.values()]
        rows[method] = {
            task: interval(test[task] for test in tests) for task in tests[0]
        }
        changes = [
            delta_m(run["test"], single[seed])
            for seed, run in of_seeds.items()
            if seed in single and run["test"].keys() == single[seed].keys()
        ]
        if changes:
            rows[method]["delta-m"] = interval(changes)
        any_run = next(iter(of_seeds.values()))
        rows[method] |= {
            "seeds": len(of_seeds),
            "rate": any_run["learning_rate"],
        }
    return rows


def conflict_rows():
    """Means over the seeds: `{case: {method: {column: value}}}`."""
    by_case = {}
    for result in lines("conflict.jsonl"):
        case = f"{result['network']}, {result['num_tasks']} tasks"
        by_case.setdefault(case, []).append(result)
    return {
        case: {
            method: _conflict_row(results, method)
            for method in results[0]["step_ratio"]
        }
        for case, results in by_case.items()
    }


def _conflict_row(results, method):
    ratio = statistics.mean(r["step_ratio"][method] for r in results)
    runs = [r["methods"][method] for r in results if method in r["methods"]]
    if not runs:
        return {"cost": ratio}

    def mean(of_run):
        return statistics.mean(map(of_run, runs))

    # As many steps as fit in the time of the plain mean's.
    fitting = min(len(runs[0]["loss"]), round(len(runs[0]["loss"]) / ratio))
    return {
        "seeds": len(runs),
        "cost": ratio,
        "conflicts": mean(
            lambda run: statistics.mean(c < CONFLICT for c in run["min_cosine"])
        ),
        "worst": min(min(run["min_cosine"]) for run in runs),
        "corrections": mean(lambda run: statistics.mean(run["corrections"])),
        "loss": mean(lambda run: statistics.mean(run["loss"][-10:])),
        "in equal time": mean(
            lambda run: statistics.mean(run["loss"][:fitting][-10:])
        ),
        "accuracy": mean(lambda run: run["test_accuracy"]),
    }
