import json

import numpy as np

from keras_mgda.comparison import Comparison
from tests.support.comparison_lines import lines_of, row_of
from tests.support.refusal import refused


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
    assert found.advice.startswith("No difference was shown")


def test_choice_is_the_same_whatever_the_test_split_says():
    rng = np.random.default_rng(6)
    lines = lines_of(lambda *_: rng.random() + 0.5)
    before = {row.method: row.chosen for row in Comparison(lines).rows}
    for _ in range(20):
        for line in lines:
            line["test"] = {task: rng.random() + 0.5 for task in line["test"]}
        after = {row.method: row.chosen for row in Comparison(lines).rows}
        assert before == after


def test_choice_does_not_depend_on_other_methods():
    rng = np.random.default_rng(7)
    lines = lines_of(lambda *_: rng.random() + 0.5)
    chosen = {row.method: row.chosen for row in Comparison(lines).rows}
    few = [line for line in lines if line["method"] in ("plain sum", "d")]
    for row in Comparison(few).rows:
        assert row.chosen == chosen[row.method]


def test_a_rate_that_diverges_for_one_seed_is_not_chosen():
    def metric(method, task, rate, seed, of_split):
        if rate == 0.1:
            return None if seed == 1 else 0.99
        return 0.8 + seed / 100

    for row in Comparison(lines_of(metric)).rows:
        assert "0.1" not in json.dumps(row.chosen)
        assert row.rank is not None


def test_more_tries_are_refused():
    lines = lines_of(lambda *_: 0.5)
    more = [line | {"learning_rate": 0.2} for line in lines[-2:-1]]
    with refused("the same search"):
        Comparison(lines + more)
    with refused("the same search"):
        Comparison(lines[:-1])
