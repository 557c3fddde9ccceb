"""100 and 500 tasks: trace time, step time and memory beside stock Keras.

Each method trains in processes of its own, in turns; the medians count. A small
batch traces the step, in seconds of CPU time. Memory is what one step with a
large batch then raises the peak by, in units of a copy of `Z` for each task,
the size of the `dL_t/dZ` that stock Keras makes, too. Prints a table and writes
results/many_tasks.json.

With `--columns` the tasks are the 617 columns of one output instead, with gaps,
behind an encoder of two `Dense(512)`, beside stock Keras's masked sum; and with
`--outputs`, which takes minutes to trace, beside an output for each. That is
written to results/columns.json.

    python benchmarks/many_tasks.py [--rounds 3] [--steps 20] [--columns]
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
CASES = {100: 8192, 500: 2048}  # tasks: size of the large batch
COLUMNS, ENCODER, FINGERPRINT = 617, 512, 1024
FEATURES, WIDTH, SIZE_OF_Z, BATCH_SIZE = 32, 128, 128, 128


def measure(num_tasks, large_batch, gradients, steps):
    """Of one method: the times of its first step and of others, and memory."""
    import keras
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
    small = batches(tasks, BATCH_SIZE)
    start = time.process_time()
    model.fit(small, steps_per_epoch=1, verbose=0)
    first = time.process_time() - start
    iterator = iter(small)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        model.train_function(iterator)
        seconds.append(time.perf_counter() - start)
    step = tf.function(model.train_step, autograph=False)
    graph = step.get_concrete_function(next(iterator)).graph
    iterator = iter(batches(tasks, large_batch))
    next(iterator)
    before = peak()
    model.train_function(iterator)
    return {
        "first_step_cpu_seconds": first,
        "step_seconds": statistics.median(seconds),
        "graph_nodes": nodes(graph.as_graph_def()),
        "large_step_bytes": peak() - before,
    }


def batches(tasks, batch_size):
    """The same batch without an end, of a size that the graph does not know."""
    import tensorflow as tf

    x = tf.random.normal([batch_size, FEATURES], seed=0)
    y = tf.random.normal([batch_size, 1], seed=1)
    data = tf.data.Dataset.from_tensors((x, dict.fromkeys(tasks, y)))
    return data.repeat().unbatch().batch(batch_size).take(1).cache().repeat()


def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def nodes(graph):
    """With those of the functions that it calls."""
    return len(graph.node) + sum(
        len(function.node_def) for function in graph.library.function
    )


def measure_columns(method, steps):
    """Of 617 columns by one method: its first step, the others, and memory.

    Methods: "stock", the masked sum of plain Keras; the name of a weighting;
    "outputs mgda", where each column is an output.
    """
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    import keras_mgda

    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH_SIZE, FINGERPRINT)).astype("float32")
    y = (rng.uniform(size=(BATCH_SIZE, COLUMNS)) < 0.1).astype("float32")
    y[rng.uniform(size=y.shape) < 0.71] = np.nan
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FINGERPRINT,))
    z = layers.Dense(ENCODER, activation="relu")(inputs)
    z = layers.Dense(ENCODER, activation="relu")(z)
    z = layers.Dense(SIZE_OF_Z, activation="relu")(z)
    optimizer = keras.optimizers.Adam()
    if method == "stock":
        assays = layers.Dense(COLUMNS, activation="sigmoid")(z)
        model = keras.Model(inputs, {"assays": assays})

        def masked_sum(y, p):
            present = ~tf.math.is_nan(y)
            y = tf.where(present, y, 0.0)
            present = tf.cast(present, p.dtype)
            losses = keras.losses.binary_crossentropy(
                y[..., None], p[..., None]
            )
            count = tf.reduce_sum(present, 0)
            return tf.reduce_sum(
                tf.math.divide_no_nan(tf.reduce_sum(losses * present, 0), count)
            )

        model.compile(optimizer, {"assays": masked_sum})
        labels = {"assays": y}
    else:
        z = keras_mgda.SharedRepresentation()(z)
        if method.startswith("outputs"):
            names = [f"a{k}" for k in range(COLUMNS)]
            outputs = {
                n: layers.Dense(1, activation="sigmoid")(z) for n in names
            }
            loss = dict.fromkeys(names, "binary_crossentropy")
            labels = {n: y[:, k : k + 1] for k, n in enumerate(names)}
        else:
            last = layers.Dense(COLUMNS, activation="sigmoid")
            outputs, labels = {"assays": last(z)}, {"assays": y}
            loss = keras_mgda.losses.PerColumn("binary_crossentropy")
        model = keras_mgda.MGDAModel(inputs, outputs)
        weighting = method.split()[-1]
        model.compile(optimizer, loss, weighting=weighting, unlabelled="nan")
    data = tf.data.Dataset.from_tensors((x, labels)).cache().repeat()
    start = time.process_time()
    model.fit(data, steps_per_epoch=1, verbose=0)
    first = time.process_time() - start
    iterator = iter(data)
    seconds, cpu = [], []
    for _ in range(steps):
        start, start_cpu = time.perf_counter(), time.process_time()
        model.train_function(iterator)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {
        "first_step_cpu_seconds": first,
        "step_seconds": statistics.median(seconds),
        "step_cpu_seconds": statistics.median(cpu),
        "peak_bytes": peak(),
    }


def main_of_columns(rounds, steps, with_outputs):
    methods = ["stock", "uniform", "gradnorm", "mgda"]
    methods += ["outputs mgda"] * with_outputs
    runs = {method: [] for method in methods}
    for _ in range(rounds):
        for method, of_method in runs.items():
            of_method.append(in_own_process("columns", 0, method, steps))
    medians = {
        method: {
            name: statistics.median(one[name] for one in of_method)
            for name in of_method[0]
        }
        for method, of_method in runs.items()
    }
    for method, of_method in medians.items():
        print(method)
        for name, value in of_method.items():
            ratio = value / medians["stock"][name]
            print(f"  {name:24}{value:12.4g}{ratio:8.2f} of stock", flush=True)
    results = {
        "machine": f"{platform.machine()}, CPU",
        "rounds": rounds,
        "steps": steps,
        "columns": COLUMNS,
        "batch_size": BATCH_SIZE,
        "size_of_z": SIZE_OF_Z,
        "results": medians,
    }
    path = RESULTS.with_name("columns.json")
    path.write_text(json.dumps(results, indent=1) + "\n")


def in_own_process(*arguments):
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    printed = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(printed.splitlines()[-1])


def main(rounds, steps):
    results = []
    for num_tasks, large_batch in CASES.items():
        runs = {"stock": [], "representation": []}
        for _ in range(rounds):
            for method, of_method in runs.items():
                arguments = (num_tasks, large_batch, method, steps)
                of_method.append(in_own_process(*arguments))
        stock, ours = (
            {
                name: statistics.median(one[name] for one in of_method)
                for name in of_method[0]
            }
            for of_method in runs.values()
        )
        copies = num_tasks * large_batch * SIZE_OF_Z * 4
        memory = [one["large_step_bytes"] / copies for one in (stock, ours)]
        print(f"{num_tasks} tasks")
        for name in ("first_step_cpu_seconds", "step_seconds", "graph_nodes"):
            print(f"  {name + ' / stock':28}{ours[name] / stock[name]:8.2f}")
        print(f"  copies of Z per task: stock {memory[0]:.2f}", end=", ")
        print(f"MGDA-UB {memory[1]:.2f}", flush=True)
        results.append(
            {
                "tasks": num_tasks,
                "large_batch": large_batch,
                "stock": stock,
                "MGDA-UB": ours,
                "ratio": {name: ours[name] / stock[name] for name in ours},
                "copies_of_z_per_task": memory,
                "extra_copies_of_z_per_task": memory[1] - memory[0],
            }
        )
    RESULTS.write_text(
        json.dumps(
            {
                "machine": f"{platform.machine()}, CPU",
                "rounds": rounds,
                "steps": steps,
                "batch_size": BATCH_SIZE,
                "size_of_z": SIZE_OF_Z,
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
    parser.add_argument("--columns", action="store_true")
    parser.add_argument("--outputs", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        tasks, batch, method, steps = options.one
        print(
            json.dumps(
                measure_columns(method, int(steps))
                if tasks == "columns"
                else measure(int(tasks), int(batch), method, int(steps))
            )
        )
    elif options.columns:
        main_of_columns(options.rounds, options.steps, options.outputs)
    else:
        main(options.rounds, options.steps)
