"""What MGDA adds to data-parallel training: bytes reduced, and throughput.

Bytes: the collectives of one replica in the traced training step, counted.
Throughput: examples per second of two logical devices against one, on as many
cores as devices, steps interleaved in rounds, medians of their ratios. Needs
Linux and two cores that nothing else uses.
Prints tables and writes results/scaling.json.

    python -m benchmarks.scaling [--rounds 30] [--steps 5]
"""

import contextlib
import functools
import os

import keras
import tensorflow as tf
from keras import layers

from benchmarks import harness, models

METHODS = {
    "plain sum": None,
    "MGDA-UB": {"gradients": "representation"},
    "exact MGDA": {"gradients": "parameters"},
}
BATCH_SIZE = 128  # of a replica


def build(num_tasks, width, how, bypass=False):
    """A convolutional encoder, and a head of two layers for each task.

    With `bypass` every head reads the encoder's first layer, too.
    """
    around = []

    def encoder(x):
        x = layers.Conv2D(10, 5, strides=2, activation="relu")(x)
        if bypass:
            around.append(layers.GlobalAveragePooling2D()(x))
        x = layers.Conv2D(20, 5, strides=2, activation="relu")(x)
        x = layers.Dense(width, activation="relu")(layers.Flatten()(x))
        return layers.Dense(50, activation="relu")(x)

    def head(z):
        read = layers.Concatenate()([z, *around]) if bypass else z
        return layers.Dense(10)(layers.Dense(50, activation="relu")(read))

    network = models.Network((28, 28, 1), encoder, head)
    return models.build(network, num_tasks, how)


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
        for name, how in METHODS.items():
            with strategy.scope():
                model = build(num_tasks, width, how, bypass)
            data = next(iter(models.batches(model, 8)))
            row[name] = reduced_bytes(model, data)
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

    def run(step, iterator, of_cores):
        use_cores(of_cores)
        for _ in range(steps):
            step(iterator)

    for name, how in METHODS.items():
        calls = {}
        for where in (tf.distribute.get_strategy(), strategy):
            replicas = where.num_replicas_in_sync
            with where.scope():
                model = build(num_tasks, 50, how)
            data = models.batches(model, BATCH_SIZE * replicas)
            model.fit(data, steps_per_epoch=3, verbose=0)
            calls[replicas] = functools.partial(
                run,
                model.train_function,
                iter(where.experimental_distribute_dataset(data)),
                cores[:replicas],
            )
        times = harness.interleaved(calls, rounds)
        use_cores(cores)
        ratios[name] = 2 * harness.ratios(times, 2)[1]
        print(f"{num_tasks:5}  {name:12}{ratios[name]:10.2f}")
    return {"tasks": num_tasks, "batch_size": BATCH_SIZE, "ratios": ratios}


def main(argv=None):
    args = harness.parser(__doc__, rounds=30, steps=5).parse_args(argv)
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
    throughput = [
        measure(strategy, m, args.rounds, args.steps) for m in (2, 10)
    ]
    harness.write(
        args.results / "scaling.json",
        {
            "rounds": args.rounds,
            "steps": args.steps,
            "bytes_reduced": rows,
            "throughput_two_devices_to_one": throughput,
        },
    )


if __name__ == "__main__":
    main()
