"""Comparing results over several tasks: what dominates what, and by how much.

Points are task losses, `[..., m]`, the smaller the better. Pass the negative of
what is better when larger, such as accuracies. NumPy; the plots need
matplotlib.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]


def dominates(left: ArrayLike, right: ArrayLike) -> NDArray[np.bool_]:
    """Whether `left` is nowhere worse than `right` and somewhere better.

    Args:
        left: `[..., m]`, task losses.
        right: `[..., m]`, of a shape that broadcasts with it.

    Returns:
        `[...]`, booleans. False wherever a loss is NaN.

    Example:

    >>> dominates([1.0, 2.0], [[1.0, 3.0], [0.0, 9.0]])
    array([ True, False])

    References:
        Sener & Koltun, 2018, definition 1 (a).
    """
    left, right = np.asarray(left, float), np.asarray(right, float)
    nowhere_worse = np.all(left <= right, axis=-1)
    return np.asarray(nowhere_worse & np.any(left < right, axis=-1))


def pareto_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other one dominates.

    Args:
        points: `[n, m]`, task losses. Equal points do not dominate each other.

    Returns:
        `[n]`, booleans.

    Raises:
        ValueError: if the points are not a matrix, or not finite.

    Example:

    >>> pareto_front([[1.0, 3.0], [2.0, 2.0], [2.0, 3.0]])
    array([ True,  True, False])

    References:
        Sener & Koltun, 2018, definition 1 (b).
    """
    points = _checked(points)
    return ~np.array([dominates(points, p).any() for p in points], bool)


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """The volume of what some point dominates, up to a reference.

    ```
    volume of  { z : p <= z <= reference for some point p }
    ```

    Exact, by cutting along the last task and the same in one dimension less:
    `O(n^(m-1) log n)`, for fronts of some dozens of points and a few tasks.

    Args:
        points: `[n, m]`, task losses. Those not better than the reference in
            every task add nothing.
        reference: `[m]`, the worst losses that count. Hypervolumes compare
            only with the same one.

    Raises:
        ValueError: if points or reference do not fit, or are not finite.

    Example:

    >>> hypervolume([[1.0, 2.0], [2.0, 1.0]], reference=[3.0, 3.0])
    3.0

    References:
        Zitzler & Thiele, 1998. Multiobjective optimization using evolutionary
        algorithms: a comparative case study.
    """
    points = _checked(points)
    reference = np.asarray(reference, float)
    if reference.shape != points.shape[1:] or not np.isfinite(reference).all():
        raise ValueError(
            "`reference` must be a finite loss for each task. Received: "
            f"{reference} for points of shape {points.shape}."
        )
    return _volume(points[(points < reference).all(axis=1)], reference)


def _volume(points: Points, reference: Points) -> float:
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, -1])]
    ends = np.append(points[1:, -1], reference[-1])
    # Between two cuts the same points count: those that lie below.
    return sum(
        float(height) * _volume(points[: k + 1, :-1], reference[:-1])
        for k, height in enumerate(ends - points[:, -1])
        if height > 0
    )


def delta_m(
    results: Mapping[str, float],
    baseline: Mapping[str, float],
    lower_is_better: str | Iterable[str] = (),
) -> float:
    """Mean relative change against single-task training, in percent.

    ```
    100 / m  sum_t  s_t (M_t - B_t) / |B_t|
    ```

    with `s_t` minus one where lower is better: positive is an improvement.

    Args:
        results: `{task: M_t}`, a measure of each task.
        baseline: `{task: B_t}`, the same of the models trained for it alone.
        lower_is_better: the task, or tasks, that are measured by an error.

    Raises:
        ValueError: if the tasks are not the same, or a baseline is zero.

    Example:

    >>> delta_m({"a": 90.0, "b": 0.25}, {"a": 100.0, "b": 0.5}, ["b"])
    20.0

    References:
        Maninis et al., 2019. Attentive single-tasking of multiple tasks.
        Equation 4. https://arxiv.org/abs/1904.08918
    """
    lower = [lower_is_better]
    if not isinstance(lower_is_better, str):
        lower = list(lower_is_better)
    unknown = set(lower) - set(baseline)
    if set(results) != set(baseline) or unknown or not baseline:
        raise ValueError(
            "`results` and `baseline` must be of the same tasks, and "
            "`lower_is_better` some of these. Received: "
            f"{list(results)}, {list(baseline)} and {lower}."
        )
    if not all(baseline.values()):
        raise ValueError(
            "A change relative to zero has no size: every `baseline` must be "
            f"another number. Received: {dict(baseline)}."
        )
    changes = [
        (-1 if task in lower else 1) * (results[task] - single) / abs(single)
        for task, single in baseline.items()
    ]
    return 100 * sum(changes) / len(changes)


def plot_two(axes: Any, points: Mapping[str, ArrayLike]) -> None:
    """Draws the plane of two tasks, and a line through each one's front.

    Args:
        axes: of matplotlib.
        points: `{method: [n, 2]}`, task losses.

    Raises:
        ValueError: if there are not two tasks.
    """
    for method, of_method in points.items():
        of_method = _checked(of_method)
        if of_method.shape[1] != 2:
            raise ValueError(
                "Points must be of two tasks. Received: points of shape "
                f"{of_method.shape} for {method!r}. Use `plot_many`."
            )
        front = of_method[pareto_front(of_method)]
        front = front[np.argsort(front[:, 0])]
        (dots,) = axes.plot(*of_method.T, "o", alpha=0.6, label=method)
        axes.plot(*front.T, "-", color=dots.get_color(), linewidth=1)
    axes.legend(frameon=False)


def plot_many(
    axes: Any, points: Mapping[str, ArrayLike], task_names: Sequence[str]
) -> None:
    """Draws a line over the tasks for each point, in parallel coordinates.

    Args:
        axes: of matplotlib.
        points: `{method: [n, m]}`, task losses.
        task_names: of the `m` tasks.

    Raises:
        ValueError: if there is not one name for each task.
    """
    for method, of_method in points.items():
        of_method = _checked(of_method)
        if of_method.shape[1] != len(task_names):
            raise ValueError(
                "`task_names` must name every task. Received: "
                f"{list(task_names)} for points of shape {of_method.shape}."
            )
        color = axes.plot([], label=method)[0].get_color()
        axes.plot(of_method.T, marker=".", alpha=0.6, color=color)
    axes.set_xticks(range(len(task_names)), task_names)
    axes.legend(frameon=False)


def _checked(points: ArrayLike) -> Points:
    points = np.asarray(points, float)
    if points.ndim != 2 or not points.shape[1] or not np.isfinite(points).all():
        raise ValueError(
            "Points must be a matrix of finite losses, one row for each and "
            f"one column for each task. Received: {points}."
        )
    return points
