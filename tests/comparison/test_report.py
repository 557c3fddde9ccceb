import json

import numpy as np
import pytest

from keras_mgda import pareto
from keras_mgda.comparison import Comparison, report
from tests.support.comparison_lines import METHODS, lines_of, row_of
from tests.support.refusal import refused


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
        changes += not advice.startswith("No difference was shown")
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


def test_among_the_better_ones_validation_decides():
    def metric(method, task, rate, seed, of_split):
        on_test = {"c": 0.1, "d": 0.2}
        on_validation = {"c": 0.2, "d": 0.1}
        gains = on_test if of_split == "test" else on_validation
        return 0.5 + gains.get(method, 0) + np.sin(seed * 7 + len(method)) / 99

    assert Comparison(lines_of(metric)).advice.startswith("Use 'c'")


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


def test_equal_means_have_equal_ranks():
    """Whatever the order in which the seeds were added up."""
    values = {"plain sum": [0.1, 0.2, 0.3], "twin": [0.3, 0.2, 0.1]}
    lines = lines_of(
        lambda method, task, rate, seed, split: values[method][seed],
        methods=list(values),
        seeds=3,
    )
    assert {row.rank for row in Comparison(lines).rows} == {1.5}


def test_the_advice_is_what_compile_takes():
    """An instance stands as class and config in the file."""
    options = {
        "weighting": {"keras_mgda.weightings.projection.CAGrad": {"c": 0.5}}
    }
    told = report._options({"learning_rate": 0.1, "options": options})
    assert told == " and with `compile(weighting=CAGrad(c=0.5))`"
    fixed = {"weighting": {"a": 1.0, "b": 2.0}}
    told = report._options({"learning_rate": 0.1, "options": fixed})
    assert told == " and with `compile(weighting={'a': 1.0, 'b': 2.0})`"


def test_the_sum_alone_is_compared_with_nothing():
    found = Comparison(lines_of(lambda *_: 0.5, ("plain sum",)))
    assert "nothing that it was compared with" in found.advice


def test_worse_methods_are_named():
    rng = np.random.default_rng(10)

    def metric(method, task, rate, seed, of_split):
        return 0.8 - 0.1 * (method in ("c", "d")) + 0.005 * rng.normal()

    advice = Comparison(lines_of(metric)).advice
    assert "worse are 'c' and 'd'." in advice or "'d' and 'c'." in advice
    assert advice.startswith("Use the plain sum")


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
