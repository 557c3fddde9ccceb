"""Version folders appear whole, one number each, whatever happens."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keras_mgda.serving import versions

FILES = ("saved_model.pb", "variables/variables.index", "assets.extra/warmup")


def write(folder, number_of_bytes=10):
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * number_of_bytes)


def publish(directory, version=None):
    with versions.staging(directory) as staged:
        write(staged)
        return versions.publish(staged, directory, version)


def is_whole(folder):
    return all((folder / name).exists() for name in FILES)


def hidden(directory):
    return [child for child in directory.iterdir() if child.name[0] == "."]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("1", 1),
        ("0003", 3),
        ("+4", 4),
        ("-1", -1),
        (" 5 ", 5),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("1.0", None),
        ("1.tmp", None),
        (".export-1", None),
        ("1e3", None),
        ("1_0", None),
        ("٣", None),
        ("", None),
    ],
)
def test_a_name_is_a_version_if_the_server_takes_it_for_one(
    name, number, tmp_path
):
    (tmp_path / name).mkdir(exist_ok=True)
    expected = {} if number is None else {number: tmp_path / name}
    assert versions.list_versions(tmp_path) == expected


def test_versions_are_listed_by_number_and_not_by_name(tmp_path):
    for name in ("10", "9", "100"):
        (tmp_path / name).mkdir()
    assert list(versions.list_versions(tmp_path)) == [9, 10, 100]


def test_a_folder_that_is_not_there_has_no_versions(tmp_path):
    assert versions.list_versions(tmp_path / "none") == {}


def test_the_next_number_is_one_more_than_the_greatest(tmp_path):
    assert publish(tmp_path) == 1
    (tmp_path / "0007").mkdir()
    assert publish(tmp_path) == 8
    (tmp_path / "-3").mkdir()
    (tmp_path / "20.tmp").mkdir()
    assert publish(tmp_path) == 9
    assert is_whole(tmp_path / "9")


def test_a_chosen_number_is_taken_once(tmp_path):
    assert publish(tmp_path, version=5) == 5
    (tmp_path / "5" / "saved_model.pb").write_text("first")
    with pytest.raises(FileExistsError, match=r"never overwritten.*version=5"):
        publish(tmp_path, version=5)
    assert (tmp_path / "5" / "saved_model.pb").read_text() == "first"
    assert not hidden(tmp_path)


@pytest.mark.parametrize("name", ["3", "0003", "+3"])
def test_another_spelling_of_a_number_is_that_number(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match="Received: version=3"):
        publish(tmp_path, version=3)


def test_a_published_folder_can_be_read_by_the_server_user(tmp_path):
    before = os.umask(0o022)
    try:
        publish(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "1").stat().st_mode & 0o777 == 0o755


def test_nothing_hidden_stays_behind(tmp_path):
    publish(tmp_path)

    def fail():
        with versions.staging(tmp_path) as staged:
            write(staged)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [child.name for child in tmp_path.iterdir()] == ["1"]


def test_a_number_taken_in_between_is_passed_over(tmp_path, monkeypatch):
    """The rename finds the number taken that the listing showed free."""
    rename, rivals = os.rename, iter([1, 2])

    def slower(source, target):
        with contextlib.suppress(StopIteration):
            write(tmp_path / str(next(rivals)))
        rename(source, target)

    monkeypatch.setattr(os, "rename", slower)
    assert publish(tmp_path) == 3
    assert list(versions.list_versions(tmp_path)) == [1, 2, 3]


def test_a_rename_that_the_disk_refuses_is_an_error(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        publish(tmp_path)
    assert not list(tmp_path.iterdir())


def test_writers_at_once_lose_no_version(tmp_path):
    start = threading.Barrier(8)

    def some(_):
        start.wait()
        return [publish(tmp_path) for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        numbers = [n for found in pool.map(some, range(8)) for n in found]
    assert sorted(numbers) == list(range(1, 81))
    assert list(versions.list_versions(tmp_path)) == list(range(1, 81))
    assert all(map(is_whole, versions.list_versions(tmp_path).values()))
    assert not hidden(tmp_path)


@pytest.mark.parametrize(
    ("before", "published", "keep", "after"),
    [
        ([1, 2, 3], 4, 2, [3, 4]),
        ([1, 2, 3], 4, 1, [4]),
        ([1, 2, 3], 4, 9, [1, 2, 3, 4]),
        ([5, 6], 2, 1, [2, 6]),
        ([5, 6], 2, 2, [2, 5, 6]),
        ([-1, 7], 8, 2, [7, 8]),
    ],
)
def test_the_newest_and_the_published_version_are_kept(
    before, published, keep, after, tmp_path
):
    for number in (*before, published):
        write(tmp_path / str(number))
    removed = versions.prune(tmp_path, keep, published)
    assert list(versions.list_versions(tmp_path)) == after
    assert sorted([*removed, *after]) == sorted([*before, published])
    assert not hidden(tmp_path)


def test_a_version_that_another_removed_is_no_error(tmp_path, monkeypatch):
    for number in (1, 2, 3):
        write(tmp_path / str(number))
    rename = os.rename

    def too_late(source, target):
        if Path(source).name == "1":
            raise FileNotFoundError(errno.ENOENT, "gone", source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", too_late)
    assert versions.prune(tmp_path, 1, 3) == [2]


def test_a_reader_never_sees_half_of_a_version(tmp_path):
    """Neither of one that comes nor of one that goes."""
    done = threading.Event()
    partial = []

    def look():
        while not done.is_set():
            for path in versions.list_versions(tmp_path).values():
                try:
                    found = {f.name for f in path.iterdir()}
                except FileNotFoundError:
                    continue  # It went as a whole.
                if len(found) < 3 and path.exists():
                    partial.append((path, found))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(60):
        number = publish(tmp_path)
        versions.prune(tmp_path, 2, number)
    done.set()
    reader.join()
    assert not partial


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
    "kills", [10, pytest.param(100, marks=pytest.mark.slow)]
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
