"""Table 3 of the paper: what each method reaches on overlapping digits.

The network, the data and the training are those of `examples.multi_mnist`.
First every method tries every learning rate, with one seed and `search_epochs`;
the best mean accuracy on the validation split decides. Then all seeds are
trained for `epochs`, and the epoch chosen alike. The accuracies on the test
split are written beside, and choose nothing.

Each run is a line of results/accuracy.jsonl once it is finished, and is not
repeated: start the script again to go on. A run with another number of epochs
is another run, and goes to another table. Also draws docs/figures/accuracy.png.

    python -m benchmarks.accuracy [--data-dir DIR] [--epochs 100] [--seeds 3]
"""

import functools
import statistics
import time

from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks import harness, tables
from examples import multi_mnist, report, two_digits
from examples.multi_mnist import TASKS, Method


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


def train(name, learning_rate, seed, epochs, images, data_dir):
    """The best epoch of a run, and its accuracies."""
    start = time.perf_counter()
    data = two_digits.load("mnist", data_dir, images=images)
    settings = multi_mnist.SETTINGS["mnist"]._replace(epochs=epochs)
    trained = multi_mnist.train(
        METHODS[name], data, settings, learning_rate, seed
    )
    return {
        "best_epoch": trained.epoch,
        "validation": multi_mnist.accuracies(trained.model, data["validation"]),
        "test": multi_mnist.accuracies(trained.model, data["test"]),
        "seconds": round(time.perf_counter() - start, 1),
    }


def draw(args):
    """For each number of epochs the plane of the two tasks."""
    tables_of = tables.accuracy_runs(args.results)
    figure = Figure(figsize=(6.5 * len(tables_of), 5.5), layout="constrained")
    all_axes = figure.subplots(1, len(tables_of), squeeze=False)[0]
    for axes, (epochs, runs) in zip(all_axes, tables_of.items(), strict=True):
        both = {
            name: [run["test"] for run in of_seeds.values()]
            for name, of_seeds in runs.items()
            if not name.startswith("single")
        }
        single = list(tables.single_tasks(runs).values())
        line = [n for n in both if n == "uniform" or n.startswith("fixed")]
        report.plane(axes, both, single, COLORS, line)
        left, right = report.means(single)  # the ends of the line are far off
        axes.set(xlim=(left - 4, left + 1), ylim=(right - 4, right + 1))
        axes.set_title(f"{epochs} epochs")
    args.figures.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.figures / "accuracy.png", dpi=110)


def main(argv=None):
    parser = harness.parser(__doc__, epochs=100, seeds=3)
    add = parser.add_argument
    add("--search-epochs", type=int, help="of the search; default: as many")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--data-dir", help="of TensorFlow Datasets")
    add("--images", type=int, help="of each split, at most")
    args = parser.parse_args(argv)
    data = two_digits.load("mnist", args.data_dir, images=args.images)
    images = len(data["train"][0])

    def run(name, rate, seed, epochs, search=False):
        """The line of this run: read, or trained and written."""
        asked = {
            "method": name,
            "learning_rate": rate,
            "seed": seed,
            "epochs": epochs,
            "images": images,
        }

        def measure():
            print(f"{name}, {epochs} epochs:", flush=True)
            return {"search": search} | harness.in_fresh_process(
                train, name, rate, seed, epochs, args.images, args.data_dir
            )

        return harness.once(args.results / "accuracy.jsonl", asked, measure)

    def reached(name, rate):
        epochs = args.search_epochs or args.epochs
        found = run(name, rate, 0, epochs, search=True)
        return statistics.mean(found["validation"].values())

    chosen = {
        name: max(LEARNING_RATES, key=functools.partial(reached, name))
        for name in args.methods
    }
    # Seed by seed, so that what is there when time is up can be compared.
    for seed in range(args.seeds):
        for name in args.methods:
            run(name, chosen[name], seed, args.epochs)
    print(tables.accuracy(args.results))
    draw(args)


if __name__ == "__main__":
    main()
