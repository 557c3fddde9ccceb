"""The problems of the study: data, network, losses and what is selected by.

A multi-target regression is there twice, with one network: the losses are
squared errors in the units of the targets ("raw"), or of targets brought to
mean 0 and deviation 1 ("standardised"). A change of the metric, the root of the
mean squared error, is relative, and the same in both.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks.study import datasets

METHODS: dict[str, Any] = {
    "plain sum": None,
    "MGDA-UB": None,
    "exact MGDA": {"weighting": "mgda", "gradients": "parameters"},
    "UPGrad": None,
    "FAMO": None,
    "Nash-MTL": None,
    "IMTL-G": None,
    "DB-MTL": {"weighting": "db_mtl"},
    "fixed weights": None,
}
# They cost as much as `m` methods.
WITH_SINGLE_TASKS = {"enb", "scpf"}
# An epoch of a regression: so many times each of its few examples.
PASSES = {"enb": 4}
OTHER_PASSES = 2
LEARNING_RATES = {"enb": (5e-3, 2e-2)}
EPOCHS = {"enb": 12, "scpf": 12}
OTHER_EPOCHS = 8
BATCH_SIZES = {"atp1d": 32, "oes97": 32}  # of some 200 examples
OTHER_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Problem:
    """What `compare` is given.

    Attributes:
        splits: `{split: (x, y)}`.
        build: makes a new model.
        loss: of every task.
        metric: of every task.
        select: its name, and whether it is to be large.
        learning_rates: those that are tried.
        epochs: at most.
        patience: see `compare`.
        batch_size: of the training.
        single_tasks: whether they are compared, too.
        compile_options: of all methods.
    """

    splits: dict[str, Any]
    build: Callable[[], keras.Model]
    loss: Any
    metric: Any
    select: tuple[str, str]
    learning_rates: tuple[float, float] = (1e-3, 4e-3)
    epochs: int = 12
    patience: int = 3
    batch_size: int = 64
    single_tasks: bool = False
    compile_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tasks(self):
        return list(self.splits["train"][1])

    @property
    def losses(self):
        return dict.fromkeys(self.tasks, self.loss)

    @property
    def methods(self):
        single = {"single tasks": None} if self.single_tasks else {}
        return {**single, **METHODS}


def regression(folder, name, standardised):
    splits = datasets.regression(folder, name)
    x, y = splits["train"]
    mean = {task: targets.mean(axis=0) for task, targets in y.items()}
    unit = {task: targets.std(axis=0) for task, targets in y.items()}
    if standardised:
        splits = {
            split: (
                inputs,
                {
                    task: (targets - mean[task]) / unit[task]
                    for task, targets in of_tasks.items()
                },
            )
            for split, (inputs, of_tasks) in splits.items()
        }

    def head(z, task):
        prediction = layers.Dense(len(unit[task]))(z)
        if standardised:
            return prediction
        # It starts where the other one does, and only the loss has a unit.
        return layers.Rescaling(unit[task], mean[task])(prediction)

    def build():
        inputs = keras.Input(x.shape[1:])
        z = dense(inputs, 64, 64)
        return keras.Model(inputs, {task: head(z, task) for task in y})

    splits["train"] = keras.tree.map_structure(
        lambda array: np.tile(array, (PASSES.get(name, OTHER_PASSES), 1)),
        splits["train"],
    )
    return Problem(
        splits,
        build,
        loss="mean_squared_error",
        metric="root_mean_squared_error",
        select=("root_mean_squared_error", "min"),
        learning_rates=LEARNING_RATES.get(name, (1e-3, 4e-3)),
        epochs=EPOCHS.get(name, OTHER_EPOCHS),
        patience=EPOCHS.get(name, OTHER_EPOCHS) // 4,
        batch_size=BATCH_SIZES.get(name, OTHER_BATCH_SIZE),
        single_tasks=name in WITH_SINGLE_TASKS,
    )


def tox21(folder):
    splits = datasets.tox21(folder)
    x, y = splits["train"]

    def build():
        inputs = keras.Input(x.shape[1:])
        z = dense(inputs, 128, 64)
        heads = {task: layers.Dense(1, activation="sigmoid")(z) for task in y}
        return keras.Model(inputs, heads)

    return Problem(
        splits,
        build,
        loss="binary_crossentropy",
        metric=keras.metrics.AUC(name="auc"),
        select=("auc", "max"),
        learning_rates=(5e-4, 2e-3),
        epochs=5,
        patience=1,
        batch_size=256,
        compile_options={"unlabelled": "nan"},
    )


def digits():
    return images(datasets.digits(), mlp, batch_size=64, epochs=8)


def multi_mnist(folder):
    splits = datasets.multi_mnist(folder, images=2000)
    return images(splits, convolutions, batch_size=64, epochs=8)


def images(splits, encoder, batch_size, epochs):
    x, y = splits["train"]

    def build():
        inputs = keras.Input(x.shape[1:])
        z = encoder(inputs)
        return keras.Model(inputs, {task: layers.Dense(10)(z) for task in y})

    return Problem(
        splits,
        build,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metric="accuracy",
        select=("accuracy", "max"),
        batch_size=batch_size,
        epochs=epochs,
        patience=2,
    )


def mlp(inputs):
    x = layers.AveragePooling2D(2)(inputs)
    return dense(layers.Flatten()(x), 128, 128)


def convolutions(inputs):
    x = layers.AveragePooling2D(2)(inputs)
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, strides=2, activation="relu")(x)
    return dense(layers.Flatten()(x), 64)


def dense(x, *sizes):
    for size in sizes:
        x = layers.Dense(size, activation="relu")(x)
    return x


PROBLEMS: dict[str, Callable[..., Problem]] = {
    **{
        f"{name}-{units}": functools.partial(
            regression, name=name, standardised=units == "standardised"
        )
        for name in datasets.TARGETS
        for units in ("raw", "standardised")
    },
    "digits": lambda folder: digits(),
    "tox21": tox21,
    "multi_mnist": multi_mnist,
}
