"""Versions on disks that fail, and with others at work."""

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import keras_mgda
from keras_mgda import serving
from keras_mgda.serving import export, versions
from tests.support.serving.running import wait_until
from tests.support.serving.served_models import mlp


def published_nothing(directory):
    return not directory.exists() or not list(directory.iterdir())


def test_versions_follow_each_other(tmp_path):
    model, _ = mlp()
    paths = [
        keras_mgda.export_saved_model(model, tmp_path, version).path.name
        for version in (None, 5, None, 3)
    ]
    assert paths == ["1", "5", "6", "3"]


def test_an_existing_version_is_not_touched(tmp_path):
    model, _ = mlp()
    published = keras_mgda.export_saved_model(model, tmp_path)
    before = (published.path / "saved_model.pb").read_bytes()
    with pytest.raises(FileExistsError, match=r"never overwritten.*version=1"):
        keras_mgda.export_saved_model(model, tmp_path, version=1)
    assert (published.path / "saved_model.pb").read_bytes() == before


def test_old_versions_are_removed(tmp_path):
    model, _ = mlp()
    for _ in range(4):
        keras_mgda.export_saved_model(model, tmp_path, keep=2)
    assert list(serving.list_versions(tmp_path)) == [3, 4]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_old_version_that_cannot_be_removed_is_no_failure(
    tmp_path, monkeypatch
):
    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(versions, "prune", refuse)
    with pytest.warns(UserWarning, match=r"Version 1 is published.*not yours"):
        published = keras_mgda.export_saved_model(mlp()[0], tmp_path, keep=1)
    assert published.path.exists()


def test_a_version_in_place_of_its_folder_is_refused(tmp_path):
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path)
    with pytest.raises(ValueError, match="a local folder of versions"):
        keras_mgda.export_saved_model(mlp()[0], published.path)


@pytest.mark.parametrize("directory", ["gs://bucket/mtl", "s3://bucket/mtl"])
def test_a_url_is_refused(directory):
    with pytest.raises(
        ValueError, match=r"a local folder.*copy saved_model.pb"
    ):
        keras_mgda.export_saved_model(mlp()[0], directory)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken_link").symlink_to(tmp_path / "none")
    for name in ("file", "broken_link"):
        with pytest.raises(ValueError, match=rf"a local folder.*/{name}'"):
            keras_mgda.export_saved_model(mlp()[0], tmp_path / name)


@pytest.fixture
def readable_folder():
    """A folder that every user may read and enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_folder_that_may_not_be_written(readable_folder):
    model, _ = mlp()
    directory = readable_folder / "mtl"
    directory.mkdir()
    directory.chmod(0o555)
    user = os.geteuid()
    if user == 0:  # Whom permissions do not stop.
        os.seteuid(65534)
    try:
        with pytest.raises(
            OSError, match=r"no version was published. Received: .*Permission"
        ):
            keras_mgda.export_saved_model(model, directory)
    finally:
        os.seteuid(user)
    assert published_nothing(directory)


@pytest.mark.parametrize("limit", [0, 2_000, 20_000])
def test_a_disk_that_is_full(limit, tmp_path):
    """Files cannot grow past a limit: requests, weights, or the graph."""
    model, _ = mlp()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="no version was published"):
            keras_mgda.export_saved_model(model, tmp_path / "mtl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert published_nothing(tmp_path / "mtl")
    assert keras_mgda.export_saved_model(model, tmp_path / "mtl")


@pytest.mark.parametrize(
    "failing", ["mkdir", "fsync", "rename", "write_warmup"]
)
def test_a_disk_that_fails_at_any_step(failing, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    if failing == "write_warmup":
        monkeypatch.setattr(export, failing, fail)
    elif failing == "mkdir":
        monkeypatch.setattr(Path, failing, fail)
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match=r"no version was published.*No space"):
        keras_mgda.export_saved_model(mlp()[0], tmp_path / "mtl")
    assert published_nothing(tmp_path / "mtl")


PUBLISHER = """
import sys
from tests.support.serving.served_models import mlp
import keras_mgda
model, _ = mlp()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    keras_mgda.export_saved_model(model, sys.argv[1])
    print("published", flush=True)
"""


def publisher(directory, times):
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, directory, str(times)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_two_processes_at_once_lose_no_version(tmp_path):
    processes = [publisher(tmp_path, times=3) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    found = serving.list_versions(tmp_path)
    assert list(found) == list(range(1, 7))
    for path in found.values():
        assert not serving.problems(serving.read(path))
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.slow
def test_a_killed_process_leaves_no_broken_version(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(10):
        process = publisher(tmp_path, times=100)
        process.stdin.write("go\n")
        process.stdin.flush()
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path)
    found = serving.list_versions(tmp_path)
    assert published.path == found[max(found)]
    assert list(found) == list(range(1, len(found) + 1))
    for path in found.values():
        assert not serving.problems(serving.read(path))
    assert len(list(tmp_path.iterdir())) == len(found)


@pytest.mark.parametrize(
    "publishes", [3, pytest.param(50, marks=pytest.mark.slow)]
)
def test_a_polling_reader_sees_whole_versions_only(publishes, tmp_path):
    """Once a number is there, so is every file that it will ever have."""
    done = threading.Event()
    first_seen = {}

    def poll():
        while not done.is_set():
            for number, path in serving.list_versions(tmp_path).items():
                if number not in first_seen:
                    first_seen[number] = files_of(path)

    reader = threading.Thread(target=poll)
    reader.start()
    model, _ = mlp()
    for _ in range(publishes):
        keras_mgda.export_saved_model(model, tmp_path)
    wait_until(lambda: len(first_seen) == publishes)
    done.set()
    reader.join()
    final = serving.list_versions(tmp_path)
    assert list(final) == list(range(1, publishes + 1))
    assert first_seen == {n: files_of(path) for n, path in final.items()}


def files_of(path):
    return {
        file.relative_to(path).as_posix(): file.stat().st_size
        for file in path.rglob("*")
        if file.is_file()
    }
