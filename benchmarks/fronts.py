"""Where each weighting ends on two problems whose Pareto front is known.

From each of many starts, 500 steps along `sum_t w_t g_t` with the exact task
gradients. Draws docs/figures/fronts.png, prints how far from the front the runs
end, and how much of it they find, and writes results/fronts.json.

    python -m benchmarks.fronts [--starts 40]
"""

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from benchmarks import harness, tables
from keras_mgda import gram_matrix, pareto, weightings

STEPS = 500
WEIGHTINGS = {
    "mean": weightings.Fixed([0.5, 0.5]),
    "MGDA": weightings.MGDA(),
    "UPGrad": weightings.UPGrad(),
    "CAGrad": weightings.CAGrad(),
    "Nash-MTL": weightings.NashMTL(),
    "Aligned-MTL": weightings.AlignedMTL(),
}


def quadratics(x):
    """Two bowls, one ten times as steep, stretched along different axes."""
    one, two = tf.constant([1.0, 0.0]), tf.constant([-1.0, 0.5])
    return (
        10 * tf.reduce_sum([1.0, 4.0] * (x - one) ** 2),
        tf.reduce_sum([3.0, 1.0] * (x - two) ** 2),
    )


def vlmop2(x):
    """Not convex, and its front neither: no fixed weights reach its middle."""
    shift = 1 / np.sqrt(2)
    return (
        1 - tf.exp(-tf.reduce_sum((x - shift) ** 2)),
        1 - tf.exp(-tf.reduce_sum((x + shift) ** 2)),
    )


def quadratics_front():
    """Where `a H_1 (x - c_1) + (1 - a) H_2 (x - c_2) = 0`."""
    a = np.linspace(0, 1, 400)[:, None]
    H1, H2 = np.array([10.0, 40.0]), np.array([3.0, 1.0])
    c1, c2 = np.array([1.0, 0.0]), np.array([-1.0, 0.5])
    return (a * H1 * c1 + (1 - a) * H2 * c2) / (a * H1 + (1 - a) * H2)


def vlmop2_front():
    return np.linspace(-1, 1, 400)[:, None] / np.sqrt([2.0, 2.0])


# Learning rate, starts within so much of the origin, the worst that counts.
PROBLEMS = {
    "quadratics": (quadratics, quadratics_front, 0.01, 2.0, [60.0, 15.0]),
    "VLMOP2": (vlmop2, vlmop2_front, 0.1, 1.2, [1.0, 1.0]),
}


def descend(losses, weighting, start, rate):
    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            values = losses(x)
        gradients = [tape.gradient(value, x) for value in values]
        w = weighting(gram_matrix(gradients), tf.stack(values))
        return x - rate * tf.tensordot(w, tf.stack(gradients), 1)

    x = tf.constant(start, tf.float32)
    for _ in range(STEPS):
        x = step(x)
    return x.numpy()


def values_at(losses, points):
    points = np.asarray(points, "float32")
    return np.array(
        [[float(v) for v in losses(tf.constant(p))] for p in points]
    )


def main(argv=None):
    args = harness.parser(__doc__, starts=40).parse_args(argv)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    found = {}
    for axes, (name, problem) in zip(
        figure.subplots(1, 2), PROBLEMS.items(), strict=True
    ):
        losses, true_front, rate, radius, reference = problem
        rng = np.random.default_rng(0)
        begin = rng.uniform(-radius, radius, size=(args.starts, 2))
        front = values_at(losses, true_front())
        axes.plot(*front.T, color="0.7", linewidth=4, label="Pareto front")
        ends = {}
        for method, weighting in WEIGHTINGS.items():
            weighting.build(["one", "two"])
            x = [descend(losses, weighting, b, rate) for b in begin]
            ends[method] = values_at(losses, x)
        pareto.plot_two(axes, ends)
        axes.set(title=name, xlabel="loss of task 1", ylabel="loss of task 2")
        span = np.ptp(front, axis=0)
        whole = pareto.hypervolume(front, reference)
        found[name] = {
            method: {
                # Relative to the extent of the front in each task.
                "median_distance": float(
                    np.median(
                        [
                            np.linalg.norm((front - e) / span, axis=1).min()
                            for e in of_method
                        ]
                    )
                ),
                "hypervolume_share": pareto.hypervolume(of_method, reference)
                / whole,
            }
            for method, of_method in ends.items()
        }
    args.figures.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.figures / "fronts.png", dpi=110)
    found = {"starts": args.starts, **found}
    harness.write(args.results / "fronts.json", found)
    print(tables.fronts(args.results))


if __name__ == "__main__":
    main()
