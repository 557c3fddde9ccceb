"""100 and 500 tasks: trace time, step time, memory, as ratios to stock Keras.

Each method trains in a process of its own, which tells its peak memory, and in
turns; of times the medians over the rounds count. The memory that MGDA-UB adds
is told in units of the `m` copies of `Z` that it needs for `dL_t/dZ`. Prints a
table and writes results/many_tasks.json.

    python benchmarks/many_tasks.py [--rounds 3] [--steps 20]
"""

import argparse
import json
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

RESULTS = pathlib.Path(__file__).parent / "results" / "many_tasks.json"
CASES = {100: 512, 500: 512}  # tasks: batch size
FEATURES, WIDTH, SIZE_OF_Z = 64, 256, 256


def measure(num_tasks, batch_size, gradients, steps):
    """Of one method: seconds of its first step and of the next, and bytes."""
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    import keras_mgda

    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(WIDTH, activation="relu")(inputs)
    z = layers.Dense(SIZE_OF_Z, activation="relu")(h)
    stock = gradients == "stock"
    z = z if stock else keras_mgda.SharedRepresentation()(z)
    tasks = [f"task{t:03}" for t in range(num_tasks)]
    outputs = {task: layers.Dense(1)(z) for task in tasks}
    model = (keras.Model if stock else keras_mgda.MGDAModel)(inputs, outputs)
    how = {} if stock else {"gradients": gradients}
    model.compile(
        keras.optimizers.SGD(0.01), dict.fromkeys(tasks, "mse"), **how
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size, FEATURES)).astype("float32")
    y = rng.normal(size=(batch_size, 1)).astype("float32")
    data = tf.data.Dataset.from_tensors((x, dict.fromkeys(tasks, y)))
    data = data.cache().repeat()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    model.fit(data, steps_per_epoch=1, verbose=0)
    first = time.perf_counter() - start
    iterator = iter(data)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        model.train_function(iterator)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = tf.function(model.train_step, autograph=False)
    graph = step.get_concrete_function(next(iterator)).graph
    return {
        "first_step_seconds": first,
        "step_seconds": statistics.median(seconds),
        "megabytes": (peak - before) / 1024,
        "graph_nodes": nodes(graph.as_graph_def()),
    }


def nodes(graph):
    """With those of the functions that it calls."""
    return len(graph.node) + sum(
        len(function.node_def) for function in graph.library.function
    )


def in_own_process(*arguments):
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    printed = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(printed.splitlines()[-1])


def main(rounds, steps):
    results = []
    for num_tasks, batch_size in CASES.items():
        runs = {method: [] for method in ("stock", "representation")}
        for _ in range(rounds):
            for method, of_method in runs.items():
                arguments = (num_tasks, batch_size, method, steps)
                of_method.append(in_own_process(*arguments))
        medians = {
            method: {
                name: statistics.median(one[name] for one in of_method)
                for name in of_method[0]
            }
            for method, of_method in runs.items()
        }
        stock, ours = medians.values()
        ratio = {name: ours[name] / stock[name] for name in ours}
        copies = num_tasks * batch_size * SIZE_OF_Z * 4 / 2**20
        added = (ours["megabytes"] - stock["megabytes"]) / copies
        print(f"{num_tasks} tasks, batch {batch_size}, Z of {SIZE_OF_Z}")
        for name, value in ratio.items():
            print(f"  {name + ' / stock':30}{value:8.2f}")
        print(f"  {'memory added, copies of Z':30}{added:8.2f} per task")
        results.append(
            {
                "tasks": num_tasks,
                "batch_size": batch_size,
                "size_of_z": SIZE_OF_Z,
                "medians": medians,
                "ratio_to_stock": ratio,
                "added_copies_of_z_per_task": added,
            }
        )
    RESULTS.write_text(
        json.dumps(
            {
                "machine": f"{platform.machine()}, CPU",
                "rounds": rounds,
                "steps": steps,
                "results": results,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        tasks, batch, method, steps = options.one
        print(json.dumps(measure(int(tasks), int(batch), method, int(steps))))
    else:
        main(options.rounds, options.steps)
