"""What the methods make of a loss that is in another unit.

On two of scikit-learn's digits, one over the other, the loss of the left one is
multiplied by `10^-3` to `10^3`. Each method has one training for each seed, at
the learning rate that the study chose for the plain sum of these digits. Beside
them stands what people do about units: 25 ratios of fixed weights, of which
validation chooses one, and so 25 trainings for each seed.
"""

import dataclasses
import itertools

import numpy as np

from benchmarks.harness import in_fresh_process, lines
from keras_mgda import pareto
from keras_mgda.comparison import statistics

FACTORS = tuple(10.0**k for k in range(-3, 4))
# The sum sees the product of weight and factor. So the search has the same
# products to choose from, up to its ends, wherever it is made.
SEARCHED = (1e-3, 1.0, 1e3)
RATIOS = tuple(10.0 ** (k / 4) for k in range(-12, 13))
LEARNING_RATE = 4e-3
SEEDS = 3
BEST_WEIGHTS = "best of 25 fixed weights"


def run(results):
    """Goes on where it was stopped; a new process for each seed."""
    for factor, number in itertools.product(FACTORS, range(1, SEEDS + 1)):
        path = results / "scales" / f"{factor:g}.jsonl"
        if number > max((line["seed"] for line in lines(path)), default=0):
            in_fresh_process(first_seeds, factor, path, number)


def first_seeds(factor, path, number):
    from benchmarks.study.run import compared

    compared(scaled(factor), f"digits, left x {factor:g}", path, number)


def scaled(factor):
    """The digits, the loss of the left one times a factor."""
    from benchmarks.study.problems import PROBLEMS

    problem = PROBLEMS["digits"](None)
    methods = {
        name: options
        for name, options in problem.methods.items()
        if name != "fixed weights"
    }
    if factor in SEARCHED:
        methods |= {
            f"weights {ratio:.3g} : 1": {"weighting": weights(ratio)}
            for ratio in RATIOS
        }
    return dataclasses.replace(
        problem,
        methods=methods,
        learning_rates=(LEARNING_RATE,),
        compile_options={"loss_weights": {"left": factor, "right": 1.0}},
    )


def weights(ratio):
    """Of sum 2, which stand in this ratio."""
    return {"left": 2 * ratio / (1 + ratio), "right": 2 / (1 + ratio)}


def table(folder):
    """A row for each method, a column for each factor.

    The mean relative change of both accuracies on the test split against the
    best fixed weights where no loss is scaled, in percent, and its 95 %
    interval over the seeds, which are paired.
    """
    found = {
        factor: of_seeds(folder / "scales" / f"{factor:g}.jsonl")
        for factor in FACTORS
    }
    reference = found[1.0][BEST_WEIGHTS]
    rows = [
        [method, *(change(of.get(method), reference) for of in found.values())]
        for method in found[1.0]
    ]
    return ["method", *(f"{factor:g}" for factor in FACTORS)], rows


def of_seeds(path):
    """`{method: [{task: accuracy} of each seed]}`, of the test split."""
    by_method = {}
    for line in sorted(lines(path), key=lambda line: line["seed"]):
        by_method.setdefault(line["method"], []).append(line)
    by_method.pop("reference")
    searched = {
        method: by_method.pop(method)
        for method in list(by_method)
        if method.startswith("weights ")
    }
    if searched:

        def on_validation(of_seeds):
            return np.mean([list(s["validation"].values()) for s in of_seeds])

        by_method[BEST_WEIGHTS] = max(searched.values(), key=on_validation)
    return {
        method: [line["test"] for line in of_seeds]
        for method, of_seeds in by_method.items()
    }


def change(of_method, reference):
    if of_method is None:
        return ""
    changes = [
        pareto.delta_m(own, best)
        for own, best in zip(of_method, reference, strict=True)
    ]
    interval = statistics.mean_interval(changes)
    return f"{interval.mean:.1f} ± {interval.half_width:.1f}"
