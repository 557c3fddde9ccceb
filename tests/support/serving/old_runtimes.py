"""Does an artifact load, and answer the same, under older TensorFlow runtimes?

    python -m tests.support.serving.old_runtimes [2.19.1 2.20.0 ...]

TensorFlow Serving lags TensorFlow, so a model is often served by an older
runtime than it was exported with. This publishes some models with the installed
TensorFlow and asks them through the C libraries of older ones, taken from their
wheels (about 250 MB each, from PyPI). Not part of the tests: it downloads.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

import keras_mgda
from tests.support.serving.running import C_LOADER
from tests.support.serving.served_models import MODELS, answers_of, only


def install(version, folder):
    """Unpacks the wheel of a version; returns the folder of its libraries."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run(
        [*pip, "--target", folder, f"tensorflow-cpu=={version}"], check=True
    )
    return folder / "tensorflow"


def ask(libraries, written, rows, folder):
    """What the C library of a runtime answers to every signature."""
    requests, answers = folder / "requests.npz", folder / "answers.npz"
    np.savez(
        requests,
        **{
            f"{name}|{name}|{key}": rows[key]
            for name, signature in written.signatures.items()
            for key in signature.inputs
        },
    )
    command = [C_LOADER, libraries, written.path, requests, answers]
    subprocess.run(
        [sys.executable, *command], check=True, stderr=subprocess.DEVNULL
    )
    return dict(np.load(answers, allow_pickle=True))


def main(versions):
    print(f"published with TensorFlow {tf.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        libraries = {v: install(v, folder / v) for v in versions}
        for name, build in MODELS.items():
            if name == "odd_names":
                continue
            model, rows = build()
            given = only(rows) if len(rows) == 1 else rows
            written = keras_mgda.export_saved_model(
                model, folder / name, warmup=given
            )
            expected = answers_of(model, rows)
            for version, library in libraries.items():
                found = ask(library, written, rows, folder)
                errors = [str(a) for key, a in found.items() if "|!" in key]
                difference = errors or max(
                    float(np.abs(array - expected[key.split("|")[1]]).max())
                    for key, array in found.items()
                )
                print(f"{version}  {name:16}  {difference}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["2.19.1", "2.20.0"])
