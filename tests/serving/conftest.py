"""Published models, and the C library that they are asked through."""

import functools
import subprocess
import sys

import numpy as np
import pytest

import keras_mgda
from tests.support.serving.running import C_LOADER, tensorflow_folder
from tests.support.serving.served_models import MODELS, only


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Publishes the model of a name, once for all tests that only read it.

    A function from the name to the model, its rows, and what was written.
    """

    @functools.cache
    def publish(name):
        model, rows = MODELS[name]()
        folder = tmp_path_factory.mktemp("saved_models") / name
        given = only(rows) if len(rows) == 1 else rows
        written = keras_mgda.export_saved_model(model, folder, warmup=given)
        return model, rows, written

    return publish


@pytest.fixture
def ask_c_library(tmp_path):
    """Asks a published model through TensorFlow's C library.

    A function from a path and requests `[(signature, {input: array})]` to the
    answers, each `{output: array}` or the message of an error.
    """

    def ask(path, requests, *options, libraries=None):
        files = tmp_path / "requests.npz", tmp_path / "answers.npz"
        np.savez(
            files[0],
            **{
                f"{number}|{signature}|{name}": array
                for number, (signature, inputs) in enumerate(requests)
                for name, array in inputs.items()
            },
        )
        command = [C_LOADER, libraries or tensorflow_folder(), path]
        subprocess.run(
            [sys.executable, *command, *files, *options],
            check=True,
            capture_output=True,
            text=True,
        )
        answers = [{} for _ in requests]
        for key, array in np.load(files[1], allow_pickle=True).items():
            number, name = key.split("|")
            answers[int(number)][name] = array
        return [str(a["!"]) if "!" in a else a for a in answers]

    return ask
