"""Version folders: how one is written, appears, and goes away.

TensorFlow Serving watches a folder such as `saved_models/mtl` and takes each
child whose name is a number for a version. It does not look whether that child
is complete, and one that is not costs it minutes of retries, or worse, loads.
So a version is written in a hidden folder beside the others, forced to disk,
and then appears with one `rename`. Nothing here knows what a version contains
but for the file without which it is none.
"""

import contextlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: abandoned folders are then never removed.
    fcntl = None  # type: ignore[assignment]

GRAPH = "saved_model.pb"

_HIDDEN = ".export-"


def list_versions(directory: str | os.PathLike[str]) -> dict[int, Path]:
    """The versions in a folder, by number, as TensorFlow Serving counts them.

    The server reads a name with `absl::SimpleAtoi`, which takes a sign, leading
    zeros and blanks: `0003` and `+3` are version 3 as well. Files count too.

    Args:
        directory: The folder of versions. One that does not exist has none.

    Returns:
        `{number: path}` in ascending order.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return {}
    found = {
        int(child.name): child
        for child in directory.iterdir()
        if re.fullmatch(r"\s*[+-]?[0-9]+\s*", child.name)
        and -(2**63) <= int(child.name) < 2**63
    }
    return dict(sorted(found.items()))


def free_number(directory: Path, version: int | None = None) -> int:
    """The number that a new version gets.

    Args:
        directory: The folder of versions.
        version: The number to take. `None` is one more than the greatest.

    Raises:
        FileExistsError: `version` exists.
        ValueError: The greatest number that a server reads exists.
    """
    taken = list_versions(directory)
    if version in taken:
        raise FileExistsError(
            "A version that exists is never overwritten: a server may be "
            f"reading it. Received: version={version}, and {taken[version]} "
            "exists. Leave `version` out to take the next number, or remove "
            "that one first."
        )
    number = version or max([0, *taken]) + 1
    if number >= 2**63:
        raise ValueError(
            "The next number must be below 2**63, for a server to read it. "
            f"Received: {directory} with {taken[number - 1]}. Give `version`, "
            "or remove that one."
        )
    return number


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """A path to write a version at, unseen by servers, gone on leaving.

    Folders that dead processes left behind are removed first.
    """
    _remove_abandoned(directory)
    with _hidden_folder(directory) as hidden:
        # The version itself is one level down: a temporary folder is private
        # to its user, a published one must be readable by the server's.
        yield hidden / "version"


def publish(staged: Path, directory: Path, version: int | None = None) -> int:
    """Makes a finished folder appear as a version, with one rename.

    Renaming onto a folder that is not empty fails, on every POSIX system. So
    when two processes want the same number, one of them gets it and the other
    takes the next.

    Args:
        staged: The complete folder, in the same file system.
        directory: The folder of versions.
        version: The number to take. `None` is one more than the greatest.

    Returns:
        The number it got.

    Raises:
        FileExistsError: `version` exists.
        ValueError: The greatest number that a server reads exists.
    """
    _sync_tree(staged)
    while True:
        number = free_number(directory, version)
        target = directory / str(number)
        try:
            os.rename(staged, target)
        except OSError:
            # Either another process was faster, which the next round sees, or
            # the disk refuses.
            if not os.path.lexists(target):
                raise
            continue
        try:
            _sync(directory)
        except OSError as error:  # Servers see it; only a crash can undo it.
            warnings.warn(
                f"Version {number} is published, but {directory} could not be "
                f"forced to disk: {error}",
                stacklevel=3,
            )
        return number


def prune(directory: Path, keep: int, published: int) -> list[int]:
    """Removes all but the `keep` greatest versions and the published one.

    Each is first renamed out of sight, so that no server sees half of one. What
    has a number for a name and holds no SavedModel is left alone.

    Returns:
        The numbers removed.
    """
    versions = {
        number: path
        for number, path in list_versions(directory).items()
        if (path / GRAPH).is_file()
    }
    kept = {published, *list(versions)[-keep:]}
    removed = []
    with _hidden_folder(directory) as hidden:
        for number, path in versions.items():
            if number not in kept:
                with contextlib.suppress(FileNotFoundError):  # Done by another.
                    os.rename(path, hidden / str(number))
                    removed.append(number)
    return removed


@contextlib.contextmanager
def _hidden_folder(directory: Path) -> Iterator[Path]:
    """A new hidden folder, locked for as long as this process uses it."""
    while True:
        hidden = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=directory))
        # Between its making and its locking, another process may take it for
        # an abandoned one.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = _lock(hidden)
            if hidden.exists():
                break
            _unlock(lock)
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        _unlock(lock)


def _remove_abandoned(directory: Path) -> None:
    """Removes the hidden folders of processes that died.

    The kernel drops a process's locks when it dies, however it dies. A process
    number would not do: it is given again, and means nothing across containers
    that share a volume. Those of other users are theirs to remove.
    """
    for hidden in directory.glob(f"{_HIDDEN}*"):
        with contextlib.suppress(
            BlockingIOError, FileNotFoundError, PermissionError
        ):
            lock = _lock(hidden)
            if lock is not None:
                shutil.rmtree(hidden, ignore_errors=True)
                _unlock(lock)


def _lock(folder: Path) -> int | None:
    """Locks a folder; `None` where the file system has no locks.

    Raises:
        BlockingIOError: A living process holds it.
        FileNotFoundError: It is gone.
        PermissionError: It is another user's.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Forces a file or folder to disk: a rename may reach it before data."""
    if os.name == "nt":  # Has no handle for folders.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
