"""Wrote the files beside it, with the version named in `version.txt`.

Each case is saved after five steps as a `.keras` file (with optimizer and
weighting state) and as a `.weights.h5` file; one of them is exported, too.
`expected.npz` holds what the model predicted then, and what it predicted after
five more steps. `test_earlier.py` loads all of it.

    python tests/conformance/earlier/write.py FOLDER
"""

import pathlib
import subprocess
import sys

import keras
import numpy as np

import keras_mgda
from keras_mgda import weightings

CASES = {
    "mgda": {"weighting": "mgda"},
    "gradnorm": {"weighting": weightings.GradNorm()},
    "famo": {"weighting": weightings.FAMO()},
    "kept": {
        "weighting": weightings.UPGrad(),
        "gradients": "parameters",
        "update_every": 3,
    },
    "verified": {"gradients": "verified", "verify": True},
    "unlabelled": {
        "weighting": weightings.MGDA("loss+", total="tasks"),
        "unlabelled": "nan",
    },
    "layers": {"weighting": {"a": 0.3, "b": 0.7}, "gradients": ["encoder"]},
}


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4)).astype("float32")
    return x, {"a": x[:, :1] * 2.0, "b": x.sum(1, keepdims=True)}


def model(**compile_options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="features")
    z = keras.layers.Dense(6, activation="tanh", name="encoder")(inputs)
    z = keras_mgda.SharedRepresentation(name="shared")(z)
    outputs = {t: keras.layers.Dense(1, name=t)(z) for t in ("a", "b")}
    made = keras_mgda.MGDAModel(inputs, outputs, name="two_tasks")
    made.compile(
        keras.optimizers.Adam(0.01),
        loss={"a": "mse", "b": keras.losses.Huber()},
        metrics={"a": "mae"},
        **compile_options,
    )
    return made


def train(trained, steps=5):
    x, y = data()
    for _ in range(steps):
        trained.train_on_batch(x, y)


def write(folder):
    folder = pathlib.Path(folder)
    expected = {}
    x, _ = data()
    for name, options in CASES.items():
        made = model(**options)
        train(made)
        made.save(folder / f"{name}.keras")
        made.save_weights(folder / f"{name}.weights.h5")
        if name == "mgda":
            keras_mgda.export_saved_model(made, folder / "served", version=1)
        for when in ("saved", "after"):
            for task, answer in made.predict(x, verbose=0).items():
                expected[f"{name}/{when}/{task}"] = answer
            train(made)
    np.savez_compressed(folder / "expected.npz", **expected)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    versions = f"keras {keras.__version__}, keras_mgda {commit}"
    (folder / "version.txt").write_text(versions)


if __name__ == "__main__":
    write(sys.argv[1])
