"""A task that few examples are labelled for, beside one that all are.

Two overlapping digits in an image (`examples/two_digits.py`). One of the two
has labels in 1 % of the training images. Its test accuracy if it is trained
alone, on these, is compared with that of both tasks trained together, by
several weightings and with two ways to fill batches:

as it comes  all training images, `compile(unlabelled=-1)`;
joined       `datasets.join_tasks(..., sampling="uniform")`: half of each batch
             has labels for the rare task.

All have the same network, optimizer and number of steps. Of each run the epoch
counts that was best on the validation split. Prints a table and writes
results/few_labels.json.

    python benchmarks/few_labels.py [--epochs 20] [--seeds 3] [--share 0.01]
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

BATCH_SIZE, COPIES = 64, 2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
METHODS = {
    "alone": None,
    "mgda, as it comes": ("mgda", False),
    "mgda, joined": ("mgda", True),
    "upgrad, as it comes": ("upgrad", False),
    "upgrad, joined": ("upgrad", True),
    "uniform, as it comes": ("uniform", False),
    "uniform, joined": ("uniform", True),
}


def lenet(tasks):
    """The paper's MultiMNIST network, on the half of the resolution."""
    inputs = keras.Input((28, 28, 1))
    x = layers.AveragePooling2D(2)(inputs)
    x = layers.Conv2D(10, 3, activation="relu")(x)
    x = layers.Conv2D(20, 3, activation="relu")(layers.MaxPooling2D()(x))
    x = layers.Dense(50, activation="relu")(layers.Flatten()(x))
    z = keras_mgda.SharedRepresentation()(layers.Dropout(0.3)(x))
    return keras_mgda.MGDAModel(
        inputs,
        {
            task: layers.Dense(10)(layers.Dense(50, activation="relu")(z))
            for task in tasks
        },
    )


def labelled(y, share, rng):
    """As many of each class as the share leaves, and one at least."""
    chosen = np.zeros(len(y), bool)
    for digit in np.unique(y):
        (of_digit,) = np.nonzero(y == digit)
        number = max(1, round(share * len(of_digit)))
        chosen[rng.choice(of_digit, number, replace=False)] = True
    return chosen


def fit(model, data, steps, epochs, validation, rare):
    """The best epoch's variables of a task."""
    best = keras.callbacks.ModelCheckpoint(
        RESULTS.with_suffix(".weights.h5"),
        monitor="val_accuracy",
        mode="max",
        save_best_only=True,
        save_weights_only=True,
    )
    accuracy = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda _, logs: logs.update(
            val_accuracy=of_task(model, validation, rare)
        )
    )
    model.fit(
        data,
        steps_per_epoch=steps,
        epochs=epochs,
        verbose=0,
        callbacks=[accuracy, best],
    )
    model.load_weights(best.filepath)
    pathlib.Path(best.filepath).unlink()


def of_task(model, split, task):
    x, y = split
    logits = model.predict_on_batch(x)[task]
    return float((np.argmax(logits, -1) == y[task]).mean())


def run(method, splits, rare, other, epochs, seed, share):
    """Test accuracies `{task: share of digits}`."""
    keras.utils.set_random_seed(seed)
    x, y = splits["train"]
    chosen = labelled(y[rare], share, np.random.default_rng(seed))
    steps = len(x) // BATCH_SIZE
    tasks = [rare] if METHODS[method] is None else [rare, other]
    model = lenet(tasks)
    optimizer = keras.optimizers.Adam(1e-3)
    loss = dict.fromkeys(tasks, LOSS)
    few = tf.data.Dataset.from_tensor_slices((x[chosen], y[rare][chosen]))
    if METHODS[method] is None:
        model.compile(optimizer, loss)
        data = few.repeat().shuffle(len(x), seed).batch(BATCH_SIZE)
        data = data.map(lambda x, y: (x, {rare: y}))
    else:
        weighting, joined = METHODS[method]
        marker = None if joined else -1
        unlabelled = dict.fromkeys(tasks, marker)
        model.compile(
            optimizer, loss, weighting=weighting, unlabelled=unlabelled
        )
        if joined:
            many = tf.data.Dataset.from_tensor_slices((x, y[other]))
            data = keras_mgda.datasets.join_tasks(
                {rare: few, other: many},
                BATCH_SIZE,
                sampling="uniform",
                seed=seed,
            ).repeat()
        else:
            labels = {**y, rare: np.where(chosen, y[rare], -1)}
            data = tf.data.Dataset.from_tensor_slices((x, labels))
            data = data.shuffle(len(x), seed).repeat().batch(BATCH_SIZE)
    fit(model, data, steps, epochs, splits["validation"], rare)
    return {task: of_task(model, splits["test"], task) for task in tasks}


def main(epochs, seeds, share):
    splits = two_digits.load("digits", copies=COPIES)
    results = []
    for rare, other in (("left", "right"), ("right", "left")):
        print(f"labels of '{rare}' in {share:.0%} of the images")
        for method in METHODS:
            found = [
                run(method, splits, rare, other, epochs, seed, share)
                for seed in range(seeds)
            ]
            accuracy = [of_seed[rare] for of_seed in found]
            results.append(
                {
                    "rare_task": rare,
                    "method": method,
                    "test_accuracy": found,
                    "mean_of_rare_task": statistics.mean(accuracy),
                }
            )
            listed = "  ".join(f"{a:.3f}" for a in accuracy)
            print(f"  {method:24}{statistics.mean(accuracy):.3f}   ({listed})")
    RESULTS.write_text(
        json.dumps(
            {
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "machine": f"{platform.machine()}, CPU",
                "epochs": epochs,
                "training_images": len(splits["train"][0]),
                "share": share,
                "results": results,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.01)
    main(**vars(parser.parse_args()))
