"""How often `diagnose` is right, and what it and `TaskMonitor` cost.

Four parts, of which each is printed and kept in results/diagnosis.json:

- `findings`: gradients drawn so that the truth is known, 100 seeds each: how
  often all was found that had to be, and anything that was wrong.
- `intervals`: how often the 95 % interval of a cosine held the true one, and
  how often that of a bootstrap over the batches did, on the same draws.
- `memory`: peak memory and time for 40 tasks on a ResNet-18 of width 16.
- `monitor`: the processor's time for training with `TaskMonitor`, over that
  without: the median of the rounds, and its interval by their order.

`figures` draws docs/figures/diagnosis.png and watching.png from a real run, and
leaves its logs in build/watching for TensorBoard, whose page is
docs/figures/tensorboard.png:

    tensorboard --logdir build/watching --port 6006
    chromium --headless --window-size=1400,1000 --virtual-time-budget=15000 \
        --screenshot=docs/figures/tensorboard.png http://localhost:6006

    python -m benchmarks.diagnosis findings intervals memory monitor figures
"""

import argparse
import json
import pathlib
import resource
import shutil
import statistics
import tempfile
import time

import keras
import numpy as np
import scipy.stats
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

import keras_mgda
from benchmarks import drawn_gradients as drawn
from benchmarks.harness import FIGURES, RESULTS, ROOT, interleaved
from examples.networks import resnet18
from keras_mgda.callbacks import TaskMonitor
from keras_mgda.diagnosis import diagnose, diagnosis_of

FILE = RESULTS / "diagnosis.json"
LOGS = ROOT / "build" / "watching"

# Size of a gradient, signal in a batch, true cosine, noise in common.
CASES = [
    (10, 0.5, 0.3, 0.0),
    (10, 0.1, 0.3, 0.0),
    (300, 0.5, 0.3, 0.0),
    (300, 0.1, 0.0, 0.5),
    (300, 0.03, 0.9, 0.0),
    (300, 0.9, -0.9, 0.0),
]


def findings():
    found = {}
    for name in drawn.PROBLEMS:
        right, wrong = drawn.rates(name, range(100), diagnosis_of)
        found[name] = {"right": right, "wrong": wrong}
        print(f"{name}: right {right:.0%}, wrong {wrong:.0%}", flush=True)
    return found


def bootstrap(products, rng, draws=500):
    """Percentiles over batches drawn with replacement, without equal pairs."""
    B = products.shape[-1]
    counts = rng.multinomial(B, np.full(B, 1 / B), size=draws).astype(float)
    others = 1 - np.eye(B)

    def average(t, s):
        return ((counts @ (products[t, s] * others)) * counts).sum(1)

    lengths = np.maximum(average(0, 0), 1e-30) * np.maximum(
        average(1, 1), 1e-30
    )
    cosines = np.clip(average(0, 1) / np.sqrt(lengths), -1, 1)
    return np.quantile(cosines, [0.025, 0.975])


def intervals(seeds=1000):
    found = []
    for size, signal, cosine, common in CASES:
        held = {"ours": 0, "bootstrap": 0}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            means = drawn.of_cosine(rng, cosine, size)
            gradients = drawn.noisy(rng, means, 32, signal, common)
            products = drawn.products(gradients)
            ours = diagnosis_of(products, ["a", "b"]).intervals[:, 0, 1]
            for name, (low, high) in (
                ("ours", ours),
                ("bootstrap", bootstrap(products, rng)),
            ):
                held[name] += bool(low <= cosine <= high)
        found.append(
            {"size": size, "signal": signal, "cosine": cosine, "common": common}
            | {name: count / seeds for name, count in held.items()}
        )
        print(found[-1], flush=True)
    return found


def gibibytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(num_tasks=40, size=32, batch_size=32, steps=32):
    x = keras.Input((size, size, 3))
    z = keras_mgda.SharedRepresentation()(resnet18(x, 16))
    tasks = [f"task{t}" for t in range(num_tasks)]
    model = keras_mgda.MGDAModel(
        x, {t: layers.Dense(1, "sigmoid")(z) for t in tasks}
    )
    model.compile("adam", dict.fromkeys(tasks, "binary_crossentropy"))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(batch_size * steps, size, size, 3))
    labels = {
        t: rng.integers(0, 2, (batch_size * steps, 1)).astype("float32")
        for t in tasks
    }
    before, start = gibibytes(), time.perf_counter()
    found = diagnose(
        model, (inputs.astype("float32"), labels), steps, batch_size=batch_size
    )
    result = {
        "tasks": num_tasks,
        "parameters": model.count_params(),
        "sketch_size": found.sketch_size,
        "GiB before": round(before, 2),
        "GiB peak": round(gibibytes(), 2),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(result, flush=True)
    return result


def monitor(rounds=60, steps=400):
    """A small step, where a look costs most: two dense layers, ten tasks."""
    keras.utils.set_random_seed(0)
    x = keras.Input((32,))
    z = layers.Dense(64, "relu")(layers.Dense(64, "relu")(x))
    z = keras_mgda.SharedRepresentation()(z)
    tasks = [f"task{t}" for t in range(10)]
    model = keras_mgda.MGDAModel(x, {t: layers.Dense(1)(z) for t in tasks})
    model.compile("adam", dict.fromkeys(tasks, "mse"))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64 * steps, 32)).astype("float32")
    labels = {
        t: rng.normal(size=(64 * steps, 1)).astype("float32") for t in tasks
    }

    def train(*callbacks):
        model.fit(
            inputs, labels, batch_size=64, verbose=0, callbacks=list(callbacks)
        )

    with tempfile.TemporaryDirectory() as log_dir:
        times = interleaved(
            {"without": train, "with": lambda: train(TaskMonitor(log_dir))},
            rounds,
            warm_up=1,
            clock=time.process_time,
        )
    ratios = sorted(
        own / other
        for own, other in zip(times["with"], times["without"], strict=True)
    )
    # The median of all rounds lies between these two in 95 of 100 cases.
    below = int(scipy.stats.binom.ppf(0.025, rounds, 0.5))
    result = {
        "rounds": rounds,
        "ratio": round(statistics.median(ratios), 4),
        "low": round(ratios[below - 1], 4),
        "high": round(ratios[-below], 4),
    }
    print(result, flush=True)
    return result


def figures(num_images=4096):
    """Two overlapping digits of scikit-learn: which are they, and their sum."""
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    images, digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, len(images), (2, num_images))
    canvas = np.zeros([num_images, 12, 12, 1], "float32")
    canvas[:, :8, :8, 0] += images[left].reshape(-1, 8, 8) / 16
    canvas[:, 4:, 4:, 0] += images[right].reshape(-1, 8, 8) / 16
    labels = {
        "left": digits[left],
        "right": digits[right],
        "sum": (digits[left] + digits[right]).astype("float32")[:, None],
    }
    x = keras.Input((12, 12, 1))
    h = layers.Conv2D(16, 3, activation="relu")(x)
    h = layers.Conv2D(16, 3, 2, activation="relu")(h)
    h = layers.Dense(32, activation="relu")(layers.Flatten()(h))
    z = keras_mgda.SharedRepresentation()(h)
    model = keras_mgda.MGDAModel(
        x,
        {
            "left": layers.Dense(10, "softmax")(z),
            "right": layers.Dense(10, "softmax")(z),
            "sum": layers.Dense(1)(z),
        },
    )
    name = "sparse_categorical_crossentropy"
    model.compile(
        "adam",
        {"left": name, "right": name, "sum": "mse"},
        gradients="parameters",
    )
    model.fit(canvas, labels, batch_size=64, verbose=0)
    found = diagnose(model, (canvas, labels), batch_size=128)
    shutil.rmtree(LOGS, ignore_errors=True)
    model.fit(
        canvas,
        labels,
        batch_size=64,
        epochs=8,
        initial_epoch=1,
        verbose=0,
        callbacks=[TaskMonitor(LOGS, every=8)],
    )
    draw_events(LOGS)
    found.plot().savefig(FIGURES / "diagnosis.png", dpi=110)
    print(found)
    return json.loads(found.to_json())


def draw_events(log_dir):
    """What TensorBoard shows of a run, from the same file."""
    scalars, image = {}, None
    for path in pathlib.Path(log_dir).glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor)
                if value.tag == "tasks/cosines":
                    image = tf.io.decode_png(content[2]).numpy()
                else:
                    steps = scalars.setdefault(value.tag, [])
                    steps.append((event.step, float(content)))
    figure = Figure(figsize=(12, 3), layout="constrained")
    *curves, matrix = figure.subplots(1, 4)
    kinds = ("tasks/weight/", "tasks/gradient_norm/", "tasks/cosines/")
    for axes, kind in zip(curves, kinds, strict=True):
        for tag, points in scalars.items():
            if tag.startswith(kind) and not tag.endswith("smallest"):
                axes.plot(*zip(*points, strict=True), label=tag[len(kind) :])
        axes.set(title=kind.rstrip("/"), xlabel="step")
        axes.legend(fontsize="x-small")
    curves[1].set_yscale("log")
    matrix.imshow(image)
    matrix.set(title="tasks/cosines, last epoch", xticks=[], yticks=[])
    figure.savefig(FIGURES / "watching.png", dpi=110)


PARTS = {
    function.__name__: function
    for function in (findings, intervals, memory, monitor, figures)
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    for part in parser.parse_args(argv).parts:
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        known[part] = PARTS[part]()
        FILE.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
