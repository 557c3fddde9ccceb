"""Size, time and latency of what `export_saved_model` publishes.

    python -m benchmarks.export [published] [functions]

`published`: a MobileNetV2 encoder of 224 x 224 images and 6 convolutional
heads. `model.export()` of Keras stands beside for size and time.

`functions`: a MobileNetV2 encoder of 96 x 96 images and 40 dense heads, as a
SavedModel with a signature for each task, written in three ways:

- `blocks`, as the package does: one trace, cut where the tasks part, and the
  signatures call the same functions (`keras_mgda.serving.task_graph`);
- `pruned`: one trace, and for each signature a copy of what it needs, by
  `prune` of `tf.compat.v1.wrap_function`;
- `traced`: the whole model is traced again for each signature.

Without the checks, so that nothing but the graph differs.

Latencies are medians of interleaved requests of one row, run from the files by
a session as TensorFlow Serving runs them, on one thread, so that heads do not
run side by side. All times are those of the processor, which other programs
hardly disturb. Writes `results/export.json`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda import serving
from keras_mgda.serving import artifact
from keras_mgda.serving.inputs import declared_inputs
from keras_mgda.serving.signatures import forward, signatures, trace

RESULTS = Path(__file__).parent / "results" / "export.json"


def build(size, num_tasks, head):
    """The model with all heads, and the encoder alone."""
    image = keras.Input((size, size, 3), name="image")
    encoder = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(size, size, 3)
    )
    z = encoder(image)
    heads = {f"task_{t}": head(z) for t in range(num_tasks)}
    return keras.Model(image, heads), keras.Model(image, {"representation": z})


def convolutional_head(z):
    hidden = layers.Conv2D(256, 1, activation="relu")(z)
    for _ in range(2):
        hidden = layers.Conv2D(256, 3, padding="same", activation="relu")(
            hidden
        )
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(hidden))


def dense_head(z):
    hidden = layers.Dense(64, activation="relu")(
        layers.GlobalAveragePooling2D()(z)
    )
    return layers.Dense(10)(hidden)


def timed(function, *arguments):
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


# What is published


def published(num_tasks=6, size=224):
    model, encoder = build(size, num_tasks, convolutional_head)
    weights = sum(v.value.numpy().nbytes for v in model.variables)
    with tempfile.TemporaryDirectory() as folder:
        exports = [
            timed(keras_mgda.export_saved_model, model, f"{folder}/mgda")
            for _ in range(3)
        ]
        written = exports[-1][1]
        keras_seconds, _ = timed(
            lambda: model.export(f"{folder}/keras", verbose=False)
        )
        keras_bytes = sum(
            file.stat().st_size
            for file in Path(folder, "keras").rglob("*")
            if file.is_file()
        )
        alone = keras_mgda.export_saved_model(encoder, f"{folder}/encoder")
        asked = {name: (written.path, name) for name in written.signatures}
        asked["encoder"] = (alone.path, "serving_default")
        median = on_one_thread(asked, size)["latency_milliseconds"]
    heads = median["serving_default"] - median["encoder"]
    single = [s for name, s in median.items() if name.startswith("predict_")]
    return {
        "tasks": num_tasks,
        "cores": os.cpu_count(),
        "weights_bytes": weights,
        "graph_bytes": written.graph_bytes,
        "artifact_bytes": written.total_bytes,
        "artifact_less_graph_over_weights": round(
            (written.total_bytes - written.graph_bytes) / weights, 4
        ),
        "keras_export_over_weights": round(keras_bytes / weights, 4),
        "export_seconds": round(statistics.median(t for t, _ in exports), 2),
        "keras_export_seconds": round(keras_seconds, 2),
        "latency_milliseconds": median,
        "heads_milliseconds": round(heads, 2),
        "predict_task_less_encoder_over_heads": round(
            (statistics.median(single) - median["encoder"]) / heads, 4
        ),
        "one_over_tasks": round(1 / num_tasks, 4),
    }


# How the signatures are made


def blocks(answers, specs):
    served = signatures(trace(answers, specs))
    return {name: s.function for name, s in served.items()}


def pruned(answers, specs):
    whole = tf.compat.v1.wrap_function(
        lambda *tensors: answers(dict(zip(specs, tensors, strict=True))),
        list(specs.values()),
    )
    outputs = whole.structured_outputs
    feeds = whole.inputs[: len(specs)]

    def function(tasks):
        fetched = whole.prune(feeds, {t: outputs[t][t] for t in tasks})
        return tf.function(
            lambda *tensors: fetched(*tensors), autograph=False
        ).get_concrete_function(*specs.values())

    return of_signatures(function, list(outputs))


def traced(answers, specs):
    def function(tasks):
        def signature(*tensors):
            found = answers(dict(zip(specs, tensors, strict=True)))
            return {task: found[task][task] for task in tasks}

        return tf.function(signature, autograph=False).get_concrete_function(
            *specs.values()
        )

    return of_signatures(function, every_task(answers, specs))


def every_task(answers, specs):
    rows = {n: tf.zeros([1, *s.shape[1:]], s.dtype) for n, s in specs.items()}
    return list(answers(rows))


def of_signatures(function, tasks):
    made = {f"predict_{task}": function([task]) for task in tasks}
    return {"serving_default": function(tasks), **made}


def functions(num_tasks=40, size=96):
    model, _ = build(size, num_tasks, dense_head)
    inputs = declared_inputs(model, None, None)
    answers = forward(model, inputs)
    found = {}
    asked = {}
    with tempfile.TemporaryDirectory() as folder:
        for make in (blocks, pruned, traced):
            path = Path(folder, make.__name__)
            start = time.process_time()
            module = tf.Module()
            module.weights = [v.value for v in model.variables]
            tf.saved_model.save(
                module,
                str(path),
                signatures=make(answers, inputs.specs),
                options=tf.saved_model.SaveOptions(
                    experimental_custom_gradients=False
                ),
            )
            found[make.__name__] = {
                "export_seconds": round(time.process_time() - start, 1),
                "graph_bytes": (path / "saved_model.pb").stat().st_size,
            }
            print(make.__name__, found[make.__name__], flush=True)
            for name in ("serving_default", "predict_task_0"):
                asked[f"{make.__name__} {name}"] = (path, name)
        latency = on_one_thread(asked, size)
    for key, of_requests in latency.items():
        for request, value in of_requests.items():
            way, name = request.split()
            found[way].setdefault(key, {})[name] = value
    return {"tasks": num_tasks, "cores": os.cpu_count(), **found}


# Requests


def on_one_thread(asked, size, rounds=60):
    """`latencies` in a process that has one thread for them."""
    given = {name: [str(path), key] for name, (path, key) in asked.items()}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.export"),
            *("latencies", json.dumps([given, size, rounds])),
        ],
        env={
            **os.environ,
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
        },
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def latencies(asked, size, rounds):
    """Of `{name: (path, signature)}`: to load, the first request, the others.

    Returns `{quantity: {name: value}}`.
    """
    row = np.random.default_rng(0).normal(size=(1, size, size, 3))
    inputs = {"image": row.astype("float32")}
    first, others = {}, {name: [] for name in asked}
    sessions = {
        path: artifact.loaded(serving.read(path)) for path, _ in asked.values()
    }
    load = {path: timed(s.__enter__) for path, s in sessions.items()}
    for _ in range(rounds):
        for name, (path, signature) in asked.items():
            elapsed, _ = timed(load[path][1], signature, inputs)
            if name in first:
                others[name].append(elapsed)
            else:  # It optimizes the graph.
                first[name] = elapsed
    for session in sessions.values():
        session.__exit__(None, None, None)
    return {
        "load_seconds": {
            name: round(load[path][0], 2) for name, (path, _) in asked.items()
        },
        "first_request_seconds": {n: round(s, 2) for n, s in first.items()},
        "latency_milliseconds": {
            name: round(1e3 * statistics.median(seconds), 2)
            for name, seconds in others.items()
        },
    }


def main(*parts):
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parts or ("published", "functions"):
        results[part] = {"published": published, "functions": functions}[part]()
        print(json.dumps({part: results[part]}, indent=2))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["latencies"]:
        print(json.dumps(latencies(*json.loads(sys.argv[2]))))
    else:
        main(*sys.argv[1:])
