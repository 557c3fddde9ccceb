"""From what the benchmarks found to the tables of README.md and docs/.

What stands between `<!-- table NAME -->` and `<!-- end -->` is replaced. The
tests check that the files are as this leaves them.

    python -m benchmarks.tables
"""

import math
import re
import statistics

import scipy.stats

from benchmarks.harness import RESULTS, ROOT, lines, load
from benchmarks.study import report as study_report
from benchmarks.study import scales
from examples import molecules, report, text_report
from keras_mgda.comparison import Comparison
from keras_mgda.pareto import delta_m

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.S)
CASES = {"lenet": "LeNet, batch 256", "resnet18": "ResNet-18, batch 16"}
CONFLICT = -1e-4  # a cosine below is one
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


def demo(folder=RESULTS):
    """As `python -m examples.multi_mnist` prints it."""
    found = load(folder / "multi_digits.json")
    return report.table(found["scores"], found["rates"], found["times"])


def scaling(folder=RESULTS):
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
            for row in load(folder / "scaling.json")["bytes_reduced"]
        ],
    )


def step_cost(folder=RESULTS):
    return _steps(load(folder / "step_cost.json")["directions"])


def look_cost(folder=RESULTS):
    return _steps(load(folder / "step_cost.json")["looks"])


def tower_cost(folder=RESULTS):
    return _steps(load(folder / "step_cost.json")["towers"])


def _steps(results):
    return _beside_stock(
        (of_case["case"], of_case["stock_step_seconds"], of_case["step_ratio"])
        for of_case in results
    )


def first_steps(folder=RESULTS):
    results = load(folder / "step_cost.json")["directions"]
    first = {r["case"]: r["first_step_seconds"] for r in results}
    return _beside_stock(
        (
            case,
            times["stock"],
            {m: t / times["stock"] for m, t in times.items()},
        )
        for case, times in first.items()
    )


def _beside_stock(cases):
    """Of each case its name, stock Keras in seconds, and `{method: ratio}`."""
    cases = list(cases)
    methods = [method for method in cases[0][2] if method != "stock"]
    return markdown(
        ["", "stock Keras, s", *methods],
        [
            [name, f"{seconds:.3g}", *(f"{ratios[m]:.2f}" for m in methods)]
            for name, seconds, ratios in cases
        ],
    )


def cost(folder=RESULTS):
    """A table for each network, a column for each number of tasks."""
    cases = {}
    for case in lines(folder / "cost.jsonl"):
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


def many_tasks(folder=RESULTS):
    results = load(folder / "many_tasks.json")["results"]
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


def columns(folder=RESULTS):
    """Ratios to stock Keras with a masked sum."""
    rows = []
    for of_case in load(folder / "columns.json")["results"]:
        for method, first in of_case["first_step_cpu_seconds"].items():
            ratios = [
                of_case[key].get(method) for key in ("step_ratio", "cpu_ratio")
            ]
            peak = of_case["peak_bytes"]
            rows.append(
                [
                    of_case["case"],
                    method,
                    *("" if r is None else f"{r:.2f}" for r in ratios),
                    f"{first:.1f}",
                    f"{peak[method] / peak['stock Keras']:.2f}",
                ]
            )
    header = ["", "", "step", "step, CPU time", "first step, CPU s", "memory"]
    return markdown(header, rows)


def toxcast():
    """As `python -m examples.molecules` prints it."""
    return _molecules("toxcast.csv.gz")


def tox21():
    return _molecules("tox21.csv.gz")


def _molecules(data):
    found = lines(RESULTS / "molecules.jsonl")
    return molecules.table([line for line in found if line["data"] == data])


def solver(folder=RESULTS):
    results = {
        (row["m"], row["solver"]): row
        for row in load(folder / "solver.json")["results"]
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


def weightings(folder=RESULTS):
    results = {
        (row["weighting"], row["m"]): row
        for row in load(folder / "weightings.json")["results"]
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


def fronts(folder=RESULTS):
    found = load(folder / "fronts.json")
    problems = [name for name in found if isinstance(found[name], dict)]
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


def conflict_rows(folder):
    """Means over the seeds: `{case: {method: {column: value}}}`."""
    by_case = {}
    for result in lines(folder / "conflict.jsonl"):
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


def conflict(folder=RESULTS):
    parts = []
    for case, of_methods in conflict_rows(folder).items():
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


def accuracy_runs(folder):
    """`{epochs: {method: {seed: run}}}`, at the rate that validation chose.

    Without the numbers of epochs that only the search for it trained for.
    """
    found = {}
    for run in lines(folder / "accuracy.jsonl"):
        of_epochs = found.setdefault(run["epochs"], {})
        of_epochs.setdefault(run["method"], []).append(run)
    return {
        epochs: {name: chosen(runs) for name, runs in of_epochs.items()}
        for epochs, of_epochs in sorted(found.items())
        if not all(r["search"] for runs in of_epochs.values() for r in runs)
    }


def chosen(runs):
    first = max(
        (run for run in runs if run["seed"] == 0),
        key=lambda run: statistics.mean(run["validation"].values()),
    )
    rate = first["learning_rate"]
    return {r["seed"]: r for r in runs if r["learning_rate"] == rate}


def accuracy_rows(folder):
    """`{epochs: {method: {column: (mean, half of the interval)}}}`."""
    return {
        epochs: {
            name: accuracy_row(of_seeds, single_tasks(runs))
            for name, of_seeds in runs.items()
        }
        for epochs, runs in accuracy_runs(folder).items()
    }


def single_tasks(runs):
    """What the single-task models reach together, `{seed: accuracies}`."""
    left, right = (runs.get(f"single task, {t}", {}) for t in report.TASKS)
    return {
        seed: left[seed]["test"] | right[seed]["test"]
        for seed in left
        if seed in right
    }


def accuracy_row(of_seeds, single):
    tests = {seed: run["test"] for seed, run in of_seeds.items()}
    any_run = next(iter(of_seeds.values()))
    row = {
        task: interval(test[task] for test in tests.values())
        for task in any_run["test"]
    }
    changes = [
        delta_m(test, single[seed])
        for seed, test in tests.items()
        if seed in single and test.keys() == single[seed].keys()
    ]
    if changes:
        row["delta-m"] = interval(changes)
    return row | {"seeds": len(of_seeds), "rate": any_run["learning_rate"]}


def interval(values):
    """The mean, and half the width of its 95 % interval (Student)."""
    values = list(values)
    if len(values) < 2:
        return values[0], math.nan
    quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), quantile * error


def accuracy(folder=RESULTS):
    tables = accuracy_rows(folder).items()
    return "\n\n".join(accuracy_of(*table) for table in tables)


def accuracy_of(epochs, rows):
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


def chosen_rates(folder):
    """`{method: learning rate}`, of the longest trainings that chose one."""
    return {
        name: next(iter(of_seeds.values()))["learning_rate"]
        for runs in accuracy_runs(folder).values()
        for name, of_seeds in runs.items()
    }


def all_digits(folder=RESULTS):
    """By the epoch that validation chose, and by the best one on test."""
    validated = accuracy_runs(folder)
    of_methods = {}
    for run in lines(folder / "all_digits.jsonl"):
        key = run["method"], run["masks"]
        of_methods.setdefault(key, []).append(run)

    def cell(values):
        mean, half = interval(values)
        return f"{mean:.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")

    rows = []
    for (method, masks), runs in sorted(
        of_methods.items(), key=lambda item: item[0][1]
    ):
        honest, on_test = [], []
        for run in runs:
            reached = run["test_of_epochs"]
            known = validated.get(run["epochs"], {}).get(method, {})
            chosen_epoch = known.get(run["seed"], {}).get(
                "best_epoch", run["epochs"]
            )
            means = list(
                map(statistics.mean, zip(*reached.values(), strict=True))
            )
            best = max(range(len(means)), key=means.__getitem__)
            honest.append({t: v[chosen_epoch - 1] for t, v in reached.items()})
            on_test.append({t: v[best] for t, v in reached.items()})
        rows.append(
            [
                method + (", authors' masks" if masks else ""),
                *(
                    cell([one[task] for one in found])
                    if task in found[0]
                    else ""
                    for found in (honest, on_test)
                    for task in report.TASKS
                ),
                len(runs),
                PAPER.get(method, ""),
            ]
        )
    header = ["100 epochs, 60,000 digits", "left, %", "right, %"]
    header += [
        "left, best on test",
        "right, best on test",
        "seeds",
        "the paper",
    ]
    return markdown(header, rows)


def few_labels(folder=RESULTS):
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
            for row in load(folder / "few_labels.json")["results"]
        ],
    )


def text():
    """As examples/text.py prints it."""
    return text_report.table(lines(RESULTS / "text.jsonl"))


def weibo():
    return text_report.table(lines(RESULTS / "text_weibo.jsonl"))


def compare_digits(folder=RESULTS):
    """As `python -m examples.compare_digits` prints it."""
    return str(Comparison.read(folder / "compare_digits.jsonl"))


def diagnosis_findings(folder=RESULTS):
    found = load(folder / "diagnosis.json")["findings"]
    return markdown(
        ["problem", "all found", "something wrong"],
        [
            [name, f"{of['right']:.0%}", f"{of['wrong']:.0%}"]
            for name, of in found.items()
        ],
    )


def diagnosis_intervals(folder=RESULTS):
    return markdown(
        [
            "numbers in a gradient",
            "signal in a batch",
            "true cosine",
            "these intervals",
            "bootstrap",
        ],
        [
            [
                row["size"],
                row["signal"],
                row["cosine"],
                f"{row['ours']:.1%}",
                f"{row['bootstrap']:.1%}",
            ]
            for row in load(folder / "diagnosis.json")["intervals"]
        ],
    )


def agreement(folder=RESULTS):
    def share(found):
        low, high = found["low"], found["high"]
        return f"{found['harmful']:.0%} ({low:.0%} to {high:.0%})"

    return markdown(
        [
            "",
            "after epoch",
            "the model is",
            "steps that harm a task: foreseen",
            "seen",
            "tasks harmed in a step: foreseen",
            "seen",
        ],
        [
            [
                name,
                at["epoch"],
                at["how"],
                *(share(at[key]) for key in ("foreseen", "seen")),
                *(
                    f"{at[key]['conflicts']:.2f}"
                    for key in ("foreseen", "seen")
                ),
            ]
            for name, moments in load(folder / "agreement.json")[
                "problems"
            ].items()
            for at in moments
        ],
    )


def diagnosis_memory(folder=RESULTS):
    found = load(folder / "diagnosis.json")["memory"]
    return markdown(
        ["tasks", "parameters", "numbers in a sketch", "GiB before", "at most"],
        [
            [
                found["tasks"],
                f"{found['parameters']:,}",
                f"{found['sketch_size']:,}",
                found["GiB before"],
                found["GiB peak"],
            ]
        ],
    )


def monitor(folder=RESULTS):
    found = load(folder / "diagnosis.json")["monitor"]
    low, high = found["low"], found["high"]
    return markdown(
        ["processor time with the monitor / without", "95 % interval"],
        [[f"{found['ratio']:.3f}", f"{low:.3f} to {high:.3f}"]],
    )


def study(folder=RESULTS):
    """The methods by their mean rank, and what it tells."""
    folder = folder / "study"
    table = markdown(*study_report.ranked(folder))
    return f"{table}\n\n{study_report.verdict(folder)}"


def study_changes(folder=RESULTS):
    return markdown(*study_report.by_problem(folder / "study"))


def study_effort(folder=RESULTS):
    return markdown(*study_report.effort(folder / "study"))


def study_diagnosis(folder=RESULTS):
    return markdown(*study_report.judged(folder / "study"))


def study_scales(folder=RESULTS):
    return markdown(*scales.table(folder / "study"))


TABLES = {
    "agreement": agreement,
    "demo": demo,
    "scaling": scaling,
    "accuracy": accuracy,
    "all_digits": all_digits,
    "few_labels": few_labels,
    "step_cost": step_cost,
    "first_steps": first_steps,
    "look_cost": look_cost,
    "tower_cost": tower_cost,
    "solver": solver,
    "weightings": weightings,
    "fronts": fronts,
    "conflict": conflict,
    "cost": cost,
    "many_tasks": many_tasks,
    "columns": columns,
    "toxcast": toxcast,
    "tox21": tox21,
    "text": text,
    "weibo": weibo,
    "compare_digits": compare_digits,
    "diagnosis_findings": diagnosis_findings,
    "diagnosis_intervals": diagnosis_intervals,
    "diagnosis_memory": diagnosis_memory,
    "monitor": monitor,
    "study": study,
    "study_changes": study_changes,
    "study_effort": study_effort,
    "study_diagnosis": study_diagnosis,
    "study_scales": study_scales,
}


def filled(text):
    """The same with the tables as the results have them now."""
    return BLOCK.sub(
        lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text
    )


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
