import pytest

from keras_mgda.comparison.methods import DEFAULTS, spread_weights, tries


def test_every_method_has_as_many_tries():
    """Those with more options, too."""
    many = [{"weighting": {"a": 1.0, "b": k}} for k in range(1, 50)]
    found = tries(
        {"many tries": many, **dict.fromkeys(DEFAULTS)}, "ab", (0.1, 1)
    )
    assert {len(of_method) for of_method in found.values()} == {2}
    assert [rate for rate, _ in found["many tries"]] == [0.1, 1]
    assert [options for _, options in found["many tries"]] == many[:2]
    assert found["UPGrad"] == [
        (0.1, {"weighting": "upgrad"}),
        (1, {"weighting": "upgrad"}),
    ]


def test_options_go_round():
    two = [{"weighting": "mgda"}, {"weighting": "famo"}]
    found = tries({"mine": two}, "ab", (1, 2, 3))["mine"]
    assert found == [(1, two[0]), (2, two[1]), (3, two[0])]


def test_the_plain_sum_is_always_there():
    assert list(tries([], "ab", [0.1])) == ["plain sum"]
    assert list(tries(["FAMO"], "ab", [0.1])) == ["plain sum", "FAMO"]
    assert list(tries(None, "ab", [0.1])) == list(DEFAULTS)


@pytest.mark.parametrize("tasks", ["ab", "abcdefg"])
def test_fixed_weights_begin_with_equal_ones_and_sum_to_the_tasks(tasks):
    weights = [options["weighting"] for options in spread_weights(tasks, 9)]
    assert weights[0] == dict.fromkeys(tasks, 1.0)
    for of_tasks in weights:
        assert sum(of_tasks.values()) == pytest.approx(len(tasks), abs=1e-5)
        assert min(of_tasks.values()) > 0
    assert len({tuple(w.values()) for w in weights}) == 9
    # The same, however many there are.
    assert spread_weights(tasks, 3) == spread_weights(tasks, 9)[:3]
