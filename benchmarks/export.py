"""Size, time and latency of what `export_saved_model` publishes.

    python -m benchmarks.export

A MobileNetV2 encoder of 224 x 224 images and 6 convolutional heads, on this
machine's processor. `model.export()` of Keras stands beside for size and time.
Latencies are medians of interleaved requests of one row, run from the files by
a session as TensorFlow Serving runs them, on one thread, so that heads do not
run side by side. Writes `results/export.json`.
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
from keras import layers

import keras_mgda
from keras_mgda import serving
from keras_mgda.serving import artifact

TASKS = 6
SIZE = 224
ROUNDS = 60
RESULTS = Path(__file__).parent / "results" / "export.json"


def build():
    """The model with all heads, and the encoder alone."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    encoder = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    z = encoder(image)
    model = keras.Model(image, {f"task_{t}": head(z) for t in range(TASKS)})
    return model, keras.Model(image, {"representation": z})


def head(z):
    hidden = layers.Conv2D(256, 1, activation="relu")(z)
    for _ in range(2):
        hidden = layers.Conv2D(256, 3, padding="same", activation="relu")(
            hidden
        )
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(hidden))


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def latencies(published, encoder):
    """Median milliseconds per signature, and of the encoder alone."""
    published, encoder = serving.read(published), serving.read(encoder)
    row = np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3))
    inputs = {"image": row.astype("float32")}
    times = {"encoder": [], **{name: [] for name in published.signatures}}
    with artifact.loaded(published) as ask, artifact.loaded(encoder) as ask_z:
        for round_ in range(ROUNDS + 5):
            for name, seconds in times.items():
                if name == "encoder":
                    elapsed, _ = timed(ask_z, "serving_default", inputs)
                else:
                    elapsed, _ = timed(ask, name, inputs)
                if round_ >= 5:  # The first ones optimize the graph.
                    seconds.append(elapsed)
    return {
        name: round(1e3 * statistics.median(seconds), 2)
        for name, seconds in times.items()
    }


def latencies_on_one_thread(published, encoder):
    found = subprocess.run(
        [sys.executable, __file__, published.path, encoder.path],
        env={
            **os.environ,
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
        },
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(found.stdout)


def main():
    model, encoder = build()
    weights = sum(v.value.numpy().nbytes for v in model.variables)
    with tempfile.TemporaryDirectory() as folder:
        exports = [
            timed(keras_mgda.export_saved_model, model, f"{folder}/mgda")
            for _ in range(3)
        ]
        published = exports[-1][1]
        keras_seconds, _ = timed(
            lambda: model.export(f"{folder}/keras", verbose=False)
        )
        keras_bytes = sum(
            file.stat().st_size
            for file in Path(folder, "keras").rglob("*")
            if file.is_file()
        )
        alone = keras_mgda.export_saved_model(encoder, f"{folder}/encoder")
        median = latencies_on_one_thread(published, alone)
    heads = median["serving_default"] - median["encoder"]
    single = [s for name, s in median.items() if name.startswith("predict_")]
    results = {
        "tasks": TASKS,
        "cores": os.cpu_count(),
        "weights_bytes": weights,
        "graph_bytes": published.graph_bytes,
        "artifact_bytes": published.total_bytes,
        "artifact_less_graph_over_weights": round(
            (published.total_bytes - published.graph_bytes) / weights, 4
        ),
        "keras_export_over_weights": round(keras_bytes / weights, 4),
        "export_seconds": round(statistics.median(t for t, _ in exports), 2),
        "keras_export_seconds": round(keras_seconds, 2),
        "latency_milliseconds": median,
        "heads_milliseconds": round(heads, 2),
        "predict_task_less_encoder_over_heads": round(
            (statistics.median(single) - median["encoder"]) / heads, 4
        ),
        "one_over_tasks": round(1 / TASKS, 4),
    }
    text = json.dumps(results, indent=2)
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(latencies(*sys.argv[1:])))
    else:
        main()
