"""Accuracy and time of min-norm solvers on float32 Gram matrices.

The matrices are the families of gram_matrices.py, with gradient norms
spread over 1, 10^2 and 10^4. The error of task weights `w`, in float32 for
every solver, is `(w'Gw - optimum) / min_t G_tt` in float64; the optimum is the
least value that any of the solvers or SciPy's NNLS finds. Calls are eager but
for "in a graph", which is how a training step calls; one process, one thread
each, interleaved in an order that changes, medians over the rounds.
"/ TorchJD" is the ratio of times on the same matrix, and that of their sums
over the matrices. Prints a table and writes results/solver.json.

quadprog needs a positive definite matrix: it gets the Gram matrix in float64,
scaled to unit diagonal, plus the least of 1e-12, 1e-11, ... times the identity
that it accepts. TorchJD runs at its defaults: 100 steps of Frank-Wolfe.

    python -m benchmarks.solver [--rounds 15] [--seeds 3]
"""

import functools
import statistics

import numpy as np
import quadprog
import tensorflow as tf
import torch
from torchjd.aggregation import MGDAWeighting

from benchmarks import harness
from benchmarks.gram_matrices import (
    FAMILIES,
    SPREADS,
    gram_of,
    jacobian,
    scaled,
    squared_norm,
    weights_by_nnls,
)
from keras_mgda.linalg.min_norm import min_norm_point

SIZES = (2, 3, 10, 40, 128)


def solve_quadprog(gram, regularization=1e-12):
    cosines, c = scaled(gram)
    m = len(c)
    constraints = np.column_stack([c, np.eye(m)])  # c'u = 1, u >= 0
    bounds = np.r_[1.0, np.zeros(m)]
    regular = cosines + regularization * np.eye(m)
    try:
        u = quadprog.solve_qp(regular, np.zeros(m), constraints, bounds, 1)[0]
    except ValueError:  # not positive definite
        return solve_quadprog(gram, 10 * regularization)
    return np.maximum(u, 0) * c


def frank_wolfe(gram):
    return min_norm_point(gram, method="frank_wolfe").task_weights.numpy()


@tf.function
def in_a_graph(grams):
    return tf.map_fn(lambda gram: min_norm_point(gram).task_weights, grams)


torchjd = MGDAWeighting()
REPEATS = 10
# What turns the matrix into the solver's own kind, untimed; the solver; and
# for how many solutions the time of one call stands.
SOLVERS = {
    "keras_mgda": (
        tf.constant,
        lambda gram: min_norm_point(gram).task_weights.numpy(),
        1,
    ),
    "keras_mgda in a graph": (
        lambda gram: tf.stack([gram] * REPEATS),
        lambda grams: in_a_graph(grams)[0].numpy(),
        REPEATS,
    ),
    "keras_mgda, frank_wolfe": (tf.constant, frank_wolfe, 1),
    "TorchJD MGDA": (torch.tensor, lambda gram: torchjd(gram).numpy(), 1),
    "quadprog": (np.float64, solve_quadprog, 1),
}


def measure(gram, rounds):
    """Errors and median seconds of all solvers on one matrix."""
    inputs = {name: take(gram) for name, (take, _, _) in SOLVERS.items()}
    values = {
        name: squared_norm(gram, np.float32(solve(inputs[name])))
        for name, (_, solve, _) in SOLVERS.items()
    }
    optimum = min(*values.values(), squared_norm(gram, weights_by_nnls(gram)))
    smallest = np.float64(gram).diagonal().min()
    errors = {name: (v - optimum) / smallest for name, v in values.items()}

    times = harness.interleaved(
        {
            name: functools.partial(solve, inputs[name])
            for name, (_, solve, _) in SOLVERS.items()
        },
        rounds,
    )
    return errors, {
        name: seconds / SOLVERS[name][2]
        for name, seconds in harness.medians(times).items()
    }


def summary(runs, name):
    errors = [errors[name] for errors, _ in runs]
    seconds = [seconds[name] for _, seconds in runs]
    torchjd_seconds = [seconds["TorchJD MGDA"] for _, seconds in runs]
    ratios = [a / b for a, b in zip(seconds, torchjd_seconds, strict=True)]
    return {
        "error_median": statistics.median(errors),
        "error_worst": max(errors),
        "errors_above_1e-6": sum(bool(error > 1e-6) for error in errors),
        "seconds_median": statistics.median(seconds),
        "seconds_worst": max(seconds),
        "ratio_median": statistics.median(ratios),
        "ratio_of_sums": sum(seconds) / sum(torchjd_seconds),
    }


def main(argv=None):
    parser = harness.parser(__doc__, rounds=15, seeds=3)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    args = parser.parse_args(argv)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    torch.set_num_threads(1)
    results = []
    print(f"{'':26}{'error':^24}{'milliseconds':^16}{'/ TorchJD':^14}")
    print(
        f"{'':26}{'median':>8}{'worst':>8}{'> 1e-6':>8}"
        f"{'median':>8}{'worst':>8}{'median':>8}{'sum':>6}"
    )
    for m in args.sizes:
        grams = [
            gram_of(jacobian(family, m, spread, seed))
            for family in FAMILIES
            for spread in SPREADS
            for seed in range(args.seeds)
        ]
        for take, solve, _ in SOLVERS.values():  # compiles
            solve(take(grams[0]))
        runs = [measure(gram, args.rounds) for gram in grams]
        print(f"m = {m}, {len(grams)} matrices")
        for name in SOLVERS:
            row = summary(runs, name)
            print(
                f"  {name:24}{row['error_median']:8.0e}"
                f"{row['error_worst']:8.0e}{row['errors_above_1e-6']:8}"
                f"{1e3 * row['seconds_median']:8.2f}"
                f"{1e3 * row['seconds_worst']:8.2f}"
                f"{row['ratio_median']:8.2f}{row['ratio_of_sums']:6.2f}"
            )
            results.append({"m": m, "solver": name, **row})
    harness.write(
        args.results / "solver.json",
        {
            "threads": 1,
            "rounds": args.rounds,
            "matrices": len(grams),
            "results": results,
        },
        "torch",
        "torchjd",
        "quadprog",
    )


if __name__ == "__main__":
    main()
