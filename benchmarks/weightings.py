"""Time of every weighting, beside TorchJD's of the same name.

A round calls, on one random Jacobian and random losses, ours eagerly, ours in
a graph, and TorchJD's; one process, one thread each, the order changes from
round to round, the Jacobians change, too. Ratios are medians over the rounds
of the ratios within a round. "In a graph" is how a training step calls: the
time of one of 40 calls inside of one `tf.function`. "Apart" is the largest
`||d - d'|| / ||d'||` of the directions, where both solve the same problem, on
Jacobians whose rows are alike in norm, and on others, spread over 10^2.
XLA compile time is that of `tf.function(weighting, jit_compile=True)`: its
first call, after tracing.

TorchJD's scalarizers count with the gradient with respect to the losses, which
is what the weights are. Its ConFIG and NashMTL have no Gram form, and get the
Jacobian, `[m, m + 3]`. Theirs of more than a second run fewer rounds.

Prints a table and writes results/weightings.json.

    python -m benchmarks.weightings [--rounds 21] [--seconds 8]
"""

import functools
import itertools
import warnings

import numpy as np
import tensorflow as tf
import torch
from torchjd import aggregation, scalarization

from benchmarks import harness
from benchmarks.gram_matrices import gram_of, jacobian, random
from keras_mgda import weightings

SIZES = (2, 8, 64, 128)
REPEATS = 40
# Spreads of the norms, as powers of ten, and seeds.
MATRICES = [(spread, seed) for seed in range(4) for spread in (0, 2)]

# From the number of tasks.
OF_GRAM = {
    "aligned_mtl": lambda m: aggregation.AlignedMTLWeighting(),
    "cagrad": lambda m: aggregation.CAGradWeighting(c=0.5),
    "cr_mogm": lambda m: aggregation.CRMOGMWeighting(
        aggregation.MGDAWeighting()
    ),
    "dualproj": lambda m: aggregation.DualProjWeighting(),
    "fairgrad": lambda m: aggregation.FairGradWeighting(alpha=1.0),
    "fixed": lambda m: aggregation.ConstantWeighting(torch.ones(m)),
    "gradvac": lambda m: aggregation.GradVacWeighting(),
    "imtl_g": lambda m: aggregation.IMTLGWeighting(),
    "mgda": lambda m: aggregation.MGDAWeighting(),
    "pcgrad": lambda m: aggregation.PCGradWeighting(),
    "random": lambda m: aggregation.RandomWeighting(),
    "uniform": lambda m: aggregation.SumWeighting(),
    "upgrad": lambda m: aggregation.UPGradWeighting(),
}
OF_JACOBIAN = {
    "config": lambda m: aggregation.ConFIG(),
    "nash_mtl": lambda m: aggregation.NashMTL(n_tasks=m),
}
OF_LOSSES = {
    "cosmos": lambda m: scalarization.COSMOS(1.0, torch.full([m], 1 / m)),
    "dwa": lambda m: scalarization.DWA(),
    "famo": scalarization.FAMO,
    "geometric_mean": lambda m: scalarization.GeometricMean(),
    "imtl_l": scalarization.IMTLL,
    "pbi": lambda m: scalarization.PBI(5.0, torch.full([m], 1 / m)),
    "stch": lambda m: scalarization.STCH(mu=1.0),
    "uncertainty": scalarization.UW,
}
SAME_PROBLEM = (
    "aligned_mtl",
    "cagrad",
    "config",
    "dualproj",
    "fairgrad",
    "imtl_g",
    "mgda",
    "nash_mtl",
    "upgrad",
)


def torchjd_of(name, m):
    """From the Jacobian and losses to a call; `None` if there is none."""
    if name in OF_GRAM:
        weighting = OF_GRAM[name](m)

        def of_gram(J, losses):
            gram = torch.tensor(gram_of(J))
            return lambda: weighting(gram).numpy()

        return of_gram
    if name in OF_JACOBIAN:
        aggregator = OF_JACOBIAN[name](m)

        def of_jacobian(J, losses):
            J = torch.tensor(J, dtype=torch.float32)
            return lambda: aggregator(J).numpy()

        return of_jacobian
    if name in OF_LOSSES:
        scalarizer = OF_LOSSES[name](m)

        def of_losses(J, losses):
            return lambda: gradient(scalarizer, losses)

        return of_losses
    return None


def gradient(scalarizer, losses):
    values = torch.tensor(losses, requires_grad=True)
    (task_weights,) = torch.autograd.grad(scalarizer(values), values)
    if isinstance(scalarizer, scalarization.FAMO):
        scalarizer.update(values)
    return task_weights.numpy()


def ours_of(name, m):
    """From the Jacobian and losses to a call: eager, and in a graph."""
    weighting, in_graph = weightings.get(name), weightings.get(name)
    for one in (weighting, in_graph):
        one.build([str(task) for task in range(m)])

    @tf.function(autograph=False)
    def many(grams, losses):
        pairs = zip(tf.unstack(grams), tf.unstack(losses), strict=True)
        return tf.stack([in_graph(gram, of_it) for gram, of_it in pairs])

    def eager(J, losses):
        gram, losses = tf.constant(gram_of(J)), tf.constant(losses)
        return lambda: weighting(gram, losses).numpy()

    def graph(J, losses):
        grams = tf.stack([gram_of(J)] * REPEATS)
        losses = tf.stack([losses] * REPEATS)
        return lambda: many(grams, losses).numpy()[0]

    return {"eager": eager, "graph": graph}


def example(m, spread, seed):
    losses = np.random.default_rng(seed).uniform(0.5, 2, m).astype("float32")
    return jacobian(random, m, spread, seed), losses


def measure(name, m, rounds, seconds):
    makers = ours_of(name, m)
    theirs = torchjd_of(name, m)
    if theirs is not None:
        makers["TorchJD"] = theirs
    for make in makers.values():  # traces and compiles
        make(*example(m, 0, 99))()

    answers = {of: [] for of in makers}

    def call(of, ready):
        answers[of].append(next(ready)())

    times = harness.interleaved(
        {
            of: functools.partial(
                call,
                of,
                itertools.cycle(
                    [make(*example(m, *matrix)) for matrix in MATRICES]
                ),
            )
            for of, make in makers.items()
        },
        rounds,
        seconds=seconds,
    )
    times["graph"] = [of_many / REPEATS for of_many in times["graph"]]
    row = {f"{of}_seconds": t for of, t in harness.medians(times).items()}
    if theirs is not None:
        ratios = harness.ratios(times, "TorchJD")
        row |= {f"{of}_ratio": ratios[of] for of in ("eager", "graph")}
    if name in SAME_PROBLEM:
        for matrix, own, other in zip(
            itertools.cycle(MATRICES),
            answers["eager"],
            answers["TorchJD"],
            strict=False,
        ):
            J, _ = example(m, *matrix)
            key = f"apart_1e{matrix[0]}"
            row[key] = max(row.get(key, 0), distance(own, other, J))
    row["rounds"] = len(times["eager"])
    row["xla_compile_seconds"] = compile_seconds(name, m)
    return row


def distance(ours, theirs, J):
    """Between the directions: TorchJD's ConFIG and NashMTL return theirs."""
    d = theirs @ J if theirs.shape == ours.shape else theirs
    return float(np.linalg.norm(ours @ J - d) / np.linalg.norm(d))


def compile_seconds(name, m):
    weighting = weightings.get(name)
    weighting.build([str(task) for task in range(m)])
    weigh = tf.function(weighting, jit_compile=True)
    J, losses = example(m, 0, 99)
    arguments = tf.constant(gram_of(J)), tf.constant(losses)
    weigh.get_concrete_function(*arguments)
    first = {"first": lambda: weigh(*arguments).numpy()}
    return harness.interleaved(first, 1)["first"][0]


def printed(row, key, style):
    return f"{row[key]:{style}}" if key in row else ""


def main(argv=None):
    parser = harness.parser(__doc__, rounds=21, seconds=8.0)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    args = parser.parse_args(argv)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="cvxpy|torchjd")
    results = []
    for m in args.sizes:
        print(
            f"{f'm = {m}':16}{'eager, ms':>10}{'graph, ms':>10}"
            f"{'TorchJD':>10}{'eager /':>9}{'graph /':>9}"
            f"{'apart':>9}{'':9}{'XLA, s':>8}"
        )
        for name in weightings.names():
            row = measure(name, m, args.rounds, args.seconds)
            print(
                f"  {name:14}"
                + "".join(
                    f"{1e3 * row[key]:10.3f}" if key in row else f"{'':10}"
                    for key in (
                        "eager_seconds",
                        "graph_seconds",
                        "TorchJD_seconds",
                    )
                )
                + f"{printed(row, 'eager_ratio', '.3f'):>9}"
                + f"{printed(row, 'graph_ratio', '.4f'):>9}"
                + f"{printed(row, 'apart_1e0', '.0e'):>9}"
                + f"{printed(row, 'apart_1e2', '.0e'):>9}"
                + f"{row['xla_compile_seconds']:8.2f}",
                flush=True,
            )
            results.append({"m": m, "weighting": name, **row})
    harness.write(
        args.results / "weightings.json",
        {"threads": 1, "rounds": args.rounds, "results": results},
        "torch",
        "torchjd",
    )


if __name__ == "__main__":
    main()
