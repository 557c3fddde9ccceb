"""The file of results: a line of JSON for each training that ended."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from keras_mgda.comparison.problem import Line, Training, key
from keras_mgda.comparison.settings import described

# Every line begins so, and what does not is not one of ours.
_BEGINNING = b'{"comparison": 1, '


def versions() -> dict[str, str]:
    """Of what the results may depend on."""
    found = {"python": platform.python_version()}
    for package in ("keras", "numpy"):
        found[package] = importlib.metadata.version(package)
    found["tensorflow"] = tf.__version__
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["keras_mgda"] = importlib.metadata.version("keras_mgda")
    return found


def append(path: pathlib.Path, line: Mapping[str, Any]) -> None:
    """Writes a whole line, or nothing.

    Raises:
        OSError: if it cannot be written.
    """
    text = json.dumps({"comparison": 1, **line}, allow_nan=False) + "\n"
    content = text.encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    size = os.fstat(file).st_size
    try:
        written = os.write(file, content)  # at once: others may append, too
        if written < len(content):
            raise OSError(f"only {written} of {len(content)} bytes fitted")
        os.fsync(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        raise OSError(
            error.errno,
            "The result of a training must be written. Received: "
            f"{error.strerror or error}. Make room on the disk and call "
            "`compare` again: what was written is not repeated.",
            str(path),
        ) from error
    finally:
        os.close(file)


def read(path: str | os.PathLike[str]) -> list[Line]:
    """The lines, without one that was torn as its process was killed.

    Raises:
        ValueError: if the file is not one of results.
    """
    lines: list[Line] = []
    content = pathlib.Path(path).read_bytes()
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        ours = _BEGINNING.startswith(text[: len(_BEGINNING)])
        try:
            line = json.loads(text)
            whole = "settings" in line
        except (ValueError, TypeError):
            whole = False
        if ours and not whole and not text.endswith(b"\n"):
            break
        if not whole or not ours:
            raise ValueError(
                "`results` must be a file that `compare` wrote, or a new one. "
                f"Received: {path}, whose line {number} is no training. Take "
                "another path."
            )
        lines.append(line)
    return lines


def of_data(lines: Iterable[Line], name: str) -> dict[str, Line]:
    """`{key: line}` of the data of this name; of equal keys the first."""
    found: dict[str, Line] = {}
    for line in lines:
        if line["data"] == name:
            found.setdefault(key(line), line)
    return found


def go_on(
    path: pathlib.Path,
    name: str,
    settings: Mapping[str, Any],
    planned: Iterable[Training],
) -> dict[str, Line]:
    """`{key: line}` of the trainings that ended, of the data of this name.

    Makes the file, or takes a torn line off its end: others can be appended.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if settings, or the options of a method, were others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("ab").close()
    lines = read(path)
    finished = of_data(lines, name)
    options: dict[str, list[Any]] = {}
    for run in planned:
        options.setdefault(run.method, []).append(described(run.options))
    for line in finished.values():
        before = line["settings"]
        differ = [
            f"`{name}` was {before.get(name)!r} and is {settings.get(name)!r}"
            # Not what an older version did not note.
            for name in before
            if before[name] != settings.get(name)
        ]
        if differ:
            raise ValueError(
                "A comparison must go on with the settings of its start. "
                f"Received: {'; '.join(differ)}. Take another path than "
                f"{path}, or another `name` for the data."
            )
        method = line["method"]
        if method in options and line["options"] not in options[method]:
            raise ValueError(
                "A method must keep its options. Received: "
                f"{options[method][0]} for {method!r}, which was trained with "
                f"{line['options']}. Give it another name."
            )
    now = versions()
    older = [run for run in finished.values() if run["versions"] != now]
    if older:
        warnings.warn(
            f"{len(older)} of the trainings in {path} were run with other "
            f"versions, {older[0]['versions']}, than now, {now}.",
            stacklevel=3,
        )
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        if len(lines) > content.count(b"\n"):  # only its end was missing
            with path.open("ab") as file:
                file.write(b"\n")
        else:
            os.truncate(path, content.rfind(b"\n") + 1)
    return finished
