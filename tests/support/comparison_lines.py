"""Lines of the file of results, made up and read."""

import itertools
import json

METHODS = ("single tasks", "plain sum", "twin", "c", "d", "e", "f")
RATES = (0.1, 0.01)


def lines_of(metric, methods=METHODS, seeds=5, tasks=("a", "b"), mode="max"):
    """Lines of a study whose metrics are those of a function.

    `metric(method, task, rate, seed, split)`; `None` if the training diverged.
    """
    settings = {
        "select": {task: ["metric", mode] for task in tasks},
        "reference": dict.fromkeys(tasks, 0.5),
    }
    lines = []
    for seed, method, rate in itertools.product(range(seeds), methods, RATES):
        single = method == "single tasks"
        for part in tasks if single else [None]:
            line = {
                "comparison": 1,
                "data": "made up",
                "method": method,
                "task": part,
                "options": {"weighting": method},
                "learning_rate": rate,
                "seed": seed,
                "diverged": None,
                "epoch_seconds": 2.0 if single else 1.0,
                "versions": {},
                "settings": settings,
            }
            for of_split in ("validation", "test"):
                values = {
                    task: metric(method, task, rate, seed, of_split)
                    for task in ([part] if single else tasks)
                }
                if None in values.values():
                    values = None
                    line["diverged"] = "loss nan in epoch 3"
                line[of_split] = values
            lines.append(line)
    return lines


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def row_of(comparison, method):
    return next(row for row in comparison.rows if row.method == method)


def without_time(comparison):
    return [vars(row) | {"time": None} for row in comparison.rows]
