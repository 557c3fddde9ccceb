"""100 and 500 tasks: trace time, step time and memory beside stock Keras.

Each method trains in processes of its own, in turns; the medians count. A small
batch traces the step, in seconds of CPU time. Memory is what one step with a
large batch then raises the peak by, in units of a copy of `Z` for each task,
the size of the `dL_t/dZ` that stock Keras makes, too. Prints a table and writes
results/many_tasks.json.

    python -m benchmarks.many_tasks [--rounds 3] [--steps 20]
"""

import statistics
import time

from benchmarks import harness

CASES = {100: 8192, 500: 2048}  # tasks: size of the large batch
FEATURES, WIDTH, SIZE_OF_Z, BATCH_SIZE = 32, 128, 128, 128


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

    model = models.build(
        (FEATURES,), encoder, head, num_tasks, how, loss="mse", momentum=0.0
    )
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


def main(argv=None):
    parser = harness.parser(__doc__, rounds=3, steps=20)
    parser.add_argument(
        "--tasks", nargs="+", type=int, choices=CASES, default=list(CASES)
    )
    args = parser.parse_args(argv)
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
