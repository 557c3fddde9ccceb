"""How often each way to choose task weights leaves a task worse off, and costs.

Two overlapping digits, as 2 tasks (which digit is on the left, on the right) or
as 20 (is it a k?), for three networks. Every method trains on the same batches.
A step is in conflict if its direction has a negative inner product with the
true gradient of some task (cosine below -1e-4, as `verify=True` finds it). Then
the same training again, without looking, is timed: the methods side by side,
step by step, medians of the ratios to the plain mean.

Resumable: a line of results/conflict.jsonl for each network, number of tasks,
and seed. Draws docs/figures/conflict.png; tables.py makes the tables.

    python -m benchmarks.conflict [--data digits] [--seeds 3] [--steps 150]
"""

import functools

import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure

import keras_mgda
from benchmarks import harness, tables
from examples import networks, two_digits

TIMED = 30  # steps, after as many to warm up


NETWORKS = {
    "LeNet": networks.lenet,
    "LeNet, dropout": functools.partial(
        networks.lenet, dropout=0.25, kind=layers.Dropout
    ),
    "ResNet": networks.resnet8,
}
CASES = [("LeNet", 20), ("LeNet", 2), ("LeNet, dropout", 20), ("ResNet", 20)]


class Offset(layers.Layer):
    """Adds a vector, whose task gradients are those at `Z` summed over `b`."""

    def build(self, shape):
        self.offset = self.add_weight(shape=shape[1:], initializer="zeros")

    def call(self, z):
        return z + self.offset


METHODS = {
    "plain mean": {"weighting": "mean"},
    "MGDA-UB": {"gradients": "representation"},
    "MGDA-UB, batch summed": {"gradients": ["offset"]},
    "last layer": {"gradients": "last layer"},
    "last two layers": {"gradients": "last"},
    "verified": {"gradients": "verified"},
    "exact MGDA": {"gradients": "parameters"},
}


def build(network, num_tasks, method, seed, verify):
    keras.utils.set_random_seed(seed)
    x = keras.Input((28, 28, 1))
    z = NETWORKS[network](x)
    last = next(
        layer.name
        for layer in reversed(keras.Model(x, z).layers)
        if layer.trainable_variables
    )
    options = dict(METHODS[method])
    if options.get("gradients") == ["offset"]:
        z = Offset(name="offset")(z)
    elif options.get("gradients") == "last layer":
        options["gradients"] = [last]
    elif options.get("weighting") == "mean":
        options["weighting"] = [1 / num_tasks] * num_tasks
    z = keras_mgda.SharedRepresentation()(z)
    if num_tasks == 2:
        units, name = 10, "sparse_categorical_crossentropy"
        tasks = ["left", "right"]
    else:
        units, name = 1, "binary_crossentropy"
        tasks = [f"{side}{k}" for side in ("left", "right") for k in range(10)]
    activation = "softmax" if num_tasks == 2 else "sigmoid"
    model = keras_mgda.MGDAModel(
        x, {t: layers.Dense(units, activation)(z) for t in tasks}
    )
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        dict.fromkeys(tasks, name),
        metrics=dict.fromkeys(tasks, "accuracy"),
        verify=verify,
        **options,
    )
    return model


def labels_of(y, num_tasks):
    if num_tasks == 2:
        return y
    return {
        f"{side}{k}": (y[side] == k).astype("float32")[:, None]
        for side in ("left", "right")
        for k in range(10)
    }


def batches(x, y, batch_size, steps, seed):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = rng.choice(len(x), batch_size, replace=False)
        yield x[chosen], {task: of_task[chosen] for task, of_task in y.items()}


def train(network, num_tasks, method, seed, steps, data, batch_size):
    """Trains, and looks at every direction."""
    model = build(network, num_tasks, method, seed, verify=True)
    log = []
    for batch in batches(*data["train"], batch_size, steps, seed):
        log.append(model.train_on_batch(*batch, return_dict=True))
    test = model.evaluate(
        *data["test"], batch_size=1000, verbose=0, return_dict=True
    )
    accuracies = [v for name, v in test.items() if name.endswith("accuracy")]
    return {
        "loss": [float(logs["loss"]) for logs in log],
        "before": [float(logs["conflicts"]) for logs in log],
        "corrections": [float(logs["corrections"]) for logs in log],
        "min_cosine": [float(logs["min_cosine"]) for logs in log],
        "test_loss": float(test["loss"]),
        "test_accuracy": float(np.mean(accuracies)),
    }


def step_ratios(network, num_tasks, seed, data, batch_size):
    """Medians of the ratios to the plain mean's step time."""
    made = {
        method: build(network, num_tasks, method, seed, verify=False)
        for method in METHODS
    }
    looking = build(network, num_tasks, "MGDA-UB", seed, verify=True)
    made["MGDA-UB, verify=True"] = looking
    ready = list(batches(*data["train"], batch_size, 2 * TIMED, seed))

    def step(model, iterator):
        model.train_on_batch(*next(iterator))

    calls = {
        method: functools.partial(step, model, iter(ready))
        for method, model in made.items()
    }
    times = harness.interleaved(calls, TIMED, warm_up=TIMED)
    return harness.ratios(times, "plain mean")


def measure(network, num_tasks, seed, source, data_dir, steps, batch_size):
    data = {
        split: (x, labels_of(y, num_tasks))
        for split, (x, y) in two_digits.load(source, data_dir).items()
    }
    case = network, num_tasks
    return {
        "data": source,
        "methods": {
            method: train(*case, method, seed, steps, data, batch_size)
            for method in METHODS
        },
        "step_ratio": step_ratios(*case, seed, data, batch_size),
    }


def draw(by_case, path):
    figure = Figure(figsize=(3.6 * len(by_case), 3.6), layout="constrained")
    (all_axes,) = figure.subplots(
        1, len(by_case), sharex=True, sharey=True, squeeze=False
    )
    for axes, (case, of_methods) in zip(all_axes, by_case.items(), strict=True):
        for method, row in of_methods.items():
            if method in METHODS:
                share = 100 * row["conflicts"]
                axes.plot(row["cost"], share, "o", label=method)
        axes.set(title=case, xscale="log", xlabel="time of a step / plain mean")
        axes.set_xticks((1, 2, 4, 8), labels=("1", "2", "4", "8"))
        axes.set_xticks((), minor=True)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("steps in conflict, %")
    all_axes[0].legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv=None):
    parser = harness.parser(__doc__, seeds=3, steps=150, batch_size=256)
    parser.add_argument("--data", choices=["mnist", "digits"], default="mnist")
    parser.add_argument("--data-dir", help="of TensorFlow Datasets")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS)
    args = parser.parse_args(argv)
    settings = args.data, args.data_dir, args.steps, args.batch_size
    cases = [
        (network, num_tasks, seed)
        for seed in range(args.seeds)
        for network, num_tasks in CASES
        if network in (args.networks or NETWORKS)
    ]
    for case in cases:
        harness.once(
            args.results / "conflict.jsonl",
            dict(zip(("network", "num_tasks", "seed"), case, strict=True)),
            functools.partial(
                harness.in_fresh_process, measure, *case, *settings
            ),
        )
    print(tables.conflict(args.results))
    draw(tables.conflict_rows(args.results), args.figures / "conflict.png")


if __name__ == "__main__":
    main()
