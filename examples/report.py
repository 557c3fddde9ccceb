"""The table and the pictures of two tasks, in `multi_mnist` and elsewhere.

`scores[method]` is a list with the test accuracies of each seed in percent,
`{task: float}`.
"""

import numpy as np
from matplotlib.figure import Figure

from keras_mgda.pareto import delta_m

TASKS = ("left", "right")
COLORS = {"uniform": "#d55e00", "MGDA-UB": "#0072b2", "exact MGDA": "#009e73"}


def singles(scores):
    """What the two single-task models of each seed reach together."""
    pairs = zip(*(scores[f"single task, {t}"] for t in TASKS), strict=True)
    return [left | right for left, right in pairs]


def table(scores, rates, times):
    """The results in Markdown: mean and standard deviation over the seeds."""

    def spread(values):
        mean = f"{np.mean(values):.2f}" if values else ""
        return mean + (f" ± {np.std(values, ddof=1):.2f}" if values[1:] else "")

    lines = [
        f"| {'method':18} | rate | {'left, %':12} | {'right, %':12} "
        f"| {'delta-m, %':12} | epoch |",
        "|---|---|---|---|---|---|",
    ]
    for method, of_seeds in scores.items():
        left, right = ([s[t] for s in of_seeds if t in s] for t in TASKS)
        change = [
            delta_m(score, single)
            for score, single in zip(of_seeds, singles(scores), strict=True)
            if score.keys() == single.keys()
        ]
        lines.append(
            f"| {method:18} | {rates[method]:<4} | {spread(left):12} "
            f"| {spread(right):12} | {spread(change):12} "
            f"| {times[method]:.2f}x |"
        )
    return "\n".join(lines)


def plot_accuracies(scores, path):
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    plane(axes, {method: scores[method] for method in COLORS}, singles(scores))
    axes.set_title("Large: mean of the seeds. Better: up and to the right")
    axes.set_aspect("equal", adjustable="datalim")
    figure.savefig(path, dpi=120)


def plane(axes, scores, single_tasks, colors=COLORS, line=()):
    """The plane of the two tasks: small dots are seeds, large ones means.

    Args:
        axes: of Matplotlib.
        scores: of the methods to show. Each learns both tasks.
        single_tasks: what `singles` returns: dashed lines.
        colors: of methods, `{method: color}`; of the others grey.
        line: methods that a line joins, and squares mark.
    """
    dashed = {"color": "0.6", "linestyle": "--", "zorder": 0}
    single = means(single_tasks)
    axes.axvline(single[0], label="single task", **dashed)
    axes.axhline(single[1], **dashed)
    if line:
        joined = sorted(means(scores[method]) for method in line)
        axes.plot(*zip(*joined, strict=True), color="0.7", zorder=0)
    for method, of_seeds in scores.items():
        look = {
            "color": colors.get(method, "0.5"),
            "marker": "s" if method in line else "o",
        }
        seeds = ([score[task] for score in of_seeds] for task in TASKS)
        axes.scatter(*seeds, s=20, alpha=0.5, linewidth=0, **look)
        axes.scatter(*means(of_seeds), s=90, label=method, **look)
    axes.set_xlabel("left digit, test accuracy in %")
    axes.set_ylabel("right digit, test accuracy in %")
    axes.legend(frameon=False, fontsize="small")


def means(of_seeds):
    return [float(np.mean([s[task] for s in of_seeds])) for task in TASKS]


def plot_task_weights(runs, epochs, path):
    """Each step of the first seed, and the mean of the last epoch's steps."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for method in ("MGDA-UB", "exact MGDA"):
        color = COLORS[method]
        left = [weights["left"] for weights in runs[method][0].task_weights]
        epoch = np.arange(1, len(left) + 1) * epochs / len(left)
        steps = len(left) // epochs
        mean = np.convolve(left, np.full(steps, 1 / steps), mode="valid")
        axes.plot(epoch, left, ".", color=color, alpha=0.2, markersize=3)
        axes.plot(epoch[steps - 1 :], mean, color=color, label=method)
    axes.axhline(0.5, color="0.6", linestyle="--", zorder=0)
    axes.set_title("Dots: single steps. Lines: mean of an epoch")
    axes.set(xlabel="epoch", xlim=(0, epochs), ylim=(0, 1))
    axes.set_ylabel("task weight of the left digit\n(right: 1 minus this)")
    axes.legend(loc="lower right", ncols=2)
    figure.savefig(path, dpi=120)
