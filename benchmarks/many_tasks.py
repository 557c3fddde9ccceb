"""100 and 500 tasks: trace time, step time and memory beside stock Keras.

Each method trains in processes of its own, in turns; the medians count. A small
batch traces the step, in seconds of CPU time. Memory is what one step with a
large batch then raises the peak by, in units of a copy of `Z` for each task,
the size of the `dL_t/dZ` that stock Keras makes, too. Prints a table and writes
results/many_tasks.json.

With `--columns` the tasks are the columns of one output, with gaps: 617 behind
two `Dense(512)` and a `Z` of 128, and 40 on a ResNet-18 of width 16, beside
stock Keras's masked sum. Steps of all methods take turns in one process, first
steps and memory are those of processes of their own. `--outputs` adds the same
617 tasks as an output each, which takes minutes to trace. Writes
results/columns.json.

    python -m benchmarks.many_tasks [--rounds 3] [--steps 20] [--columns]
"""

import functools
import statistics
import time

from benchmarks import harness

CASES = {100: 8192, 500: 2048}  # tasks: size of the large batch
FEATURES, WIDTH, SIZE_OF_Z, BATCH_SIZE = 32, 128, 128, 128

# Networks of columns: number, shape of an input, batch size.
COLUMNS = {
    "617 columns, Dense": (617, (1024,), 128),
    "40 columns, ResNet-18": (40, (64, 64, 3), 16),
}
# By the name of a weighting; without one the loss is a masked sum.
COLUMN_METHODS = {
    "stock Keras": None,
    "plain sum": "uniform",
    "GradNorm": "gradnorm",
    "MGDA-UB": "mgda",
}


def encoder(x):
    from keras import layers

    h = layers.Dense(WIDTH, activation="relu")(x)
    return layers.Dense(SIZE_OF_Z, activation="relu")(h)


def head(z):
    from keras import layers

    return layers.Dense(1)(z)


def measure(num_tasks, large_batch, how, steps):
    """Of one method: the times of its first step and of others, and memory."""
    import tensorflow as tf

    from benchmarks import models

    network = models.Network((FEATURES,), encoder, head)
    model = models.build(network, num_tasks, how, loss="mse", momentum=0.0)
    small = batches(model.output, BATCH_SIZE)
    start = time.process_time()
    model.fit(small, steps_per_epoch=1, verbose=0)
    first = time.process_time() - start
    iterator = iter(small)
    times = harness.interleaved(
        {"step": lambda: model.train_function(iterator)}, steps
    )
    step = tf.function(model.train_step, autograph=False)
    graph = step.get_concrete_function(next(iterator)).graph
    iterator = iter(batches(model.output, large_batch))
    next(iterator)
    before = harness.peak_bytes()
    model.train_function(iterator)
    return {
        "first_step_cpu_seconds": first,
        "step_seconds": statistics.median(times["step"]),
        "graph_nodes": nodes(graph.as_graph_def()),
        "large_step_bytes": harness.peak_bytes() - before,
    }


def batches(tasks, batch_size):
    """The same batch without an end, of a size that the graph does not know."""
    import tensorflow as tf

    x = tf.random.normal([batch_size, FEATURES], seed=0)
    y = tf.random.normal([batch_size, 1], seed=1)
    data = tf.data.Dataset.from_tensors((x, dict.fromkeys(tasks, y)))
    return data.repeat().unbatch().batch(batch_size).take(1).cache().repeat()


def nodes(graph):
    """With those of the functions that it calls."""
    return len(graph.node) + sum(
        len(function.node_def) for function in graph.library.function
    )


def dense_encoder(x):
    from keras import layers

    for width in (512, 512, SIZE_OF_Z):
        x = layers.Dense(width, activation="relu")(x)
    return x


def resnet_encoder(x):
    from examples import networks

    return networks.resnet18(x, width=16)


def masked_sum(y_true, y_pred):
    """What users of stock Keras write: each column by its own labels."""
    import keras
    import tensorflow as tf

    present = tf.cast(~tf.math.is_nan(y_true), y_pred.dtype)
    y_true = tf.where(tf.math.is_nan(y_true), 0.0, y_true)
    losses = keras.losses.binary_crossentropy(
        y_true[..., None], y_pred[..., None]
    )
    of_columns = tf.reduce_sum(losses * present, axis=0)
    count = tf.reduce_sum(present, axis=0)
    return tf.reduce_sum(tf.math.divide_no_nan(of_columns, count))


def of_columns(case, method):
    """A compiled model, and its batch in a data set without an end."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_mgda

    num_columns, shape, batch_size = COLUMNS[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size, *shape)).astype("float32")
    y = rng.uniform(size=(batch_size, num_columns)) < 0.1
    y = np.where(rng.uniform(size=y.shape) < 0.71, np.nan, y).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    encoder = dense_encoder if len(shape) == 1 else resnet_encoder
    z = keras_mgda.SharedRepresentation()(encoder(inputs))
    optimizer = keras.optimizers.Adam()
    if method == "an output each":
        names = [f"assay_{k}" for k in range(num_columns)]
        outputs = {
            n: keras.layers.Dense(1, activation="sigmoid")(z) for n in names
        }
        labels = {n: y[:, k : k + 1] for k, n in enumerate(names)}
        model = keras_mgda.MGDAModel(inputs, outputs)
        loss = dict.fromkeys(names, "binary_crossentropy")
        model.compile(optimizer, loss, unlabelled="nan")
    else:
        last = keras.layers.Dense(num_columns, activation="sigmoid")
        outputs, labels = {"assays": last(z)}, {"assays": y}
        weighting = COLUMN_METHODS[method]
        if weighting is None:
            model = keras.Model(inputs, outputs)
            model.compile(optimizer, {"assays": masked_sum})
        else:
            model = keras_mgda.MGDAModel(inputs, outputs)
            model.compile(
                optimizer,
                keras_mgda.losses.PerColumn("binary_crossentropy"),
                weighting=weighting,
                unlabelled="nan",
            )
    data = tf.data.Dataset.from_tensors((x, labels)).cache().repeat()
    return model, data


def first_step(case, method):
    """Seconds of CPU time of the first step, and the most memory."""
    model, data = of_columns(case, method)
    start = time.process_time()
    model.fit(data, steps_per_epoch=1, verbose=0)
    first = time.process_time() - start
    model.fit(data, steps_per_epoch=3, verbose=0)
    return {
        "first_step_cpu_seconds": first,
        "peak_bytes": harness.peak_bytes(),
    }


def steps_in_turns(case, methods, steps):
    """Wall-clock and CPU seconds of steps, `{method: [seconds]}` of each."""
    calls, cpu = {}, {}

    def step(model, iterator, of_method):
        start = time.process_time()
        model.train_function(iterator)
        of_method.append(time.process_time() - start)

    for method in methods:
        model, data = of_columns(case, method)
        model.fit(data, steps_per_epoch=1, verbose=0)
        cpu[method] = []
        calls[method] = functools.partial(step, model, iter(data), cpu[method])
    times = harness.interleaved(calls, steps, warm_up=2)
    return times, {method: of_method[2:] for method, of_method in cpu.items()}


def columns(args):
    results = []
    for case, (num_columns, _, batch_size) in COLUMNS.items():
        methods = list(COLUMN_METHODS)
        if num_columns < 100:
            methods = ["stock Keras", "plain sum", "MGDA-UB"]
        runs = {m: [] for m in methods}
        for _ in range(args.rounds):
            for method in methods:
                runs[method].append(
                    harness.in_fresh_process(first_step, case, method)
                )
        if args.outputs and num_columns >= 100:  # once, for it takes minutes
            each = "an output each"
            runs[each] = [harness.in_fresh_process(first_step, case, each)]
            methods.append(each)
        times, cpu = harness.in_fresh_process(
            steps_in_turns, case, methods, args.steps
        )
        results.append(
            {
                "case": case,
                "columns": num_columns,
                "batch_size": batch_size,
                "step_seconds": harness.medians(times),
                "step_ratio": harness.ratios(times, "stock Keras"),
                "cpu_ratio": harness.ratios(cpu, "stock Keras"),
                **{
                    key: {
                        m: statistics.median(run[key] for run in of_method)
                        for m, of_method in runs.items()
                    }
                    for key in ("first_step_cpu_seconds", "peak_bytes")
                },
            }
        )
    harness.write(
        args.results / "columns.json",
        {"rounds": args.rounds, "steps": args.steps, "results": results},
    )
    from benchmarks import tables

    print(tables.columns(args.results))


def main(argv=None):
    parser = harness.parser(__doc__, rounds=3, steps=20)
    parser.add_argument("--columns", action="store_true")
    parser.add_argument("--outputs", action="store_true")
    parser.add_argument(
        "--tasks", nargs="+", type=int, choices=CASES, default=list(CASES)
    )
    args = parser.parse_args(argv)
    if args.columns:
        columns(args)
        return
    methods = {"stock": None, "MGDA-UB": {"gradients": "representation"}}
    results = []
    for num_tasks in args.tasks:
        runs = {name: [] for name in methods}
        for _ in range(args.rounds):
            for name, how in methods.items():
                runs[name].append(
                    harness.in_fresh_process(
                        measure, num_tasks, CASES[num_tasks], how, args.steps
                    )
                )
        found = {
            name: {
                key: statistics.median(one[key] for one in of_method)
                for key in of_method[0]
            }
            for name, of_method in runs.items()
        }
        copies = num_tasks * CASES[num_tasks] * SIZE_OF_Z * 4
        memory = [found[name]["large_step_bytes"] / copies for name in methods]
        results.append(
            {
                "tasks": num_tasks,
                "large_batch": CASES[num_tasks],
                **found,
                "ratio": {
                    key: found["MGDA-UB"][key] / value
                    for key, value in found["stock"].items()
                },
                "copies_of_z_per_task": memory,
                "extra_copies_of_z_per_task": memory[1] - memory[0],
            }
        )
    settings = {"batch_size": BATCH_SIZE, "size_of_z": SIZE_OF_Z}
    harness.write(
        args.results / "many_tasks.json",
        {"rounds": args.rounds, "steps": args.steps, **settings}
        | {"results": results},
    )
    from benchmarks import tables  # imports TensorFlow, now that all is over

    print(tables.many_tasks(args.results))


if __name__ == "__main__":
    main()
