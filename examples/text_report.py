"""The table and the picture of text.py, from the lines of its results."""

import statistics

import numpy as np

from keras_mgda.pareto import delta_m

TITLES = {
    "cws": "segmentation, F1",
    "pos": "tagging, accuracy",
    "sentiment": "sentiment, accuracy",
    "ner": "entities, F1",
}


def grouped(lines):
    """`{method: {seed: line}}`; a later line replaces an earlier one."""
    found = {}
    for line in lines:
        found.setdefault(line["method"], {})[line["seed"]] = line
    return found


def rows(lines):
    """`{method: {seed: {problem: score, "delta-m": ..., "seconds": ...}}}`.

    The models of one problem each are one row, "alone".
    """
    methods = grouped(lines)
    alone = {}
    for method in [m for m in methods if m.endswith(" alone")]:
        for seed, line in methods.pop(method).items():
            row = alone.setdefault(seed, {"seconds": 0.0})
            row["seconds"] += line["seconds"]
            row |= line["scores"]
    found = {"alone": alone} if alone else {}
    for method, of_seeds in methods.items():
        for seed, line in of_seeds.items():
            row = dict(line["scores"])
            single = {p: alone.get(seed, {}).get(p) for p in row}
            if all(single.values()):
                row["delta-m"] = delta_m(row, single)
            row["seconds"] = line["seconds"]
            found.setdefault(method, {})[seed] = row
    return found


def table(lines):
    """In Markdown: mean and standard deviation over the seeds."""

    def spread(values):
        values = [value for value in values if value is not None]
        if not values:
            return ""
        mean = f"{statistics.mean(values):.2f}"
        return mean + (
            f" ± {statistics.stdev(values):.2f}" if values[1:] else ""
        )

    found = rows(lines)
    tasks = list(dict.fromkeys(t for line in lines for t in line["scores"]))
    header = ["method", *(TITLES[t] for t in tasks), "delta-m, %", "seconds"]
    body = [header, ["---"] * len(header)]
    for method, of_seeds in found.items():
        columns = [
            spread([row.get(c) for row in of_seeds.values()])
            for c in (*tasks, "delta-m")
        ]
        seconds = statistics.mean(r["seconds"] for r in of_seeds.values())
        body.append([method, *columns, f"{seconds:.0f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in body)


def plot(lines, path):
    """A panel for each problem: each seed a dot, the mean a line."""
    from matplotlib.figure import Figure

    found = rows(lines)
    tasks = list(dict.fromkeys(t for line in lines for t in line["scores"]))
    figure = Figure(figsize=(3.2 * len(tasks), 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(tasks)))
    for axes, task in zip(panels, tasks, strict=True):
        for k, of_seeds in enumerate(found.values()):
            values = [row[task] for row in of_seeds.values() if task in row]
            if not values:
                continue
            color = "0.4" if k == 0 else f"C{k - 1}"
            axes.plot([k] * len(values), values, "o", color=color, alpha=0.6)
            mean = statistics.mean(values)
            axes.hlines(mean, k - 0.3, k + 0.3, color=color)
            if k == 0:
                axes.axhline(mean, color="0.7", linestyle="--", zorder=0)
        axes.set_title(f"{TITLES[task]}, %", fontsize=10)
        axes.set_xticks(
            range(len(found)), found, rotation=30, ha="right", fontsize=9
        )
    figure.savefig(path, dpi=120)
