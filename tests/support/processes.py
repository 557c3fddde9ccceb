"""Runs modules in processes of their own, alone or as workers."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

JOB = "tests.support.replica_job"
ROOT = pathlib.Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        result: what the job returned; `None` if it did not return.
        code: the exit code, `-9` if it was killed.
        output: all that it printed.
    """

    result: dict
    code: int
    output: str


def alone(*arguments, seconds=120, module=JOB):
    (ended,) = run([None], [module, *arguments], seconds)
    return ended


def workers(*arguments, number=2, seconds=240, module=JOB):
    """The same on several workers of one cluster."""
    ports = free_ports(number)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    configs = [
        {"cluster": cluster, "task": {"type": "worker", "index": index}}
        for index in range(number)
    ]
    return run(configs, [module, *arguments], seconds)


def run(configs, command, seconds):
    """One process for each `TF_CONFIG`. None of them outlives the call.

    Raises:
        AssertionError: if they take more than so many seconds.
    """
    with contextlib.ExitStack() as stack:
        outputs = [
            stack.enter_context(tempfile.TemporaryFile("w+")) for _ in configs
        ]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                env=environment(config),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for config, output in zip(configs, outputs, strict=True)
        ]
        deadline = time.monotonic() + seconds
        try:
            for process in started:
                process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            alive = [process for process in started if process.poll() is None]
            for process in alive:
                process.kill()
                process.wait()
        ended = [
            _ended(process, output)
            for process, output in zip(started, outputs, strict=True)
        ]
    assert not alive, "\n".join(
        [
            f"{len(alive)} still ran after {seconds} s",
            *(e.output for e in ended),
        ]
    )
    return ended


def environment(config=None):
    """Of a process that finds this folder; alone, or a worker."""
    variables = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    variables.pop("TF_CONFIG", None)
    if config:
        variables["TF_CONFIG"] = json.dumps(config)
    return variables


def _ended(process, output):
    output.seek(0)
    text = output.read()
    found = [line for line in text.splitlines() if line.startswith("RESULT ")]
    result = json.loads(found[-1].removeprefix("RESULT ")) if found else None
    return Ended(result, process.returncode, text)


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
