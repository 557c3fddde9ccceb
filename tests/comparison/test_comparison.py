import errno
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from keras_mgda import pareto
from keras_mgda.comparison import (
    Comparison,
    FreshProcesses,
    InProcess,
    compare,
)
from keras_mgda.comparison.statistics import (
    mean_interval,
    optional,
    paired_p_value,
)
from tests.support import comparison_job
from tests.support.comparison_job import arguments, split
from tests.support.refusal import refused

METHODS = ("single tasks", "plain sum", "twin", "c", "d", "e", "f")
RATES = (0.1, 0.01)


def lines_of(metric, methods=METHODS, seeds=5, tasks=("a", "b"), mode="max"):
    """Lines of a study whose metrics are those of a function.

    `metric(method, task, rate, seed, split)`; `None` if the training diverged.
    """
    settings = {
        "select": {task: ["metric", mode] for task in tasks},
        "reference": dict.fromkeys(tasks, 0.5),
    }
    lines = []
    for seed, method, rate in itertools.product(range(seeds), methods, RATES):
        single = method == "single tasks"
        for part in tasks if single else [None]:
            line = {
                "comparison": 1,
                "data": "made up",
                "method": method,
                "task": part,
                "options": {"weighting": method},
                "learning_rate": rate,
                "seed": seed,
                "diverged": None,
                "epoch_seconds": 2.0 if single else 1.0,
                "versions": {},
                "settings": settings,
            }
            for of_split in ("validation", "test"):
                values = {
                    task: metric(method, task, rate, seed, of_split)
                    for task in ([part] if single else tasks)
                }
                if None in values.values():
                    values = None
                    line["diverged"] = "loss nan in epoch 3"
                line[of_split] = values
            lines.append(line)
    return lines


def row_of(comparison, method):
    return next(row for row in comparison.rows if row.method == method)


# The statistics.


def normal(rng):
    return 0.8 + 0.02 * rng.normal()


def skewed(rng):
    return 0.5 + 0.02 * rng.lognormal(sigma=1.5)


def counted(rng):
    """The share of 40 test examples: many differences are equal or zero."""
    return (1 + rng.binomial(40, 0.9)) / 41


@pytest.mark.parametrize("noise", [normal, skewed, counted])
@pytest.mark.parametrize("seeds", [2, 5])
def test_the_same_under_two_names_does_not_differ(noise, seeds):
    """Not in 94 of 100 studies, and nothing is advised instead."""
    rng = np.random.default_rng(seeds)
    studies, same = 200, 0
    for _ in range(studies):
        found = Comparison(lines_of(lambda *_: noise(rng), seeds=seeds))
        same += row_of(found, "twin").p_value >= 0.05
    assert same >= 0.94 * studies


@pytest.mark.parametrize("noise", [normal, counted])
def test_false_alarms_are_as_many_as_the_level_says(noise):
    """Of two methods alone there is nothing to correct: 5 in 100, or less."""
    rng = np.random.default_rng(1)
    studies, alarms = 600, 0
    for _ in range(studies):
        found = Comparison(
            lines_of(lambda *_: noise(rng), ("plain sum", "twin"))
        )
        alarms += row_of(found, "twin").p_value < 0.05
    four_deviations = 4 * (0.05 * 0.95 / studies) ** 0.5
    assert alarms / studies < 0.05 + four_deviations
    if noise is normal:
        assert alarms / studies > 0.05 - four_deviations


def test_family_of_equal_methods_gives_no_advice_to_change():
    """Over all of them together, with correlated noise of the seeds."""
    rng = np.random.default_rng(2)
    studies, changes = 200, 0
    for _ in range(studies):
        of_seed = rng.normal(size=5)

        def metric(method, task, rate, seed, of_split, of_seed=of_seed):
            return 0.8 + 0.02 * of_seed[seed] + 0.01 * rng.normal()

        advice = Comparison(lines_of(metric)).advice
        changes += not advice.startswith("It makes no difference")
    assert changes <= 0.08 * studies  # 5 %, and two deviations


def test_a_real_difference_is_found():
    rng = np.random.default_rng(3)

    def metric(method, task, rate, seed, of_split):
        gain = {"c": 0.1, "d": -0.1}.get(method, 0)
        return 0.8 + gain + 0.01 * rng.normal()

    found = Comparison(lines_of(metric))
    assert found.advice.startswith("Use 'c', at the learning rate 0.")
    assert "compile(weighting='c')" in found.advice
    assert row_of(found, "c").difference.mean == pytest.approx(12.5, abs=1)
    assert row_of(found, "d").difference.mean == pytest.approx(-12.5, abs=1)
    assert row_of(found, "c").p_value < 0.01 < row_of(found, "e").p_value
    assert found.rows[0].method == "c"
    assert found.rows[-1].method == "d"


def test_p_value_is_that_of_a_library():
    rng = np.random.default_rng(4)
    for seeds in (2, 3, 5, 20):
        left, right = rng.normal(size=(2, seeds))
        expected = scipy.stats.ttest_rel(left, right)
        assert paired_p_value(left - right) == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval(0.95)
        mean, half = vars(mean_interval(left - right)).values()
        assert (mean - half, mean + half) == pytest.approx((low, high))


def test_equal_differences_are_no_proof():
    """Student's t is infinite then; all signs are alike by chance, too."""
    assert paired_p_value([0.0] * 5) == 1
    assert paired_p_value([2.5, 2.5]) == 0.5
    assert paired_p_value([2.5, 2.5 + 1e-7, 2.5 - 1e-7]) == 0.25
    assert paired_p_value([2.5] * 10) == 2.0**-9
    assert paired_p_value([1.0]) is None


def test_correction_of_holm_by_hand():
    """Raw p values of 0.01, 0.02 and 0.9 become 0.03, 0.04 and 0.9."""
    from keras_mgda.comparison.statistics import holm as _holm

    raw = {"x": 0.9, "y": 0.01, "z": 0.02, "unknown": None}
    assert _holm(raw) == pytest.approx({"x": 0.9, "y": 0.03, "z": 0.04})
    # Never less than that of a smaller one, and never more than 1.
    assert _holm({"x": 0.03, "y": 0.031}) == {"x": 0.06, "y": 0.06}
    assert _holm({"x": 0.7, "y": 0.8}) == {"x": 1.0, "y": 1.0}


def test_rows_by_hand():
    """Two seeds, one of the tasks an error; single tasks as the baseline."""
    values = {  # method, task: of the seeds
        ("single tasks", "a"): (1.0, 3.0),  # 2 in the mean
        ("plain sum", "a"): (2.0, 4.0),
        ("c", "a"): (1.0, 2.0),
    }

    def metric(method, task, rate, seed, of_split):
        if of_split == "validation":  # the first rate is better
            return rate
        return values[method, "a"][seed] * (10 if task == "b" else 1)

    lines = lines_of(metric, ("single tasks", "plain sum", "c"), seeds=2)
    for line in lines:
        line["settings"] = line["settings"] | {
            "select": {"a": ["m", "max"], "b": ["m", "min"]}
        }
    found = Comparison(lines)
    # One task gains what the other loses.
    assert row_of(found, "plain sum").delta_m.mean == pytest.approx(0)
    assert {row.rank for row in found.rows} == {2.0}
    for line in lines:
        line["settings"] = line["settings"] | {
            "select": {"a": ["m", "max"], "b": ["m", "max"]}
        }
    found = Comparison(lines)
    # D of the sum: 0 and 100 %; of "c": -50 and 0 %.
    plain, c = row_of(found, "plain sum"), row_of(found, "c")
    assert plain.delta_m.mean == pytest.approx(50)
    assert c.delta_m.mean == pytest.approx(-25)
    t = 12.7062047  # of one degree of freedom, at 0.975
    assert c.delta_m.half_width == pytest.approx(t * 25)
    assert c.difference.mean == pytest.approx(-75)
    assert c.difference.half_width == pytest.approx(t * 25)
    assert plain.difference is None
    assert plain.p_value is None
    assert row_of(found, "single tasks").delta_m.mean == pytest.approx(0)
    assert [row.rank for row in found.rows] == [1, 2, 3]
    assert row_of(found, "single tasks").time == 4  # two models
    assert plain.test["b"].mean == 30
    mean = {"a": 2.0, "b": 20.0}
    assert plain.delta_m.mean == pytest.approx(
        pareto.delta_m({"a": 3.0, "b": 30.0}, mean)
    )


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_units_of_a_metric_do_not_count(scale):
    rng = np.random.default_rng(5)
    table = {}

    def metric(*key):
        return table.setdefault(key, 0.5 + rng.random())

    def scaled(method, task, rate, seed, of_split):
        value = metric(method, task, rate, seed, of_split)
        return value * (scale if task == "a" else 1)

    before = Comparison(lines_of(metric, mode="min"))
    lines = lines_of(scaled, mode="min")
    lines[0]["settings"]["reference"]["a"] *= scale  # shared by all lines
    after = Comparison(lines)
    for left, right in zip(before.rows, after.rows, strict=True):
        assert (left.method, left.chosen) == (right.method, right.chosen)
        assert left.rank == right.rank
        assert vars(left.delta_m) == pytest.approx(vars(right.delta_m))
        assert left.score == pytest.approx(right.score)
        if left.p_value is not None:
            assert left.difference.mean == pytest.approx(right.difference.mean)
            assert left.p_value == pytest.approx(right.p_value)


# What chooses.


def test_the_test_split_chooses_nothing():
    """ "lucky" is best of all on the test split, at the rate that is worse."""

    def metric(method, task, rate, seed, of_split):
        if method == "lucky" and of_split == "test" and rate == 0.01:
            return 0.99 + seed / 1000
        return 0.8 + rate + seed / 100

    found = Comparison(lines_of(metric, ("plain sum", "lucky", "c")))
    lucky = row_of(found, "lucky")
    assert lucky.chosen["learning_rate"] == 0.1
    assert lucky.test == row_of(found, "plain sum").test
    assert lucky.rank == 2
    assert found.advice.startswith("It makes no difference")


def test_choice_is_the_same_whatever_the_test_split_says():
    rng = np.random.default_rng(6)
    lines = lines_of(lambda *_: rng.random() + 0.5)
    before = {row.method: row.chosen for row in Comparison(lines).rows}
    for _ in range(20):
        for line in lines:
            line["test"] = {task: rng.random() + 0.5 for task in line["test"]}
        after = {row.method: row.chosen for row in Comparison(lines).rows}
        assert before == after


def test_among_the_better_ones_validation_decides():
    def metric(method, task, rate, seed, of_split):
        on_test = {"c": 0.1, "d": 0.2}
        on_validation = {"c": 0.2, "d": 0.1}
        gains = on_test if of_split == "test" else on_validation
        return 0.5 + gains.get(method, 0) + np.sin(seed * 7 + len(method)) / 99

    assert Comparison(lines_of(metric)).advice.startswith("Use 'c'")


def test_choice_does_not_depend_on_other_methods():
    rng = np.random.default_rng(7)
    lines = lines_of(lambda *_: rng.random() + 0.5)
    chosen = {row.method: row.chosen for row in Comparison(lines).rows}
    few = [line for line in lines if line["method"] in ("plain sum", "d")]
    for row in Comparison(few).rows:
        assert row.chosen == chosen[row.method]


def test_more_tries_are_refused():
    lines = lines_of(lambda *_: 0.5)
    more = [line | {"learning_rate": 0.2} for line in lines[-2:-1]]
    with refused("the same search"):
        Comparison(lines + more)
    with refused("the same search"):
        Comparison(lines[:-1])


# Where something is missing.


def test_a_method_that_diverges_has_no_rank():
    rng = np.random.default_rng(8)
    table = {}

    def metric(*key):
        return table.setdefault(key, 0.8 + 0.01 * rng.random())

    def diverges(method, task, rate, seed, of_split):
        if method == "c" and seed == 3:
            return None
        return metric(method, task, rate, seed, of_split)

    found = Comparison(lines_of(diverges))
    row = row_of(found, "c")
    assert row.rank is row.delta_m is row.difference is row.p_value is None
    assert row.note == "diverged in 2 of 10 trainings: loss nan in epoch 3"
    assert row.note in found.table
    assert found.rows[-1] is row
    without = tuple(m for m in METHODS if m != "c")
    alone = Comparison(lines_of(metric, without))
    assert [vars(r) for r in found.rows[:-1]] == [vars(r) for r in alone.rows]
    json.loads(found.to_json())


def test_a_rate_that_diverges_for_one_seed_is_not_chosen():
    def metric(method, task, rate, seed, of_split):
        if rate == 0.1:
            return None if seed == 1 else 0.99
        return 0.8 + seed / 100

    for row in Comparison(lines_of(metric)).rows:
        assert "0.1" not in json.dumps(row.chosen)
        assert row.rank is not None


def test_nothing_compares_with_a_sum_that_diverged():
    def metric(method, task, rate, seed, of_split):
        return None if method == "plain sum" else 0.8 + seed / 100

    found = Comparison(lines_of(metric))
    assert "plain sum, which diverged in 10 of 10" in found.advice
    assert "lower learning rates" in found.advice
    assert all(row.p_value is None for row in found.rows)
    everything = Comparison(lines_of(lambda *_: None))
    assert all(row.rank is None for row in everything.rows)
    assert "diverged" in str(everything)
    with refused("did not diverge"):
        everything.plot()


def test_one_seed_makes_up_no_interval():
    found = Comparison(lines_of(lambda *key: 0.5 + len(key[0]) / 99, seeds=1))
    for row in found.rows:
        assert row.delta_m.half_width is None
        assert row.p_value is None
        assert all(i.half_width is None for i in row.test.values())
    assert "±" not in found.table
    assert found.advice.startswith("One seed does not tell")


def test_without_single_tasks_the_sum_is_the_baseline():
    rng = np.random.default_rng(9)
    found = Comparison(
        lines_of(lambda *_: rng.random() + 0.5, ("plain sum", "c"))
    )
    assert found.baseline == "plain sum"
    row = row_of(found, "c")
    assert row.delta_m.mean == pytest.approx(row.difference.mean)
    assert "delta-m to plain sum" in found.table


def test_nothing_is_relative_to_zero():
    found = Comparison(lines_of(lambda *key: 0.0 if key[-1] == "test" else 0.5))
    assert found.baseline is None
    assert "zero" in found.advice


def test_worse_methods_are_named():
    rng = np.random.default_rng(10)

    def metric(method, task, rate, seed, of_split):
        return 0.8 - 0.1 * (method in ("c", "d")) + 0.005 * rng.normal()

    advice = Comparison(lines_of(metric)).advice
    assert "worse are 'c' and 'd'." in advice or "'d' and 'c'." in advice
    assert advice.startswith("Use the plain sum")


# How it is shown.


@pytest.mark.parametrize(
    "tasks", [("a", "b"), ("a", "b", "c"), tuple("abcdefgh")]
)
def test_table_and_plot_show_all_methods(tasks):
    rng = np.random.default_rng(11)
    found = Comparison(lines_of(lambda *_: rng.random() + 0.5, tasks=tasks))
    rows = str(found).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:9]] == [
        row.method for row in found.rows
    ]
    assert rows[-1] == found.advice
    assert len({len(row) for row in rows[:9]}) == 1
    left, right = found.plot().axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == [row.method for row in found.rows]
    ranks = [line.get_xdata()[0] for line in right.lines]
    assert ranks == [row.rank for row in reversed(found.rows)]


def test_json_holds_the_rows(tmp_path):
    rng = np.random.default_rng(12)
    found = Comparison(lines_of(lambda *_: rng.random() + 0.5))
    path = tmp_path / "found.json"
    text = found.to_json(path)
    assert json.loads(path.read_text()) == json.loads(text)
    first = json.loads(text)["rows"][0]
    assert first["delta_m"]["mean"] == found.rows[0].delta_m.mean
    assert json.loads(text)["advice"] == found.advice


# Trainings.


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(comparison):
    return [vars(row) | {"time": None} for row in comparison.rows]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A comparison in this process: its file, and what it returned."""
    path = tmp_path_factory.mktemp("comparison") / "runs.jsonl"
    methods = {
        "single tasks": None,
        "plain sum": None,
        "many tries": [{"weighting": {"a": 1.0, "b": k}} for k in range(1, 50)],
        "fixed weights": None,
    }
    given = arguments(path, methods=methods, executor=InProcess())
    return given, compare(**given)


def test_every_method_has_as_many_trainings(studied):
    given, found = studied
    runs = lines(given["results"])
    number = {}
    for run in runs:
        key = run["method"], run["task"]
        number[key] = number.get(key, 0) + 1
    assert number == {
        ("reference", None): 1,
        ("single tasks", "a"): 4,
        ("single tasks", "b"): 4,
        ("plain sum", None): 4,
        ("many tries", None): 4,  # with two options of 49
        ("fixed weights", None): 4,
    }
    for run in runs[1:]:
        assert {"data", "seed", "learning_rate", "validation", "test"} < set(
            run
        )
        assert run["seconds"] > 0
        assert run["versions"]["keras"] == keras.__version__
        assert all(v > 0 for v in run["test"].values())
        assert 1 <= run["epoch"] <= run["epochs"] == 3
    assert Comparison.read(given["results"]).table == found.table


def test_fixed_weights_begin_with_equal_ones_and_sum_to_the_tasks(studied):
    given, _ = studied
    weights = [
        run["options"]["weighting"]
        for run in lines(given["results"])
        if run["method"] == "fixed weights" and run["seed"] == 0
    ]
    assert weights[0] == {"a": 1.0, "b": 1.0}
    assert weights[1] != weights[0]
    assert sum(weights[1].values()) == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("task", [None, "a", "b"])
def test_the_sum_and_single_tasks_are_stock_keras(studied, task):
    """The same metrics as of a plain `keras.Model`, at its best epoch."""
    given, _ = studied
    (run,) = (
        run
        for run in lines(given["results"])
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
            "methods": {"many tries": given["methods"]["many tries"]},
            "test": functools.partial(split, 3, number=7),
        }
    )
    after = lines(tmp_path / "other.jsonl")
    before = [
        run
        for run in lines(given["results"])
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
    first = lines(given["results"])[0]
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
        *split(0), 16, epochs=3, validation_data=split(1), verbose=0
    ).history
    assert first["validation"] == pytest.approx(
        {"a": min(history["val_a_mse"]), "b": min(history["val_b_mae"])},
        rel=1e-4,
    )


def test_a_torn_comparison_goes_on(studied, tmp_path):
    """Killed as it wrote a line, and called again."""
    given, found = studied
    content = given["results"].read_bytes().splitlines(keepends=True)
    path = tmp_path / "runs.jsonl"
    whole = content[:-3]
    path.write_bytes(b"".join(whole) + content[-3][:100])
    with refused("the same search"):
        Comparison.read(path)
    again = compare(**given | {"results": path})
    assert path.read_bytes().startswith(b"".join(whole))
    assert len(lines(path)) == len(content)
    assert without_time(again) == without_time(found)
    # Once more: nothing is left to do.
    size = path.stat().st_size
    assert compare(**given | {"results": path}).table == again.table
    assert path.stat().st_size == size


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
    assert len(lines(path)) == len(kept) + 2
    assert found.seeds == [0, 1, 2]


def test_other_settings_are_refused(studied):
    given, _ = studied
    before = given["results"].read_bytes()
    for changes, message in (
        ({"epochs": 4}, "`epochs` was 3 and is 4"),
        ({"train": functools.partial(split, 5)}, "`splits` was"),
        ({"batch_size": 8}, "`batch_size` was 16 and is 8"),
        ({"learning_rates": [0.1, 0.01]}, "`reference_training` was"),
        ({"build": wider}, "`network` was"),
        (
            {"methods": {"many tries": {"weighting": "upgrad"}}},
            "must keep its options",
        ),
    ):
        with refused(message):
            compare(**given | changes)
    assert given["results"].read_bytes() == before


def wider():
    inputs = keras.Input((4,))
    z = keras.layers.Dense(7, activation="tanh")(inputs)
    return keras.Model(inputs, {t: keras.layers.Dense(1)(z) for t in "ab"})


def test_a_name_takes_other_data_to_the_same_file(studied, tmp_path):
    given, _ = studied
    path = tmp_path / "runs.jsonl"
    path.write_bytes(given["results"].read_bytes())
    methods = ["plain sum"]
    other = functools.partial(split, 7)
    changes = {"results": path, "name": "other", "train": other}
    compare(**given | changes | {"methods": methods})
    names = {"data", "other"}
    assert {line["data"] for line in lines(path)} == names
    assert len(Comparison.read(path, "other").rows) == 1
    with refused("`name` must be that of the data"):
        Comparison.read(path)


def test_a_training_that_diverges_is_a_row(tmp_path):
    path = tmp_path / "runs.jsonl"
    found = compare(
        **arguments(
            path,
            methods={"too far": {"loss_weights": {"a": 1e38, "b": 1.0}}},
            optimizer=keras.optimizers.SGD,
            learning_rates=[0.001],
            executor=InProcess(),
        )
    )
    row = row_of(found, "too far")
    assert row.rank is None
    assert "diverged in 2 of 2 trainings" in row.note
    assert "in epoch" in row.note
    assert row_of(found, "plain sum").rank == 1
    assert all(np.isfinite(line["seconds"]) for line in lines(path))
    assert (
        compare(
            **arguments(
                path,
                methods={"too far": {"loss_weights": {"a": 1e38, "b": 1.0}}},
                optimizer=keras.optimizers.SGD,
                learning_rates=[0.001],
                executor=InProcess(),
            )
        ).table
        == found.table
    )


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
            compile_options={"run_eagerly": True, "unlabelled": "nan"},
            executor=InProcess(),
        )
    )
    assert {row.method for row in found.rows} == {"single tasks", "plain sum"}
    first = lines(tmp_path / "runs.jsonl")[0]
    assert set(first["settings"]["splits"].values()) == {None}


def fails_at_a_rate(rate):
    if rate == 0.1:
        raise OSError("no such rate")
    return keras.optimizers.Adam(rate)


def test_a_training_that_fails_ends_it_and_keeps_the_others(tmp_path):
    path = tmp_path / "runs.jsonl"
    given = arguments(
        path, optimizer=fails_at_a_rate, methods=[], executor=InProcess()
    )
    with pytest.raises(RuntimeError, match=r"(?s)no such rate.*goes on from"):
        compare(**given)
    assert len(lines(path)) == 2


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


# Bad input.


class NaNMetric(keras.metrics.MeanAbsoluteError):
    def result(self):
        return super().result() * float("nan")


@functools.cache
def same_model():
    return comparison_job.build()


def list_of_outputs():
    model = comparison_job.build()
    return keras.Model(model.input, list(model.output.values()))


x, y = split(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": None}, "Three splits must be given"),
        ({"train": (x, y), "test": None}, "Three splits must be given"),
        (
            dict.fromkeys(("validation", "test"), (x, y)),
            "the same data as `validation` and `test`",
        ),
        (
            {"test": (np.concatenate([x[:5], x[:5] + 9]), y)},
            "5 different inputs that are in `train` and in `test`",
        ),
        ({"test": (x.astype("float64"), y)}, "No example must be in two"),
        ({"train": (x, y["a"])}, "`train` must be"),
        ({"metrics": {"a": "mse"}}, "`metrics` must name the tasks"),
        ({"select": {}}, "`select` must name the tasks"),
        (
            {"select": {"a": "mse", "b": ("mae", "min")}},
            "`select` must give each task",
        ),
        (
            {"select": {"a": ("mse", "lower"), "b": ("mae", "min")}},
            "`select` must give each task",
        ),
        (
            {"select": {"a": ("auc", "max"), "b": ("mae", "min")}},
            "`select` must name a metric of the task.*'auc' for 'a'.*a_mse",
        ),
        (
            {
                "metrics": {"a": NaNMetric(name="mae"), "b": "mae"},
                "select": {"a": ("mae", "min"), "b": ("mae", "min")},
            },
            "must be finite on the validation split.*a nan",
        ),
        ({"reference": {"a": 1.0, "b": 0.0}}, "other than zero"),
        ({"learning_rates": []}, "different positive numbers"),
        ({"learning_rates": [0.1, 0.1]}, "different positive numbers"),
        ({"learning_rates": [float("nan")]}, "different positive numbers"),
        ({"seeds": []}, "different whole numbers"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"epochs": 0}, "`epochs` must be a whole number"),
        ({"patience": 0}, "`patience` must be a whole number"),
        ({"batch_size": 1.5}, "`batch_size` must be a whole number"),
        ({"optimizer": "adam"}, "`optimizer` must be a function"),
        ({"methods": ["MGDA-UB", "mgda-ub "]}, "a name of its own"),
        ({"methods": ["plain sum", "plain sum"]}, "a name of its own"),
        ({"methods": {"reference": {}}}, "a name of its own"),
        ({"methods": ["mine"]}, "without compile options"),
        ({"methods": {"mine": 3}}, "must be a dict of compile options"),
        ({"methods": {"mine": []}}, "must be a dict of compile options"),
        (
            {"methods": {"plain sum": {"weighting": "mgda"}}},
            "must be what its name says",
        ),
        (
            {"methods": {"mine": {"weights": "mgda"}}},
            "dict of options of `compile`",
        ),
        (
            {"methods": {"mine": {"optimizer": "sgd"}}},
            "dict of options of `compile`",
        ),
        ({"compile_options": {"jit": True}}, "`compile_options` must be"),
        (
            {"methods": {"mine": {"weighting": "nashmtl"}}},
            "`weighting` must be one of",
        ),
        (
            {"methods": {"mine": {"weighting": {"c": 1.0}}}},
            "(?i)task",
        ),
        ({"build": same_model}, "`build` must return a new model"),
        ({"build": lambda: 3}, "`build` must return a Keras model"),
        ({"build": list_of_outputs}, "dict"),
        ({"executor": "dask"}, "`executor` must be"),
        ({"executor": 0}, "number of processes"),
        (
            {"build": lambda: None, "executor": None},
            "`build` must be picklable.*InProcess",
        ),
        ({"train": data_set(0), "executor": 2}, "`train` must be picklable"),
    ],
)
def test_bad_input(changes, message, tmp_path):
    path = tmp_path / "runs.jsonl"
    given = {"executor": InProcess(), "train": (x, y)}
    with refused(message):
        compare(**arguments(path, **given | changes))
    assert not path.exists() or not path.read_bytes()


def test_overlap_may_be_allowed(tmp_path):
    found = compare(
        **arguments(
            tmp_path / "runs.jsonl",
            train=(x, y),
            validation=(x.copy(), y),
            methods=[],
            learning_rates=[0.01],
            executor=InProcess(),
            allow_overlap=True,
        )
    )
    assert len(found.rows) == 1
    assert "nothing that it was compared with" in found.advice


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
        with pytest.raises(OSError, match="must be a file that can be written"):
            compare(**arguments(path, executor=InProcess()))


def test_missing_packages_say_which_extra(monkeypatch, tmp_path):
    optional.cache_clear()
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r"keras_mgda\[compare\]"):
        compare(**arguments(tmp_path / "runs.jsonl"))
    optional.cache_clear()


# Other processes.


@pytest.mark.slow
def test_processes_find_the_same(tmp_path):
    here = compare(**arguments(tmp_path / "here", executor=InProcess()))
    there = compare(**arguments(tmp_path / "there", executor=2))
    assert [(r.method, r.chosen) for r in here.rows] == [
        (r.method, r.chosen) for r in there.rows
    ]
    for left, right in zip(here.rows, there.rows, strict=True):
        assert vars(left.delta_m) == pytest.approx(
            vars(right.delta_m), abs=1e-2
        )


def pid(_=None):
    return os.getpid()


@pytest.mark.slow
def test_every_call_has_a_process_of_its_own():
    with FreshProcesses(2) as executor:
        found = list(executor.map(pid, range(3)))
    assert len({*found, os.getpid()}) == 4


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_takes_no_other_with_it():
    with FreshProcesses(1) as executor:
        killed, other = executor.submit(kill_me), executor.submit(pid)
        with pytest.raises(Exception, match="terminated abruptly"):
            killed.result()
        assert other.result() != os.getpid()


@pytest.mark.slow
def test_a_process_that_ends_before_its_training_says_why(tmp_path):
    given = arguments(tmp_path / "runs.jsonl", build=kill_me)
    with pytest.raises(RuntimeError, match=r"was killed.*__main__.*goes on"):
        compare(**given)


@pytest.mark.slow
def test_dask_finds_the_same(tmp_path):
    distributed = pytest.importorskip("distributed")
    here = compare(**arguments(tmp_path / "here", executor=InProcess()))
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = compare(
            **arguments(tmp_path / "there", executor=client.get_executor())
        )
    for left, right in zip(here.rows, there.rows, strict=True):
        assert (left.method, left.chosen) == (right.method, right.chosen)
        assert vars(left.delta_m) == pytest.approx(
            vars(right.delta_m), abs=1e-2
        )


@pytest.mark.slow
def test_a_killed_comparison_goes_on(tmp_path):
    """Killed without warning after its fourth line; no process outlives it."""
    path, whole = tmp_path / "runs.jsonl", tmp_path / "whole.jsonl"
    command = [sys.executable, comparison_job.__file__]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path))
    }
    process = subprocess.Popen([*command, path, "2"], env=environment)
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = path.read_bytes()
    outputs = [
        subprocess.run(
            [*command, results, "2"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for results in (path, whole)
    ]
    assert path.read_bytes().startswith(before[: before.rindex(b"\n")])
    assert len(lines(path)) == len(lines(whole)) == 9
    found = [without_time(Comparison.read(p)) for p in (path, whole)]
    assert found[0] == found[1]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
