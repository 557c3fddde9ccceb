"""What dead writers left behind goes, and what living ones write stays."""

import errno
import random
import signal
import subprocess
import sys
import time

import pytest

from keras_mgda.serving import versions
from tests.support.serving.version_folders import (
    FILES,
    hidden,
    is_whole,
    publish,
    write,
)

# The folder's module alone: importing TensorFlow for each victim takes seconds.
WRITER = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("versions", sys.argv[1])
versions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(versions)
directory = Path(sys.argv[2])
print("ready", flush=True)
while True:
    with versions.staging(directory) as staged:
        for name in {files!r}:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(b"x" * 100_000)
        number = versions.publish(staged, directory)
    versions.prune(directory, 3, number)
"""


@pytest.mark.parametrize(
    "kills", [5, pytest.param(100, marks=pytest.mark.slow)]
)
def test_a_killed_writer_leaves_no_half_version(kills, tmp_path):
    rng = random.Random(0)
    for _ in range(kills):
        writer = subprocess.Popen(
            [
                sys.executable,
                "-c",
                WRITER.format(files=FILES),
                versions.__file__,
                str(tmp_path),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert all(map(is_whole, versions.list_versions(tmp_path).values()))
    last = publish(tmp_path)
    assert last == max(versions.list_versions(tmp_path))
    assert not hidden(tmp_path), "what the dead left behind is removed"


def test_the_folder_of_a_living_writer_is_left_alone(tmp_path):
    with versions.staging(tmp_path) as staged:
        write(staged)
        assert publish(tmp_path) == 1  # Removes what the dead left behind.
        assert is_whole(staged)
        assert versions.publish(staged, tmp_path) == 2


def test_what_another_user_left_behind_is_no_obstacle(tmp_path, monkeypatch):
    theirs = tmp_path / ".export-theirs"
    theirs.mkdir()
    lock = versions._lock

    def theirs_is_private(folder):
        if folder == theirs:
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return lock(folder)

    monkeypatch.setattr(versions, "_lock", theirs_is_private)
    assert publish(tmp_path) == 1
    assert hidden(tmp_path) == [theirs]


def test_a_new_folder_taken_for_an_abandoned_one_is_replaced(
    tmp_path, monkeypatch
):
    """A cleaner may lock it, or remove it, before its maker locks it."""
    lock, attacks = versions._lock, iter(["locked", "removed"])

    def attacked(folder):
        attack = next(attacks, None)
        if attack == "locked":
            raise BlockingIOError
        if attack == "removed":
            folder.rmdir()
        return lock(folder)

    with monkeypatch.context() as patch:
        patch.setattr(versions, "_lock", attacked)
        with versions.staging(tmp_path) as staged:
            write(staged)
            assert versions.publish(staged, tmp_path) == 1
    assert next(attacks, None) is None
    assert is_whole(tmp_path / "1")


def test_without_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "fcntl", None)
    with versions.staging(tmp_path) as staged:
        write(staged)
        assert publish(tmp_path) == 1
        assert is_whole(staged)


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(versions.fcntl, "flock", refuse)
    with versions.staging(tmp_path) as staged:
        write(staged)
        assert publish(tmp_path) == 1
        assert is_whole(staged)
