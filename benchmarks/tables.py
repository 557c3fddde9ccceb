"""Writes the tables of README.md and docs/ from the files in results/.

What stands between `<!-- table NAME -->` and `<!-- end -->` is replaced. The
tests check that the files are as this leaves them.

    python benchmarks/tables.py
"""

import json
import pathlib
import re
import statistics

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.S)
CONFLICT = -1e-4  # a cosine below is one


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
