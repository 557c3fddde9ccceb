"""Table 3 of the paper: what each method reaches on overlapping digits.

The network, the data and the training are those of examples/multi_mnist.py.
First every method tries every learning rate, with one seed and `search_epochs`;
the best mean accuracy on the validation split decides. Then all seeds are
trained for `epochs`, and the epoch chosen alike. The accuracies on the test
split are written beside, and choose nothing.

Each run is a line of results/accuracy.jsonl once it is finished, and is not
repeated: start the script again to go on. A run with another number of epochs
is another run, and goes to another table. Also draws docs/figures/accuracy.png.

    python benchmarks/accuracy.py [--data-dir DIR] [--epochs 100] [--seeds 3]
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

import keras
import results
import tables
import tensorflow as tf
from matplotlib import colormaps
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.jsonl"
FIGURE = ROOT / "docs" / "figures" / "accuracy.png"
sys.path.append(str(ROOT / "examples"))

import multi_mnist  # noqa: E402
import two_digits  # noqa: E402
from multi_mnist import TASKS, Method  # noqa: E402


def fixed(left):
    """The losses times `left` and `2 - left`, to sum to 2 as `uniform` does."""
    task_weights = {"left": left, "right": round(2 - left, 3)}
    return Method(TASKS, {"weighting": task_weights})


def on_parameters(weighting):
    """As published: with the task gradients of the shared parameters."""
    return Method(TASKS, {"weighting": weighting, "gradients": "parameters"})


METHODS = multi_mnist.METHODS | {
    "fixed, 0.2 : 1.8": fixed(0.2),
    "fixed, 0.6 : 1.4": fixed(0.6),
    "fixed, 1.4 : 0.6": fixed(1.4),
    "fixed, 1.8 : 0.2": fixed(1.8),
    "uncertainty": Method(TASKS, {"weighting": "uncertainty"}),
    "GradNorm": Method(TASKS, {"weighting": "gradnorm"}),
    "UPGrad": on_parameters("upgrad"),
    "CAGrad": on_parameters("cagrad"),
    "Nash-MTL": on_parameters("nash_mtl"),
}
LEARNING_RATES = (0.05, 0.1, 0.2)
SHOWN = [name for name in METHODS if not name.startswith(("fixed", "single"))]
COLORS = dict(zip(SHOWN, colormaps["Dark2"].colors, strict=True))


def identity(run):
    """What a run is, apart from what it found."""
    return tuple(
        run[key]
        for key in ("method", "learning_rate", "seed", "epochs", "images")
    )


def finished():
    return {identity(run): run for run in results.lines(RESULTS.name)}


def run(name, learning_rate, seed, epochs, data, search=False):
    """The line of this run: read, or trained and written."""
    asked = {
        "method": name,
        "learning_rate": learning_rate,
        "seed": seed,
        "epochs": epochs,
        "images": len(data["train"][0]),
    }
    if known := finished().get(identity(asked)):
        return known
    print(f"{name}, {epochs} epochs:", flush=True)
    start = time.perf_counter()
    settings = multi_mnist.SETTINGS["mnist"]._replace(epochs=epochs)
    trained = multi_mnist.train(
        METHODS[name], data, settings, learning_rate, seed
    )
    found = asked | {
        "search": search,
        "best_epoch": trained.epoch,
        "validation": multi_mnist.accuracies(trained.model, data["validation"]),
        "test": multi_mnist.accuracies(trained.model, data["test"]),
        "seconds": round(time.perf_counter() - start, 1),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(found) + "\n")
    keras.backend.clear_session()
    return found


def draw():
    """For each number of epochs the plane of the two tasks."""
    numbers = results.accuracy_epochs()
    figure = Figure(figsize=(6.5 * len(numbers), 5.5), layout="constrained")
    all_axes = figure.subplots(1, len(numbers), squeeze=False)[0]
    for axes, epochs in zip(all_axes, numbers, strict=True):
        draw_plane(axes, epochs)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def draw_plane(axes, epochs):
    """Small dots are seeds, large ones their means."""
    runs = results.accuracy_runs(epochs)
    rows = results.accuracy_rows(epochs)
    means = {
        name: [row[task][0] for task in TASKS]
        for name, row in rows.items()
        if set(row) >= set(TASKS)
    }
    fixed = [n for n in means if n == "uniform" or n.startswith("fixed")]
    line = sorted(means[name] for name in fixed)
    axes.plot(*zip(*line, strict=True), color="0.7", zorder=0)
    for name, mean in means.items():
        seeds = [[run["test"][t] for t in TASKS] for run in runs[name].values()]
        color = COLORS.get(name, "0.5")
        axes.scatter(*zip(*seeds, strict=True), s=10, color=color, alpha=0.5)
        marker = "s" if name in fixed else "o"
        axes.scatter(*mean, s=60, color=color, marker=marker, label=name)
    for task, along, limits in (
        ("left", axes.axvline, axes.set_xlim),
        ("right", axes.axhline, axes.set_ylim),
    ):
        single, _ = rows[f"single task, {task}"][task]
        along(single, color="0.6", linestyle="--", zorder=0)
        limits(single - 4, single + 1)  # the ends of the line are far off
    axes.set_title(f"{epochs} epochs. Dashed: single tasks")
    axes.set_xlabel("left digit, test accuracy in %")
    axes.set_ylabel("right digit, test accuracy in %")
    axes.legend(frameon=False, fontsize="small", loc="lower left")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", help="of TensorFlow Datasets")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument(
        "--search-epochs", type=int, help="of the search; default: as many"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--images", type=int, help="of each split, at most")
    args = parser.parse_args(argv)
    data = {
        split: (x[: args.images], {t: y[t][: args.images] for t in y})
        for split, (x, y) in two_digits.load("mnist", args.data_dir).items()
    }
    methods = args.methods or list(METHODS)
    search_epochs = args.search_epochs or args.epochs

    def reached(name, rate):
        found = run(name, rate, 0, search_epochs, data, search=True)
        return statistics.mean(found["validation"].values())

    chosen = {
        name: max(LEARNING_RATES, key=functools.partial(reached, name))
        for name in methods
    }
    # Seed by seed, so that what is there when time is up can be compared.
    for seed in range(args.seeds):
        for name in methods:
            run(name, chosen[name], seed, args.epochs, data)
    print(tables.accuracy())
    draw()


if __name__ == "__main__":
    main()
