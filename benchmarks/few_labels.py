"""A task that few examples are labelled for, beside tasks that all are.

It has labels in 1 % of the training images. Its test accuracy if it is trained
alone, on these, is compared with that of all tasks trained together. The cases
(images of `examples/two_digits.py`):

related    one digit in an image. Rare: which one it is. The others: whether it
           is odd, at least 5, and has a closed loop.
unrelated  two digits that overlap. Rare: the left one. The other: the right.

Batches are filled in two ways:

as it comes  from all training images, with `compile(unlabelled=-1)`;
joined       by `datasets.join_tasks(..., sampling="uniform")`, an equal share
             of every batch for each task.

All have the same network, optimizer and number of steps. Of each run the step
counts that was best on the validation split. Prints a table and writes
results/few_labels.json.

    python benchmarks/few_labels.py [--rounds 6] [--seeds 3] [--share 0.01]
"""

import argparse
import json
import pathlib
import platform
import statistics
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_mgda

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "few_labels.json"
sys.path.append(str(ROOT / "examples"))

import two_digits  # noqa: E402

BATCH_SIZE, STEPS = 64, 100  # between two looks at the validation split
METHODS = {
    "alone": None,
    "mgda, as it comes": ("mgda", False),
    "mgda, joined": ("mgda", True),
    "upgrad, joined": ("upgrad", True),
    "uniform, joined": ("uniform", True),
}


def related():
    """Splits `(x, {task: y})`, and the rare task."""

    def with_attributes(x, y):
        attributes = {
            "odd": y % 2,
            "large": y // 5,
            "loop": np.isin(y, [0, 6, 8, 9]).astype(y.dtype),
        }
        return x.astype("float32") / 255, {"digit": y} | attributes

    singles = two_digits.bundled_digits()
    return {s: with_attributes(*xy) for s, xy in singles.items()}, "digit"


def unrelated():
    return two_digits.load("digits", copies=4), "left"


CASES = {"related": related, "unrelated": unrelated}


def lenet(num_classes):
    """The paper's MultiMNIST network, at half of the resolution."""
    inputs = keras.Input((28, 28, 1))
    x = layers.AveragePooling2D(2)(inputs)
    x = layers.Conv2D(10, 3, activation="relu")(x)
    x = layers.Conv2D(20, 3, activation="relu")(layers.MaxPooling2D(2)(x))
    x = layers.Dense(50, activation="relu")(layers.Flatten()(x))
    z = keras_mgda.SharedRepresentation()(layers.Dropout(0.3)(x))
    outputs = {
        task: layers.Dense(number)(layers.Dense(50, activation="relu")(z))
        for task, number in num_classes.items()
    }
    return keras_mgda.MGDAModel(inputs, outputs)


def labelled(y, share, rng):
    """As many of each class as the share leaves, and one at least."""
    chosen = np.zeros(len(y), bool)
    for digit in np.unique(y):
        (of_digit,) = np.nonzero(y == digit)
        number = max(1, round(share * len(of_digit)))
        chosen[rng.choice(of_digit, number, replace=False)] = True
    return chosen


def data(splits, rare, chosen, joined, tasks, seed):
    """Batches without an end."""
    x, y = splits["train"]
    if len(tasks) > 1 and not joined:
        y = {**y, rare: np.where(chosen, y[rare], -1)}
        batches = tf.data.Dataset.from_tensor_slices((x, y))
        return batches.shuffle(len(x), seed).repeat().batch(BATCH_SIZE)
    of_task = {task: (x, y[task]) for task in tasks}
    of_task[rare] = (x[chosen], y[rare][chosen])
    slices = tf.data.Dataset.from_tensor_slices
    return keras_mgda.datasets.join_tasks(
        {task: slices(xy) for task, xy in of_task.items()},
        min(BATCH_SIZE, sum(len(x) for x, _ in of_task.values())),
        sampling="uniform",
        seed=seed,
    ).repeat()


def run(method, splits, rare, rounds, seed, share):
    """Test accuracies `{task: share of images}`."""
    keras.utils.set_random_seed(seed)
    labels = splits["train"][1]
    chosen = labelled(labels[rare], share, np.random.default_rng(seed))
    tasks = [rare] if METHODS[method] is None else list(labels)
    weighting, joined = METHODS[method] or ("mgda", True)
    model = lenet({task: int(labels[task].max()) + 1 for task in tasks})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.Adam(1e-3),
        dict.fromkeys(tasks, loss),
        weighting=weighting,
        unlabelled=dict.fromkeys(tasks, None if joined else -1),
    )
    batches = data(splits, rare, chosen, joined, tasks, seed)
    found = []
    for _ in range(rounds):
        model.fit(batches, steps_per_epoch=STEPS, verbose=0)
        validation, test = (
            accuracies(model, *splits[split])
            for split in ("validation", "test")
        )
        found.append((validation[rare], test))
    return max(found, key=lambda pair: pair[0])[1]


def accuracies(model, x, y):
    return {
        task: float((np.argmax(logits, -1) == y[task]).mean())
        for task, logits in model.predict(x, batch_size=512, verbose=0).items()
    }


def main(rounds, seeds, share):
    results = []
    for case, load in CASES.items():
        splits, rare = load()
        print(f"{case}: labels of '{rare}' in {share:.0%} of the images")
        for method in METHODS:
            found = [
                run(method, splits, rare, rounds, seed, share)
                for seed in range(seeds)
            ]
            accuracy = [of_seed[rare] for of_seed in found]
            mean = statistics.mean(accuracy)
            results.append(
                {
                    "case": case,
                    "rare_task": rare,
                    "training_images": len(splits["train"][0]),
                    "method": method,
                    "mean_test_accuracy_of_rare_task": mean,
                    "test_accuracy": found,
                }
            )
            listed = "  ".join(f"{a:.3f}" for a in accuracy)
            print(f"  {method:24}{mean:.3f}   ({listed})", flush=True)
            write(results, rounds, share)


def write(results, rounds, share):
    RESULTS.write_text(
        json.dumps(
            {
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "machine": f"{platform.machine()}, CPU",
                "steps": rounds * STEPS,
                "batch_size": BATCH_SIZE,
                "share": share,
                "results": results,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.01)
    main(**vars(parser.parse_args()))
