"""Writes the tables of README.md and docs/ from the files in results/.

What stands between `<!-- table NAME -->` and `<!-- end -->` is replaced. The
tests check that the files are as this leaves them.

    python benchmarks/tables.py
"""

import math
import pathlib
import re
import sys

from results import (
    accuracy_epochs,
    accuracy_rows,
    conflict_rows,
    lines,
    load,
)

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.S)
CASES = {"lenet": "LeNet, batch 256", "resnet18": "ResNet-18, batch 16"}
PAPER = {  # table 3
    "single task, left": "97.23",
    "single task, right": "95.90",
    "uniform": "96.46 / 94.99",
    "uncertainty": "96.47 / 95.29",
    "GradNorm": "96.27 / 94.84",
    "MGDA-UB": "97.26 / 95.90",
}


def markdown(header, rows):
    table = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in table)


def demo():
    """As examples/multi_mnist.py prints it."""
    import report

    found = load("multi_digits.json")
    return report.table(found["scores"], found["rates"], found["times"])


def scaling():
    def grouped(number):
        return f"{number:,}".replace(",", " ")

    header = ["tasks", "parameters", "plain sum, bytes"]
    return markdown(
        [*header, "MGDA-UB adds", "exact MGDA adds"],
        [
            [
                f"{row['tasks']}"
                + ", heads also read the first layer" * row["bypass"],
                grouped(row["parameters"]),
                grouped(row["plain sum"]),
                grouped(row["MGDA-UB"] - row["plain sum"]),
                grouped(row["exact MGDA"] - row["plain sum"]),
            ]
            for row in load("scaling.json")["bytes_reduced"]
        ],
    )


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


def cost():
    """A table for each network, a column for each number of tasks."""
    cases = {}
    for case in lines("cost.jsonl"):
        cases.setdefault(case["network"], []).append(case)
    parts = []
    for network, of_network in cases.items():
        methods = of_network[0]["methods"]
        rows = []
        for name in methods:
            measured = [case["methods"][name] for case in of_network]
            ends = measured[0], measured[-1]
            rows.append(
                [
                    name,
                    *(f"{case['ratio']:.2f}" for case in measured),
                    *(f"{case['first_step_seconds']:.1f}" for case in ends),
                    *(f"{case['peak_bytes'] / 2**20:.0f}" for case in ends),
                ]
            )
        tasks = [case["tasks"] for case in of_network]
        header = [CASES[network], *(f"{m} tasks" for m in tasks)]
        header += [f"first step, s ({m})" for m in (tasks[0], tasks[-1])]
        header += [f"memory, MiB ({m})" for m in (tasks[0], tasks[-1])]
        parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def many_tasks():
    results = load("many_tasks.json")["results"]
    columns = {
        "first step": "first_step_cpu_seconds",
        "step": "step_seconds",
        "graph nodes": "graph_nodes",
    }
    return markdown(
        ["tasks", *columns, "copies of Z", "of stock Keras"],
        [
            [
                of_case["tasks"],
                *(f"{of_case['ratio'][key]:.2f}" for key in columns.values()),
                *(f"{of_case['copies_of_z_per_task'][i]:.2f}" for i in (1, 0)),
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


def accuracy():
    return "\n\n".join(map(accuracy_of, accuracy_epochs()))


def accuracy_of(epochs):
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
            for method, row in accuracy_rows(epochs).items()
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


def text():
    """As examples/text.py prints it."""
    import text_report

    return text_report.table(lines("text.jsonl"))


TABLES = {
    "demo": demo,
    "scaling": scaling,
    "accuracy": accuracy,
    "few_labels": few_labels,
    "step_cost": step_cost,
    "solver": solver,
    "weightings": weightings,
    "fronts": fronts,
    "conflict": conflict,
    "cost": cost,
    "many_tasks": many_tasks,
    "text": text,
}


def filled(text):
    """The same with the tables as the results have them now."""
    return BLOCK.sub(
        lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text
    )


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
