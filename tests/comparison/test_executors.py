import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future

import keras
import pytest

from keras_mgda.comparison import Comparison, FreshProcesses, InProcess, compare
from keras_mgda.comparison.executors import run_all
from tests.support import comparison_job
from tests.support.comparison_job import arguments
from tests.support.comparison_lines import read_lines, without_time


def fails_at_a_rate(rate):
    if rate == 0.1:
        raise OSError("no such rate")
    return keras.optimizers.Adam(rate)


@pytest.mark.slow
def test_a_training_that_fails_ends_it_and_keeps_the_others(tmp_path):
    path = tmp_path / "runs.jsonl"
    given = arguments(
        path, optimizer=fails_at_a_rate, methods=[], executor=InProcess()
    )
    with pytest.raises(RuntimeError, match=r"(?s)no such rate.*goes on from"):
        compare(**given)
    assert len(read_lines(path)) == 2


def test_nothing_is_left_of_what_ran_in_this_process():
    left = []

    def run():
        model = keras.Sequential([keras.layers.Dense(1)])
        model.itself = model
        left.append(weakref.ref(model))

    gc.disable()
    try:
        InProcess().submit(run).result()
    finally:
        gc.enable()
    assert left[0]() is None


@pytest.mark.slow
def test_processes_find_the_same(tmp_path):
    here = compare(**arguments(tmp_path / "here", executor=InProcess()))
    there = compare(**arguments(tmp_path / "there", executor=2))
    assert [(r.method, r.chosen) for r in here.rows] == [
        (r.method, r.chosen) for r in there.rows
    ]
    for left, right in zip(here.rows, there.rows, strict=True):
        assert vars(left.delta_m) == pytest.approx(
            vars(right.delta_m), abs=1e-2
        )


def pid(_=None):
    return os.getpid()


@pytest.mark.slow
def test_every_call_has_a_process_of_its_own():
    with FreshProcesses(2) as executor:
        found = list(executor.map(pid, range(3)))
    assert len({*found, os.getpid()}) == 4


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_takes_no_other_with_it():
    with FreshProcesses(1) as executor:
        killed, other = executor.submit(kill_me), executor.submit(pid)
        with pytest.raises(Exception, match="terminated abruptly"):
            killed.result()
        assert other.result() != os.getpid()


@pytest.mark.slow
def test_a_process_that_ends_before_its_training_says_why(tmp_path):
    given = arguments(tmp_path / "runs.jsonl", build=kill_me)
    with pytest.raises(RuntimeError, match=r"was killed.*__main__.*goes on"):
        compare(**given)


@pytest.mark.slow
def test_dask_finds_the_same(tmp_path):
    """Where the threads of Dask, which draw from Python's random numbers while
    a model is built, have no say in its initial weights."""
    distributed = pytest.importorskip("distributed")
    seeded = {"build": functools.partial(comparison_job.build, 1, 2, 3)}
    here = compare(
        **arguments(tmp_path / "here", executor=InProcess(), **seeded)
    )
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = compare(
            **arguments(
                tmp_path / "there", executor=client.get_executor(), **seeded
            )
        )
    for left, right in zip(here.rows, there.rows, strict=True):
        assert (left.method, left.chosen) == (right.method, right.chosen)
        assert vars(left.delta_m) == pytest.approx(
            vars(right.delta_m), abs=1e-2
        )


@pytest.mark.slow
def test_a_killed_comparison_goes_on(tmp_path):
    """Killed without warning after its fourth line; no process outlives it."""
    path, whole = tmp_path / "runs.jsonl", tmp_path / "whole.jsonl"
    command = [sys.executable, comparison_job.__file__]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path))
    }
    process = subprocess.Popen([*command, path, "2"], env=environment)
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = path.read_bytes()
    outputs = [
        subprocess.run(
            [*command, results, "2"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for results in (path, whole)
    ]
    assert path.read_bytes().startswith(before[: before.rindex(b"\n")])
    assert len(read_lines(path)) == len(read_lines(whole)) == 9
    found = [without_time(Comparison.read(p)) for p in (path, whole)]
    assert found[0] == found[1]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]


def test_an_error_ends_what_did_not_begin_and_notes_what_runs():
    failed, running, late = futures = [Future() for _ in range(3)]
    failed.set_exception(OSError("no room"))
    running.set_running_or_notify_cancel()
    noted = []

    def note(number, future):
        if future is failed:
            threading.Timer(0.1, running.set_result, ["ended"]).start()
        noted.append((number, future.result()))

    # Submitted in an order in which the failure is seen last.
    with pytest.raises(OSError, match="no room"):
        run_all([running, late, failed].__getitem__, range(3), note)
    assert noted == [(0, "ended")]
    assert late.cancelled()
    assert all(future.done() for future in futures)
