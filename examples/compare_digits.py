"""Which method should I take? Asked of two overlapping digits, offline.

`python -m examples.compare_digits`: eight methods with the same search, three
seeds and two learning rates, two trainings at a time. Stopped, it goes on where
it was. The network is small, and the 1797 digits come with scikit-learn.
"""

import argparse
import functools
from pathlib import Path

import keras

from examples import two_digits
from keras_mgda.comparison import InProcess, compare

ROOT = Path(__file__).parents[1]
TASKS = ("left", "right")


def build():
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.AveragePooling2D(2)(inputs)
    x = keras.layers.Flatten()(x)
    for _ in range(2):
        x = keras.layers.Dense(128, activation="relu")(x)
    return keras.Model(
        inputs, {task: keras.layers.Dense(10)(x) for task in TASKS}
    )


def split(name):
    """For a process of its own, which loads the data by itself."""
    return splits()[name]


@functools.cache
def splits():
    return two_digits.load("digits", copies=3)


def main(results, seeds, epochs, processes):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    comparison = compare(
        build,
        functools.partial(split, "train"),
        functools.partial(split, "validation"),
        functools.partial(split, "test"),
        losses=dict.fromkeys(TASKS, loss),
        metrics=dict.fromkeys(TASKS, "accuracy"),
        select=dict.fromkeys(TASKS, ("accuracy", "max")),
        results=results,
        learning_rates=(1e-3, 4e-3),
        seeds=range(seeds),
        epochs=epochs,
        patience=5,
        batch_size=64,
        name="overlapping digits",
        executor=processes or InProcess(),
        verbose=1,
    )
    print(comparison)
    figure = ROOT / "saved_models" / "compare_digits.png"
    figure.parent.mkdir(exist_ok=True)
    comparison.plot().savefig(figure, dpi=120)
    print(f"Figure: {figure}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    default = ROOT / "benchmarks" / "results" / "compare_digits.jsonl"
    add("--results", type=Path, default=default, help="goes on from there")
    add("--seeds", type=int, default=3)
    add("--epochs", type=int, default=20)
    add("--processes", type=int, default=2, help="at a time; 0: none")
    main(**vars(parser.parse_args()))
