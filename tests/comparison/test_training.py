import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda.comparison import Comparison, InProcess, compare
from tests.support import comparison_job
from tests.support.comparison_job import arguments, split
from tests.support.comparison_lines import read_lines, row_of

pytestmark = pytest.mark.slow  # each trains all methods


@pytest.mark.parametrize("task", [None, "a", "b"])
def test_the_sum_and_single_tasks_are_stock_keras(studied, task):
    """The same metrics as of a plain `keras.Model`, at its best epoch."""
    given, _ = studied
    (run,) = (
        run
        for run in read_lines(given["results"])
        if run["method"] == ("single tasks" if task else "plain sum")
        and (run["task"], run["seed"], run["learning_rate"]) == (task, 1, 0.01)
    )
    tasks = [task] if task else ["a", "b"]
    keras.utils.set_random_seed(1)
    model = comparison_job.build()
    model = keras.Model(model.input, {t: model.output[t] for t in tasks})
    model.compile(
        keras.optimizers.Adam(0.01),
        loss={t: given["losses"][t] for t in tasks},
        metrics={t: [given["select"][t][0]] for t in tasks},
        run_eagerly=True,
    )

    def of_tasks(pair):
        return pair[0], {t: pair[1][t] for t in tasks}

    def named(logs):
        names = {t: given["select"][t][0] for t in tasks}
        return {t: logs[n if task else f"{t}_{n}"] for t, n in names.items()}

    x, y = of_tasks(split(0))
    for epoch in range(1, run["epoch"] + 1):
        model.fit(x, y, 16, initial_epoch=epoch - 1, epochs=epoch, verbose=0)
    for name, seed in (("validation", 1), ("test", 2)):
        x, y = of_tasks(split(seed))
        logs = model.evaluate(x, y, 16, return_dict=True, verbose=0)
        assert named(logs) == pytest.approx(run[name], rel=1e-4)


def test_another_test_split_changes_no_choice(studied, tmp_path):
    """Epochs and rates are those that were chosen without it."""
    given, found = studied
    other = compare(
        **given
        | {
            "results": tmp_path / "other.jsonl",
            "methods": [],
            "test": functools.partial(split, 3, number=7),
        }
    )
    after = read_lines(tmp_path / "other.jsonl")
    before = [
        run
        for run in read_lines(given["results"])
        if run["method"] in {run["method"] for run in after}
    ]
    for left, right in zip(before, after, strict=True):
        for key in ("method", "epoch", "validation"):
            assert left[key] == right[key]
        assert left["test"] != right["test"] or left["method"] == "reference"
    for row in other.rows:
        assert row.chosen == row_of(found, row.method).chosen


def test_reference_is_the_best_of_each_task(studied):
    given, _ = studied
    first = read_lines(given["results"])[0]
    assert first["method"] == "reference"
    assert first["test"] is None
    keras.utils.set_random_seed(0)
    model = comparison_job.build()
    model.compile(
        keras.optimizers.Adam(0.01),
        loss=given["losses"],
        metrics={"a": ["mse"], "b": ["mae"]},
        run_eagerly=True,
    )
    history = model.fit(
        *split(0), 16, epochs=2, validation_data=split(1), verbose=0
    ).history
    assert first["validation"] == pytest.approx(
        {"a": min(history["val_a_mse"]), "b": min(history["val_b_mae"])},
        rel=1e-4,
    )


def test_a_training_that_diverges_is_a_row(tmp_path):
    path = tmp_path / "runs.jsonl"
    found = compare(
        **arguments(
            path,
            methods={"too far": {"loss_weights": {"a": 1e38, "b": 1.0}}},
            optimizer=keras.optimizers.SGD,
            learning_rates=[0.001],
            seeds=[0],
            executor=InProcess(),
        )
    )
    row = row_of(found, "too far")
    assert row.rank is None
    assert "diverged in 1 of 1 trainings" in row.note
    assert "in epoch" in row.note
    assert row_of(found, "plain sum").rank == 1
    assert all(np.isfinite(line["seconds"]) for line in read_lines(path))
    assert Comparison.read(path).table == found.table


def data_set(seed):
    return tf.data.Dataset.from_tensor_slices(split(seed)).batch(16)


def test_data_sets_are_taken(tmp_path):
    """With metrics that are objects, and labels that are missing."""
    metric = keras.metrics.MeanAbsoluteError(name="far")
    found = compare(
        **arguments(
            tmp_path / "runs.jsonl",
            train=data_set(0),
            validation=functools.partial(data_set, 1),
            test=data_set(2),
            metrics={"a": metric, "b": [keras.metrics.MeanAbsoluteError]},
            select={"a": ("far", "min"), "b": ("mean_absolute_error", "min")},
            methods=["single tasks"],
            learning_rates=[0.01],
            seeds=[0],
            epochs=1,
            compile_options={"run_eagerly": True, "unlabelled": "nan"},
            executor=InProcess(),
        )
    )
    assert {row.method for row in found.rows} == {"single tasks", "plain sum"}
    first = read_lines(tmp_path / "runs.jsonl")[0]
    assert set(first["settings"]["splits"].values()) == {None}
