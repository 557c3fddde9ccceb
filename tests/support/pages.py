"""The Python on pages for readers: the README and the folder `docs`."""

import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.support.processes import ROOT, environment

SECONDS = 240  # of a script that hangs; none takes a quarter of it
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A block of Python on a page.

    Attributes:
        line: of the page, on which the code begins.
        code: what stands in it.
    """

    line: int
    code: str


def python_blocks(page):
    text = page.read_text()
    return [
        Block(text.count("\n", 0, found.start(1)) + 1, found[1])
        for found in re.finditer(r"(?ms)^```python\n(.*?)^```", text)
    ]


def check_printed(printed, blocks):
    """Numbers are printed as their comments say: `print(...)  # [0.5, 2.0]`.

    Raises:
        AssertionError: if they are not.
    """
    code = "\n".join(block.code for block in blocks)
    said = re.findall(r"(?m)^print\(.*# \[([-0-9., ]*)\]$", code)
    if not said:
        return
    found = re.findall(r"\[([-+0-9.e ]*)\]", printed)
    for numbers, expected in zip(found, said, strict=True):
        assert [float(n) for n in numbers.split()] == pytest.approx(
            [float(n) for n in expected.split(",")]
        )


def check_shown(printed, page):
    """What a page shows in a block of text, its code has printed.

    Raises:
        AssertionError: if it has not.
    """
    for shown in re.findall(r"(?ms)^```text\n(.*?)^```", page.read_text()):
        assert shown in printed, f"{page} shows what is not printed:\n{shown}"


def run_blocks(page, folder, given="", blocks=None):
    """Runs the blocks of a page, one after another, as one script in a folder.

    It has a process of its own, as the script of a reader has: strategies, and
    processes that a page starts, need one. Lines are numbered as on the page.

    Args:
        page: its path.
        folder: an empty one, to write and run in.
        given: code that defines what the page takes for given.
        blocks: those to be run; all of them by default.

    Raises:
        AssertionError: if it fails, or prints something else than the page
            says.
    """
    blocks = python_blocks(page) if blocks is None else blocks
    lines = [f"exec({given!r})"]  # where a page has its title
    for line, code in blocks:
        lines += [""] * (line - 1 - len(lines)) + code.splitlines()
    script = folder / f"{page.stem}.py"
    script.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    check_printed(done.stdout, blocks)
    check_shown(done.stdout, page)
