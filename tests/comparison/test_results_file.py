import errno
import functools
import json
import os

import keras
import pytest

import keras_mgda
from keras_mgda.comparison import Comparison, InProcess, compare, training
from tests.support.comparison_job import arguments, split
from tests.support.comparison_lines import read_lines, without_time
from tests.support.refusal import refused


@pytest.mark.slow
def test_every_method_has_as_many_trainings(studied):
    given, found = studied
    runs = read_lines(given["results"])
    number = {}
    for run in runs:
        key = run["method"], run["task"]
        number[key] = number.get(key, 0) + 1
    assert number == {
        ("reference", None): 1,
        ("single tasks", "a"): 4,
        ("single tasks", "b"): 4,
        ("plain sum", None): 4,
    }
    for run in runs[1:]:
        assert {"data", "seed", "learning_rate", "validation", "test"} < set(
            run
        )
        assert run["seconds"] > 0
        assert run["versions"]["keras"] == keras.__version__
        assert all(v > 0 for v in run["test"].values())
        assert 1 <= run["epoch"] <= run["epochs"] == 2
    assert Comparison.read(given["results"]).table == found.table


@pytest.mark.slow
def test_a_torn_comparison_goes_on(studied, tmp_path):
    """Killed as it wrote a line, and called again."""
    given, found = studied
    content = given["results"].read_bytes().splitlines(keepends=True)
    path = tmp_path / "runs.jsonl"
    whole = content[:-2]
    path.write_bytes(b"".join(whole) + content[-2][:100])
    with refused("the same search"):
        Comparison.read(path)
    again = compare(**given | {"results": path})
    assert path.read_bytes().startswith(b"".join(whole))
    assert len(read_lines(path)) == len(content)
    assert without_time(again) == without_time(found)
    # Once more: nothing is left to do.
    size = path.stat().st_size
    assert compare(**given | {"results": path}).table == again.table
    assert path.stat().st_size == size


@pytest.mark.slow
def test_seeds_may_be_added(studied, tmp_path):
    given, _ = studied
    path = tmp_path / "runs.jsonl"
    methods = {"plain sum": None}
    kept = [
        line
        for line in given["results"].read_text().splitlines(keepends=True)
        if json.loads(line)["method"] in ("reference", "plain sum")
    ]
    path.write_text("".join(kept))
    changes = {"results": path, "methods": methods, "seeds": [0, 1, 2]}
    found = compare(**given | changes)
    assert len(read_lines(path)) == len(kept) + 2
    assert found.seeds == [0, 1, 2]


def wider():
    inputs = keras.Input((4,))
    z = keras.layers.Dense(7, activation="tanh")(inputs)
    return keras.Model(inputs, {t: keras.layers.Dense(1)(z) for t in "ab"})


def crossed():
    """The layers of `build`, of which one reads another one."""
    inputs = keras.Input((4,))
    one = keras.layers.Dense(3, activation="relu")(inputs)
    z = keras_mgda.SharedRepresentation()(one)
    other = keras.layers.Dense(3)(z)
    last = {"a": other, "b": z}
    return keras.Model(
        inputs, {t: keras.layers.Dense(1)(last[t]) for t in "ab"}
    )


def straight():
    inputs = keras.Input((4,))
    one = keras.layers.Dense(3, activation="relu")(inputs)
    z = keras_mgda.SharedRepresentation()(one)
    other = keras.layers.Dense(3)(z)
    last = {"a": z, "b": other}
    return keras.Model(
        inputs, {t: keras.layers.Dense(1)(last[t]) for t in "ab"}
    )


def test_connections_tell_networks_of_the_same_layers_apart():
    first, second = straight(), crossed()
    assert training._digest(first) == training._digest(second)
    assert training._connections(first) != training._connections(second)
    assert training._connections(first) == training._connections(straight())


@pytest.mark.sample(1)
def test_other_settings_are_refused(studied):
    given, _ = studied
    before = given["results"].read_bytes()
    for changes, message in (
        ({"epochs": 4}, "`epochs` was 2 and is 4"),
        ({"train": functools.partial(split, 5)}, "`splits` was"),
        ({"batch_size": 8}, "`batch_size` was 16 and is 8"),
        ({"learning_rates": [0.1, 0.01]}, "`reference_training` was"),
        ({"build": wider}, "`network` was"),
        (
            {"select": {"a": ("mae", "min"), "b": ("mae", "min")}},
            "`select` was",
        ),
    ):
        with refused(message):
            compare(**given | changes)
    assert given["results"].read_bytes() == before


def momentum(beta):
    def optimizer(learning_rate):
        return keras.optimizers.Adam(learning_rate, beta_1=beta)

    return optimizer


def test_an_optimizer_is_known_by_its_settings(tmp_path):
    """And not by its name alone."""
    given = arguments(
        tmp_path / "runs.jsonl",
        methods=["plain sum"],
        learning_rates=[0.01],
        seeds=[0],
        epochs=1,
        executor=InProcess(),
    )
    compare(**given | {"optimizer": momentum(0.9)})
    with refused("`optimizer_settings` was"):
        compare(**given | {"optimizer": momentum(0.5)})


def test_a_file_of_before_is_gone_on_with(studied, tmp_path):
    """What its lines do not hold is not compared."""
    given, found = studied
    older = tmp_path / "older.jsonl"
    lines = map(json.loads, given["results"].read_text().splitlines())
    with older.open("w") as file:
        for line in lines:
            del line["settings"]["connections"]
            file.write(json.dumps(line) + "\n")
    assert compare(**given | {"results": older}).table == found.table


def test_a_method_keeps_its_options(studied, tmp_path):
    given, _ = studied
    lines = read_lines(given["results"])
    for line in lines:
        if line["method"] == "plain sum":
            line["method"] = "mine"
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"results": path, "methods": {"mine": {"weighting": "upgrad"}}}
    with refused("must keep its options"):
        compare(**given | changes)


@pytest.mark.slow
def test_a_name_takes_other_data_to_the_same_file(studied, tmp_path):
    given, _ = studied
    path = tmp_path / "runs.jsonl"
    path.write_bytes(given["results"].read_bytes())
    other = functools.partial(split, 7)
    few = {"methods": [], "learning_rates": [0.01], "seeds": [0]}
    changes = {"results": path, "name": "other", "train": other}
    compare(**given | changes | few)
    names = {"data", "other"}
    assert {line["data"] for line in read_lines(path)} == names
    assert len(Comparison.read(path, "other").rows) == 1
    with refused("`name` must be that of the data"):
        Comparison.read(path)


@pytest.mark.slow
def test_a_full_disk_tears_no_line(studied, tmp_path, monkeypatch):
    given, found = studied
    path = tmp_path / "runs.jsonl"
    content = given["results"].read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[:-1]))
    write = os.write

    def full(file, text):
        write(file, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"(?s)must be written.*No space"):
            compare(**given | {"results": path})
    assert path.read_bytes() == b"".join(content[:-1])
    again = compare(**given | {"results": path})
    assert without_time(again) == without_time(found)


@pytest.mark.parametrize(
    "content", ["notes of mine", "notes\nof mine\n", '{"loss": 1}\n', "[1]\n"]
)
def test_a_file_of_something_else_is_left_alone(content, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with refused("must be a file that `compare` wrote"):
        compare(**arguments(path, executor=InProcess()))
    assert path.read_text() == content


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "runs.jsonl"):
        with pytest.raises(OSError, match=r"runs\.jsonl|tmp|file"):
            compare(**arguments(path, executor=InProcess()))
    assert (tmp_path / "file").read_text() == ""
