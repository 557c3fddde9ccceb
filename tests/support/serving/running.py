"""Processes that run published models: the C loader and the stand-in server."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
C_LOADER = HERE / "c_loader.py"


def wait_until(condition):
    """Waits for a condition, however long the machine takes."""
    while not condition():
        time.sleep(0.01)


def tensorflow_folder():
    return Path(importlib.util.find_spec("tensorflow").origin).parent


@contextlib.contextmanager
def model_server(*arguments):
    """Serves folders of versions; yields `{"grpc": port, "rest": port}`."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.support.serving.model_server"),
            *(*map(str, arguments), "--poll-seconds", "0.05"),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.communicate(timeout=30)
