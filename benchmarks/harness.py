"""What all benchmarks do: read arguments, take turns, write what they find.

Nothing here imports Keras, TensorFlow or PyTorch: `cost` and `many_tasks`
measure the memory of processes that import one of them, and Linux lets a
process that another one starts begin with the peak of its parent.
"""

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "figures"


def parser(doc, **numbers):
    """Options `--NUMBER`, with their defaults, and where to write."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    for name, default in numbers.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=type(default), default=default)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="a folder"
    )
    parser.add_argument(
        "--figures", type=Path, default=FIGURES, help="a folder"
    )
    return parser


def interleaved(
    calls,
    rounds,
    repeats=None,
    warm_up=0,
    seconds=math.inf,
    clock=None,
):
    """Times of calls that take turns, in an order that is drawn each round.

    Whatever else the machine does meets them all alike, so that ratios within
    a round are steadier than the times. None always follows the same other one,
    whose data it would find in the caches.

    Args:
        calls: `{name: function}`.
        rounds: how many times each is timed.
        repeats: `{name: calls in a row that are timed together}`, if not 1.
        warm_up: rounds before them, which do not count.
        seconds: after which no round begins.
        clock: what times are read from, by default `time.perf_counter`.

    Returns:
        `{name: [seconds of one call in each round]}`.
    """
    repeats, clock = repeats or {}, clock or time.perf_counter
    times = {name: [] for name in calls}
    order, rng = list(calls), random.Random(0)
    end = time.perf_counter() + seconds
    for _ in range(warm_up + rounds):
        rng.shuffle(order)
        for name in order:
            start = clock()
            for _ in range(repeats.get(name, 1)):
                calls[name]()
            elapsed = clock() - start
            times[name].append(elapsed / repeats.get(name, 1))
        if time.perf_counter() > end:
            break
    return {name: of_call[warm_up:] for name, of_call in times.items()}


def ratios(times, to):
    """Medians of the ratios within a round, `{name: float}`, to `times[to]`."""
    return {
        name: statistics.median(
            own / other for own, other in zip(of_call, times[to], strict=True)
        )
        for name, of_call in times.items()
    }


def medians(times):
    return {name: statistics.median(values) for name, values in times.items()}


def in_fresh_process(function, *arguments):
    """What a function of a module returns there.

    Training grows a process, and memory and first steps are those of a process
    that did nothing else before.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes():
    """The most memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def environment(*packages):
    """Versions and machine. Keras and TensorFlow are always among them."""
    distributions = importlib.metadata.packages_distributions()
    return {
        package: importlib.metadata.version(distributions[package][0])
        for package in ("tensorflow", "keras", *packages)
    } | {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}


def write(path, found, *packages):
    """Writes what was found, and where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(environment(*packages) | found, indent=1)
    path.write_text(text + "\n")


def load(path):
    return json.loads(path.read_text())


def lines(path):
    """Of a file that grows by a line for each result."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def once(path, asked, measure, *packages):
    """The line of a file that holds what was asked for.

    It is read, or measured and appended: a benchmark that was stopped goes on.

    Args:
        path: the file.
        asked: what the line is known by, `{name: value}`.
        measure: a function of nothing, that returns the rest of the line.
        *packages: whose versions belong to it.
    """
    for line in lines(path):
        if asked.items() <= line.items():
            return line
    line = asked | measure() | environment(*packages)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line
