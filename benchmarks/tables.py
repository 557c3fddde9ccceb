"""Writes the tables of README.md and docs/ from the files in results/.

What stands between `<!-- table NAME -->` and `<!-- end -->` is replaced. The
tests check that the files are as this leaves them.

    python benchmarks/tables.py
"""

import json
import math
import pathlib
import re
import statistics

import scipy.stats

from keras_mgda.pareto import delta_m

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.S)
CONFLICT = -1e-4  # a cosine below is one
PAPER = {  # table 3
    "single task, left": "97.23",
    "single task, right": "95.90",
    "uniform": "96.46 / 94.99",
    "uncertainty": "96.47 / 95.29",
    "GradNorm": "96.27 / 94.84",
    "MGDA-UB": "97.26 / 95.90",
}


def load(name):
    return json.loads((RESULTS / name).read_text())


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def step_cost():
    results = load("step_cost.json")["results"]
    methods = [m for m in results[0]["step_ratio"] if m != "stock"]
    return markdown(
        ["", *methods],
        [
            [
                of_case["case"],
                *(f"{of_case['step_ratio'][m]:.2f}" for m in methods),
            ]
            for of_case in results
        ],
    )


def solver():
    results = {
        (row["m"], row["solver"]): row for row in load("solver.json")["results"]
    }

    def error(m, name):
        return f"{results[m, name]['error_worst']:.0e}"

    def ratio(m, name):
        return f"{results[m, name]['ratio_median']:.2f}"

    ours = "keras_mgda"
    return markdown(
        ["m", "ours", "quadprog", "TorchJD", "time", "time in a graph"],
        [
            [
                m,
                *(error(m, who) for who in (ours, "quadprog", "TorchJD MGDA")),
                ratio(m, ours),
                ratio(m, f"{ours} in a graph"),
            ]
            for m in sorted({m for m, _ in results})
        ],
    )


def weightings():
    results = {
        (row["weighting"], row["m"]): row
        for row in load("weightings.json")["results"]
    }
    sizes = sorted({m for _, m in results})

    def cells(name):
        ratios = [results[name, m].get("graph_ratio") for m in sizes]
        run = results[name, 64]
        return [
            f"`{name}`",
            *("" if ratio is None else f"{ratio:.2g}" for ratio in ratios),
            f"{1e3 * run['graph_seconds']:.2g}",
            f"{run['xla_compile_seconds']:.2g}",
        ]

    return markdown(
        ["identifier", *(f"m = {m}" for m in sizes), "ms", "XLA, s"],
        [cells(name) for name in sorted({name for name, _ in results})],
    )


def fronts():
    found = load("fronts.json")
    problems = [name for name in found if name != "starts"]
    return markdown(
        ["", *(f"{p}: {c}" for p in problems for c in ("distance", "volume"))],
        [
            [
                method,
                *(
                    f"{found[problem][method][value]:.3f}"
                    for problem in problems
                    for value in ("median_distance", "hypervolume_share")
                ),
            ]
            for method in found[problems[0]]
        ],
    )


def conflict_rows():
    """Means over the seeds: `{case: {method: {column: value}}}`."""
    path = RESULTS / "conflict.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    by_case = {}
    for result in map(json.loads, lines):
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


def conflict():
    parts = []
    for case, of_methods in conflict_rows().items():
        seeds = of_methods["MGDA-UB"]["seeds"]
        rows = []
        for method, row in of_methods.items():
            cells = [method, f"{row['cost']:.2f}"] + [""] * 6
            if "loss" in row:
                cells[2:] = [
                    f"{100 * row['conflicts']:.1f} %",
                    f"{row['worst']:.2f}",
                    f"{row['corrections']:.2f}",
                    f"{row['loss']:.3f}",
                    f"{row['in equal time']:.3f}",
                    f"{100 * row['accuracy']:.2f} %",
                ]
            rows.append(cells)
        header = [
            f"{case} ({seeds} seed{'s' * (seeds > 1)})",
            "cost",
            "steps in conflict",
            "worst cosine",
            "corrections",
            "loss",
            "loss in equal time",
            "test accuracy",
        ]
        parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def accuracy_runs():
    """The runs of the largest number of epochs that `uniform` has.

    `{method: {seed: run}}`, at the learning rate that the method's seeds have
    in common: the first seed may have tried others.
    """
    lines = (RESULTS / "accuracy.jsonl").read_text().splitlines()
    runs = list(map(json.loads, lines))
    epochs = max(
        (run for run in runs if run["method"] == "uniform" and run["seed"] > 0),
        key=lambda run: run["epochs"],
    )["epochs"]
    runs = [run for run in runs if run["epochs"] == epochs]
    rates = {run["method"]: run["learning_rate"] for run in runs if run["seed"]}
    of_method = {}
    for run in runs:
        if run["learning_rate"] == rates.get(run["method"]):
            of_method.setdefault(run["method"], {})[run["seed"]] = run
    return of_method


def interval(values):
    """The mean, and half the width of its 95 % interval (Student)."""
    values = list(values)
    if len(values) < 2:
        return values[0], math.nan
    quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), quantile * error


def accuracy_rows():
    """`{method: {column: (mean, half of the interval)}}`."""
    runs = accuracy_runs()
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
            "epochs": any_run["epochs"],
        }
    return rows


def accuracy():
    rows = accuracy_rows()
    epochs = rows["uniform"]["epochs"]

    def cell(row, column):
        if column not in row:
            return ""
        mean, half = row[column]
        return f"{mean:.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")

    accuracies = ("left, %", "right, %", "delta-m, %")
    return markdown(
        [f"{epochs} epochs", *accuracies, "rate", "seeds", "the paper"],
        [
            [
                method,
                *(cell(row, name) for name in ("left", "right", "delta-m")),
                row["rate"],
                row["seeds"],
                PAPER.get(method, ""),
            ]
            for method, row in rows.items()
        ],
    )


def few_labels():
    return markdown(
        ["", "mean", "each seed"],
        [
            [
                f"{row['case']}: {row['method']}",
                f"{100 * row['mean_test_accuracy_of_rare_task']:.1f} %",
                ", ".join(
                    f"{100 * of_seed[row['rare_task']]:.1f}"
                    for of_seed in row["test_accuracy"]
                ),
            ]
            for row in load("few_labels.json")["results"]
        ],
    )


TABLES = {
    "accuracy": accuracy,
    "few_labels": few_labels,
    "step_cost": step_cost,
    "solver": solver,
    "weightings": weightings,
    "fronts": fronts,
    "conflict": conflict,
}


def filled(text):
    """The same with the tables as the results have them now."""
    return BLOCK.sub(
        lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text
    )


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
