"""How often each way to choose task weights leaves a task worse off, and costs.

Two overlapping digits, as 2 tasks (which digit is on the left, on the right) or
as 20 (is it a k?), for three networks. Every method trains on the same batches.
A step is in conflict if its direction has a negative inner product with the
true gradient of some task (cosine below -1e-4, as `verify=True` finds it). Then
the same training again, without looking, is timed: the methods side by side,
step by step, medians of the ratios to the plain mean.

Resumable: a line of results/conflict.jsonl for each network, number of tasks,
and seed. Draws docs/figures/conflict.png; tables.py makes the tables.

    python benchmarks/conflict.py [--data digits] [--seeds 3] [--steps 150]
"""

import argparse
import json
import pathlib
import platform
import statistics
import sys
import time

import keras
import numpy as np
import results
from keras import layers
from matplotlib.figure import Figure

import keras_mgda

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import two_digits  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "conflict.jsonl"
FIGURE = ROOT / "docs" / "figures" / "conflict.png"
TIMED = 30  # steps, after as many to warm up


def lenet(x, dropout=0.0):
    x = layers.Conv2D(10, 5)(x)
    x = layers.ReLU()(layers.MaxPooling2D()(x))
    x = layers.Conv2D(20, 5)(x)
    x = layers.Dropout(dropout)(x) if dropout else x
    x = layers.ReLU()(layers.MaxPooling2D()(x))
    return layers.Dense(50, activation="relu")(layers.Flatten()(x))


def resnet(x):
    """Seven convolutions, each with batch normalization."""

    def convolution(x, filters, strides=1, size=3):
        x = layers.Conv2D(
            filters, size, strides, padding="same", use_bias=False
        )(x)
        return layers.BatchNormalization()(x)

    x = layers.ReLU()(convolution(x, 8, 2))
    for filters in (16, 32):
        y = layers.ReLU()(convolution(x, filters, 2))
        y = convolution(y, filters)
        x = layers.ReLU()(y + convolution(x, filters, 2, 1))
    return layers.GlobalAveragePooling2D()(x)


NETWORKS = {
    "LeNet": lenet,
    "LeNet, dropout": lambda x: lenet(x, dropout=0.25),
    "ResNet": resnet,
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
    models = {
        method: build(network, num_tasks, method, seed, verify=False)
        for method in METHODS
    }
    looking = build(network, num_tasks, "MGDA-UB", seed, verify=True)
    models["MGDA-UB, verify=True"] = looking
    seconds = {method: [] for method in models}
    for batch in batches(*data["train"], batch_size, 2 * TIMED, seed):
        for method, model in models.items():
            start = time.perf_counter()
            model.train_on_batch(*batch)
            seconds[method].append(time.perf_counter() - start)
    return {
        method: statistics.median(
            own / plain
            for own, plain in zip(
                seconds[method][TIMED:],
                seconds["plain mean"][TIMED:],
                strict=True,
            )
        )
        for method in models
    }


def run(args):
    splits = two_digits.load(args.data, args.data_dir)
    known = results.lines(RESULTS.name)
    done = {(r["network"], r["num_tasks"], r["seed"]) for r in known}
    for seed in range(args.seeds):
        for network, num_tasks in CASES:
            if (network, num_tasks, seed) in done:
                continue
            data = {
                split: (x, labels_of(y, num_tasks))
                for split, (x, y) in splits.items()
            }
            keras.backend.clear_session()
            result = {
                "network": network,
                "num_tasks": num_tasks,
                "seed": seed,
                "data": args.data,
                "machine": f"{platform.machine()}, CPU",
                "methods": {
                    method: train(
                        network, num_tasks, method, seed, args.steps, data,
                        args.batch_size,
                    )
                    for method in METHODS
                },
                "step_ratio": step_ratios(
                    network, num_tasks, seed, data, args.batch_size
                ),
            }  # fmt: skip
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")


def draw(by_case):
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
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", choices=["mnist", "digits"], default="mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=256)
    run(parser.parse_args(argv))
    draw(results.conflict_rows())


if __name__ == "__main__":
    main()
