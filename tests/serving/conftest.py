"""Clients and servers for published models."""

import contextlib
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_mgda
from tests.support.serving.served_models import MODELS, only

HERE = Path(__file__).parent


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
        command = [HERE / "c_loader.py", libraries or tensorflow_folder(), path]
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


def tensorflow_folder():
    return Path(importlib.util.find_spec("tensorflow").origin).parent


@contextlib.contextmanager
def model_server(*arguments):
    """Serves folders of versions; yields `{"grpc": port, "rest": port}`."""
    command = [HERE / "model_server.py", *arguments, "--poll-seconds", "0.05"]
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.communicate(timeout=30)
