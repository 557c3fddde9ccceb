"""The harness of the benchmarks: turns, ratios, files, and processes."""

import itertools
import json
import os
import time

import pytest

from benchmarks import harness


def test_calls_take_turns(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    times = harness.interleaved(calls, 3, repeats={"b": 2}, warm_up=1)
    rounds = ["".join(seen[4 * i : 4 * i + 4]) for i in range(4)]
    assert all(sorted(turn) == list("abbc") for turn in rounds)
    assert all("bb" in turn for turn in rounds)
    assert times == {"a": [1, 1, 1], "b": [0.5, 0.5, 0.5], "c": [1, 1, 1]}


def test_each_call_follows_each_other_one():
    """Behind a large model every other one would find the caches empty."""
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    harness.interleaved(calls, 30)
    followed = set(itertools.pairwise(seen))
    assert {(x, y) for x in "abc" for y in "abc" if x != y} <= followed


def test_no_round_begins_when_time_is_up():
    times = harness.interleaved({"a": lambda: None}, 9, seconds=0)
    assert len(times["a"]) == 1


def test_ratios_are_within_a_round():
    """That of the medians would be 2 / 20."""
    times = {"ours": [1, 2, 30], "theirs": [20, 4, 60]}
    assert harness.ratios(times, "theirs") == {"ours": 0.5, "theirs": 1}


def test_a_result_is_measured_once(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    values = iter([1, 2])

    def ask(**asked):
        return harness.once(path, asked, lambda: {"value": next(values)})

    first = ask(method="a", seed=0)
    assert {"tensorflow", "keras", "machine"} < set(first)
    assert ask(method="a", seed=0) == first
    assert ask(method="a", seed=1)["value"] == 2
    assert [line["value"] for line in harness.lines(path)] == [1, 2]
    with pytest.raises(StopIteration):
        ask(method="b", seed=0)
    assert len(path.read_text().splitlines()) == 2  # nothing half


def test_a_fresh_process_is_another_one():
    assert harness.in_fresh_process(os.getpid) != os.getpid()
    assert harness.in_fresh_process(json.loads, "[1, 2]") == [1, 2]
    with pytest.raises(ZeroDivisionError):
        harness.in_fresh_process(divmod, 1, 0)


def test_options_keep_the_kind_of_their_defaults(tmp_path):
    parser = harness.parser("First.\nMore.", rounds=3, share=0.1, batch_size=2)
    args = parser.parse_args(["--share=1", f"--results={tmp_path}"])
    assert (args.rounds, args.share, args.batch_size) == (3, 1.0, 2)
    assert isinstance(args.share, float)
    assert args.results == tmp_path
    assert parser.description == "First."
