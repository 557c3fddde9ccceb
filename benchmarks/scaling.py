"""What MGDA adds to data-parallel training: bytes reduced, and throughput.

Bytes: the collectives of one replica in the traced training step, counted.
Throughput: examples per second of two logical devices against one, on as many
cores as devices, steps interleaved in rounds, medians of their ratios. Needs
Linux and two cores that nothing else uses.
Prints tables and writes results/scaling.json.

    python benchmarks/scaling.py [--rounds 30] [--steps 5]
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_mgda

RESULTS = pathlib.Path(__file__).parent / "results" / "scaling.json"
METHODS = {
    "plain sum": None,
    "MGDA-UB": "representation",
    "exact MGDA": "parameters",
}
BATCH_SIZE = 128  # of a replica


def build(num_tasks, width, gradients, bypass=False):
    """A convolutional encoder, and a head of two layers for each task.

    With `bypass` every head reads the encoder's first layer, too.
    """
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(10, 5, strides=2, activation="relu")(inputs)
    first = layers.GlobalAveragePooling2D()(x)
    x = layers.Conv2D(20, 5, strides=2, activation="relu")(x)
    x = layers.Dense(width, activation="relu")(layers.Flatten()(x))
    z = layers.Dense(50, activation="relu")(x)
    if gradients:
        z = keras_mgda.SharedRepresentation()(z)
    if bypass:
        z = layers.Concatenate()([z, first])
    outputs = {
        f"task{t}": layers.Dense(10)(layers.Dense(50, activation="relu")(z))
        for t in range(num_tasks)
    }
    losses = {
        task: keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        for task in outputs
    }
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if gradients is None:
        model = keras.Model(inputs, outputs)
        model.compile(optimizer, losses)
    else:
        model = keras_mgda.MGDAModel(inputs, outputs)
        model.compile(optimizer, losses, gradients=gradients)
    return model


def batch(num_tasks, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 28, 28, 1)).astype("float32")
    return x, {f"task{t}": rng.integers(0, 10, size) for t in range(num_tasks)}


def reduced_bytes(model, data):
    """Bytes that a replica puts into all-reduces in one training step.

    Args:
        model: built and compiled under a `tf.distribute.Strategy`.
        data: the batch of one replica.
    """
    strategy = model.distribute_strategy
    model.fit(*data, verbose=0)  # makes all variables
    data = keras.tree.map_structure(tf.constant, data)
    step = tf.function(
        lambda: strategy.run(model.train_step, args=(data,)), autograph=False
    )
    graph = step.get_concrete_function().graph
    nested = [
        node.op
        for function in graph.as_graph_def().library.function
        for node in function.node_def
    ]
    if any("Collective" in op for op in nested):
        raise ValueError("A collective is out of sight, in a nested function.")
    device = strategy.extended.worker_devices[0]
    reduced = [
        operation.inputs[0]
        for operation in graph.get_operations()
        if operation.type == "CollectiveReduceV2" and operation.device == device
    ]
    return sum(t.shape.num_elements() * t.dtype.size for t in reduced)


def count_bytes(strategy):
    rows = []
    for num_tasks, width, bypass in (
        (2, 50, False),
        (10, 50, False),
        (10, 1000, False),
        (40, 50, False),
        (10, 50, True),
    ):
        row = {"tasks": num_tasks, "width": width, "bypass": bypass}
        for name, gradients in METHODS.items():
            with strategy.scope():
                model = build(num_tasks, width, gradients, bypass)
            row[name] = reduced_bytes(model, batch(num_tasks, 8))
        row["parameters"] = model.count_params()
        rows.append(row)
        beyond = {name: row[name] - row["plain sum"] for name in METHODS}
        print(
            f"{num_tasks:5}{width:7}{'yes' if bypass else 'no':>8}"
            f"{row['plain sum']:12}{beyond['MGDA-UB']:12}"
            f"{beyond['exact MGDA']:12}"
        )
    return rows


def use_cores(cores):
    """Keeps all threads that there are by now, TensorFlow's too, to these."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread), cores)


def measure(strategy, num_tasks, rounds, steps):
    """Median ratio of examples per second, two devices to one.

    One device would use both cores as well, if they were not taken from it.
    """
    cores = sorted(os.sched_getaffinity(0))
    ratios = {}
    for name, gradients in METHODS.items():
        runs = []
        for where in (tf.distribute.get_strategy(), strategy):
            with where.scope():
                model = build(num_tasks, 50, gradients)
            size = BATCH_SIZE * where.num_replicas_in_sync
            data = tf.data.Dataset.from_tensors(batch(num_tasks, size))
            data = data.unbatch().batch(size).cache().repeat().prefetch(2)
            model.fit(data, steps_per_epoch=3, verbose=0)
            iterator = iter(where.experimental_distribute_dataset(data))
            runs.append((model.train_function, iterator))
        found = []
        for k in range(rounds):
            seconds = [0.0, 0.0]
            for i in (0, 1) if k % 2 else (1, 0):
                step, iterator = runs[i]
                use_cores(cores[: i + 1])
                start = time.perf_counter()
                for _ in range(steps):
                    step(iterator)
                seconds[i] = time.perf_counter() - start
            found.append(2 * seconds[0] / seconds[1])
        use_cores(cores)
        ratios[name] = statistics.median(found)
        print(f"{num_tasks:5}  {name:12}{ratios[name]:10.2f}")
    return {"tasks": num_tasks, "batch_size": BATCH_SIZE, "ratios": ratios}


def main(rounds, steps):
    # A core for each device, as if they were machines: see `use_cores`.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    (cpu, *_) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    print("Bytes reduced in a step, of the plain sum and beyond it")
    print("tasks  width  bypass   plain sum     MGDA-UB  exact MGDA")
    rows = count_bytes(strategy)
    print("Examples per second, two devices to one")
    throughput = [measure(strategy, m, rounds, steps) for m in (2, 10)]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "rounds": rounds,
                "steps": steps,
                "bytes_reduced": rows,
                "throughput_two_devices_to_one": throughput,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=5)
    main(**vars(parser.parse_args()))
