"""Version folders appear whole, one number each, whatever happens."""

import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keras_mgda.serving import versions
from tests.support.serving.version_folders import (
    hidden,
    is_whole,
    publish,
    write,
)


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


def test_the_greatest_number_has_no_next(tmp_path):
    assert publish(tmp_path, version=2**63 - 1) == 2**63 - 1
    with pytest.raises(ValueError, match=r"below 2\*\*63.*/92233\d+. Give"):
        publish(tmp_path)
    assert publish(tmp_path, version=1) == 1
    assert not hidden(tmp_path)


def test_a_folder_that_cannot_be_forced_to_disk_is_no_failure(
    tmp_path, monkeypatch
):
    sync = versions._sync

    def refuse(path):
        if path == tmp_path:
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(path)

    monkeypatch.setattr(versions, "_sync", refuse)
    with pytest.warns(UserWarning, match=r"Version 1 is published.*Invalid"):
        assert publish(tmp_path) == 1
    assert is_whole(tmp_path / "1")


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


def test_what_is_no_saved_model_is_left_alone(tmp_path):
    (tmp_path / "2023").mkdir()
    (tmp_path / "2023" / "data.csv").write_text("precious")
    (tmp_path / "2024").write_text("a file")
    for number in (1, 2, 3):
        write(tmp_path / str(number))
    assert versions.prune(tmp_path, 1, 3) == [1, 2]
    assert list(versions.list_versions(tmp_path)) == [3, 2023, 2024]
    assert (tmp_path / "2023" / "data.csv").exists()


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
