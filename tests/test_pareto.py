import moocore
import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_mgda.pareto import (
    delta_m,
    dominates,
    hypervolume,
    pareto_front,
    plot_many,
    plot_two,
)
from tests.support.refusal import refused


def clouds():
    """Points on fronts and off them, at several scales, some of them equal."""
    rng = np.random.default_rng(0)
    for m in (1, 2, 3, 4):
        for n in (1, 2, 7, 25):
            uniform = rng.random((n, m))
            sphere = np.abs(rng.normal(size=(n, m))) + 1e-3
            sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
            for points in (uniform, 1 - sphere, np.round(3 * uniform)):
                for scale, offset in ((1.0, 0.0), (1e6, -7.0), (1e-6, 1e-6)):
                    yield scale * points + offset


def test_front_is_that_of_a_library():
    for points in clouds():
        expected = moocore.is_nondominated(points, keep_weakly=True)
        np.testing.assert_array_equal(pareto_front(points), expected)


def test_hypervolume_is_that_of_a_library():
    for points in clouds():
        worst, best = points.max(axis=0), points.min(axis=0)
        for share in (1.1, 0.5):  # some points lie beyond the second
            reference = best + share * (worst - best) + 1e-9
            expected = moocore.hypervolume(points, ref=reference)
            assert hypervolume(points, reference) == pytest.approx(
                expected, rel=1e-9
            )


def test_hypervolume_of_boxes_by_hand():
    assert hypervolume([[1, 1, 1]], [3, 4, 5]) == 2 * 3 * 4
    assert hypervolume([[1, 1, 1], [2, 2, 2]], [3, 4, 5]) == 2 * 3 * 4
    assert hypervolume([[3, 0]], [3, 4]) == 0
    assert hypervolume(np.empty((0, 2)), [3, 4]) == 0


def test_domination_is_a_strict_order():
    rng = np.random.default_rng(1)
    a, b, c = rng.integers(0, 3, size=(3, 500, 3))
    assert not dominates(a, a).any()
    assert not (dominates(a, b) & dominates(b, a)).any()
    chained = dominates(a, b) & dominates(b, c)
    assert chained.any()
    assert dominates(a, c)[chained].all()
    assert not dominates([np.nan, 0.0], [1.0, 1.0])


def test_delta_m_by_hand():
    single = {"a": 80.0, "b": 0.5}
    assert delta_m(single, single) == 0
    assert delta_m({"a": 88.0, "b": 0.5}, single, ["b"]) == pytest.approx(5)
    assert delta_m({"a": 80.0, "b": 0.6}, single, ["b"]) == pytest.approx(-10)
    assert delta_m({"a": -9.0}, {"a": -10.0}) == pytest.approx(10)


@pytest.mark.parametrize("lower", [["ab"], ("ab",), "ab", iter(["ab"])])
def test_delta_m_takes_any_naming_of_tasks(lower):
    single = {"a": 1.0, "b": 1.0, "ab": 1.0}
    changed = single | {"ab": 1.3}
    assert delta_m(changed, single, lower) == pytest.approx(-10)


def test_plots_hold_the_points():
    rng = np.random.default_rng(2)
    points = {"sum": rng.random((6, 2)), "MGDA": rng.random((4, 2))}
    axes = Figure().subplots()
    plot_two(axes, points)
    drawn = [line.get_xydata() for line in axes.lines]
    for (dots, front), of_method in zip(
        zip(drawn[::2], drawn[1::2], strict=True), points.values(), strict=True
    ):
        np.testing.assert_array_equal(dots, of_method)
        assert len(front) == pareto_front(of_method).sum()
        assert (np.diff(front[:, 0]) >= 0).all()
        assert (np.diff(front[:, 1]) <= 0).all()
    axes = Figure().subplots()
    points["none yet"] = np.empty((0, 2))
    plot_many(axes, points, ["left", "right"])
    drawn = [line.get_ydata() for line in axes.lines if len(line.get_ydata())]
    np.testing.assert_array_equal(drawn, np.concatenate([*points.values()]))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == list(points)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto_front([1.0, 2.0]), "Points must be a matrix"),
        (lambda: pareto_front([[1.0, np.nan]]), "Points must be a matrix"),
        (lambda: hypervolume(np.zeros((2, 0)), []), "Points must be a matrix"),
        (lambda: hypervolume([[1.0]], [1.0, 2.0]), "finite loss for each task"),
        (lambda: hypervolume([[1.0]], [np.inf]), "finite loss for each task"),
        (lambda: delta_m({"a": 1.0}, {"b": 1.0}), "of the same tasks"),
        (lambda: delta_m({"a": 1.0}, {"a": 1.0}, ["b"]), "of the same tasks"),
        (lambda: delta_m({}, {}), "of the same tasks"),
        (lambda: delta_m({"a": 1.0}, {"a": 0.0}), "relative to zero"),
        (lambda: plot_two(None, {"a": [[1.0]]}), "must be of two tasks"),
        (lambda: plot_many(None, {"a": [[1.0]]}, "ab"), "name every task"),
    ],
)
def test_bad_input(call, message):
    with refused(message):
        call()
