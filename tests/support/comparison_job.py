"""A small comparison, for other processes too; a script that runs it.

`python comparison_job.py RESULTS PROCESSES`
"""

import functools
import sys

import keras
import numpy as np

TASKS = ("a", "b")


def build(*seeds):
    """Whose initial weights follow the seeds, if there are any."""
    first, *of_heads = [
        keras.initializers.GlorotUniform(seed)
        for seed in seeds or [None] * (1 + len(TASKS))
    ]
    inputs = keras.Input((4,))
    z = keras.layers.Dense(6, "tanh", kernel_initializer=first)(inputs)
    heads = {
        task: keras.layers.Dense(1, name=task, kernel_initializer=of_head)(z)
        for task, of_head in zip(TASKS, of_heads, strict=True)
    }
    return keras.Model(inputs, heads)


def split(seed, number=32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, 4)).astype("float32")
    noise = rng.normal(size=(number, 2)).astype("float32") / 4
    return x, {
        "a": x[:, :1] + noise[:, :1],
        "b": 30 * (x[:, 1:2] - x[:, :1] + noise[:, 1:]),
    }


def arguments(results, **changes):
    """Of `compare`, with the splits as functions."""
    given = {
        "build": build,
        "train": functools.partial(split, 0),
        "validation": functools.partial(split, 1),
        "test": functools.partial(split, 2),
        "losses": {"a": "mse", "b": "mae"},
        "metrics": {"a": ["mae", "mse"], "b": "mae"},
        "select": {"a": ("mse", "min"), "b": ("mae", "min")},
        "results": results,
        "methods": ["plain sum", "MGDA-UB"],
        "optimizer": keras.optimizers.Adam,
        "learning_rates": [0.01, 0.1],
        "seeds": [0, 1],
        "epochs": 3,
        "batch_size": 16,
        "compile_options": {"run_eagerly": True},
    }
    return given | changes


if __name__ == "__main__":
    from keras_mgda.comparison import compare

    given = arguments(sys.argv[1], executor=int(sys.argv[2]))
    print(compare(**given))
