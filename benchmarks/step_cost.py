"""Step time of MGDAModel as ratios to stock Keras.

Same layers, same optimizer, one process, steps interleaved in rounds whose
order changes, medians. Prints a table and writes results/step_cost.json.

    python benchmarks/step_cost.py [--rounds 21] [--steps 4]
"""

import argparse
import json
import pathlib
import platform
import statistics
import time

import keras
import numpy as np
import tables
import tensorflow as tf
from keras import layers

import keras_mgda

RESULTS = pathlib.Path(__file__).parent / "results" / "step_cost.json"


def lenet(num_tasks):
    """The paper's MultiMNIST network, without dropout."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(10, 5)(inputs)
    x = layers.ReLU()(layers.MaxPooling2D()(x))
    x = layers.Conv2D(20, 5)(x)
    x = layers.ReLU()(layers.MaxPooling2D()(x))
    z = layers.Dense(50, activation="relu")(layers.Flatten()(x))

    def head(z):
        return layers.Dense(10)(layers.Dense(50, activation="relu")(z))

    return inputs, z, [head] * num_tasks


def resnet18(num_tasks, width=16, size=64):
    """The paper's CelebA encoder, thinner: stem of stride 1, no max-pool."""

    def block(x, filters, stride):
        y = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization()(y)
        if stride > 1:
            x = layers.Conv2D(filters, 1, stride, use_bias=False)(x)
            x = layers.BatchNormalization()(x)
        return layers.ReLU()(layers.Add()([x, y]))

    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for stage, stride in enumerate((1, 2, 2, 2)):
        x = block(x, width * 2**stage, stride)
        x = block(x, width * 2**stage, 1)
    z = layers.Flatten()(layers.AveragePooling2D(4)(x))
    return inputs, z, [lambda z: layers.Dense(2)(z)] * num_tasks


CASES = {
    "LeNet, 2 tasks, batch 256": (lenet, 2, 256),
    "LeNet, 10 tasks, batch 256": (lenet, 10, 256),
    "LeNet, 20 tasks, batch 256": (lenet, 20, 256),
    "ResNet-18 (16), 40 tasks, batch 16": (resnet18, 40, 16),
}
METHODS = {
    "stock": None,
    "MGDA-UB": {"gradients": "representation"},
    "MGDA-UB, verify=True": {"gradients": "representation", "verify": True},
    "last": {"gradients": "last"},
    "verified": {"gradients": "verified"},
    "exact MGDA": {"gradients": "parameters"},
}


def build(network, num_tasks, compile_args):
    keras.utils.set_random_seed(0)
    inputs, z, heads = network(num_tasks)
    tasks = [f"task{t}" for t in range(num_tasks)]
    losses = {
        task: keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        for task in tasks
    }
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if compile_args is None:
        outputs = {t: head(z) for t, head in zip(tasks, heads, strict=True)}
        model = keras.Model(inputs, outputs)
        model.compile(optimizer, losses)
        return model
    z = keras_mgda.SharedRepresentation()(z)
    outputs = {t: head(z) for t, head in zip(tasks, heads, strict=True)}
    model = keras_mgda.MGDAModel(inputs, outputs)
    model.compile(optimizer, losses, **compile_args)
    return model


def batches(model, batch_size):
    """The same four batches over and over, already in memory."""
    rng = np.random.default_rng(0)
    shape = (4 * batch_size, *model.input_shape[1:])
    x = rng.normal(size=shape).astype("float32")
    y = {
        task: rng.integers(0, out.shape[-1], len(x))
        for task, out in model.output.items()
    }
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    return data.cache().repeat().prefetch(2)


def measure(network, num_tasks, batch_size, rounds, steps):
    """Seconds for the first step, and medians of seconds for the others."""
    runs, first = {}, {}
    for name, compile_args in METHODS.items():
        model = build(network, num_tasks, compile_args)
        data = batches(model, batch_size)
        start = time.perf_counter()
        model.fit(data, steps_per_epoch=1, verbose=0)
        first[name] = time.perf_counter() - start
        runs[name] = (model.train_function, iter(data))
    seconds = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        order = order[1:] + order[:1]
        for name in order:
            step, iterator = runs[name]
            start = time.perf_counter()
            # Exact MGDA runs the encoder's backward pass for each task.
            repeat = 1 if name == "exact MGDA" else steps
            for _ in range(repeat):
                step(iterator)
            seconds[name].append((time.perf_counter() - start) / repeat)
    # Medians of the ratios within a round: the load of the machine changes
    # from round to round more than within one.
    return (
        first,
        {
            name: statistics.median(
                own / stock
                for own, stock in zip(own_times, seconds["stock"], strict=True)
            )
            for name, own_times in seconds.items()
        },
        statistics.median(seconds["stock"]),
    )


def main(rounds, steps):
    results = []
    for case, (network, num_tasks, batch_size) in CASES.items():
        first, ratios, stock = measure(
            network, num_tasks, batch_size, rounds, steps
        )
        print(f"{case} (stock: {1e3 * stock:.1f} ms)", flush=True)
        results.append(
            {
                "case": case,
                "stock_step_seconds": stock,
                "step_ratio": ratios,
                "first_step_seconds": first,
            }
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "machine": f"{platform.machine()}, CPU",
                "rounds": rounds,
                "steps": steps,
                "results": results,
            },
            indent=1,
        )
        + "\n"
    )
    print(tables.step_cost())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=4)
    main(**vars(parser.parse_args()))
