"""Whether `diagnose` foresees the conflicts that `verify=True` then logs.

A model is trained by the plain sum. At several moments `diagnose` looks at 64
batches and tells in which share of the steps the sum raises some task's loss;
then 64 steps are made, and `verify` counts them. Both are shares of 64, with
intervals of 95 % (Wilson, 1927); they agree if the intervals meet.

Two overlapping digits as two tasks (which are they) and as twenty (is the left
one a 0, ...), from a file of MNIST as Keras keeps it; 12 assays of Tox21 as
columns. Prints a table and writes results/agreement.json.

    python -m benchmarks.agreement --mnist mnist.npz --tox21 tox21.csv.gz
"""

from pathlib import Path

import keras
import numpy as np
from scipy.stats import binomtest

import keras_mgda
from benchmarks import harness, tables
from examples import molecules, networks, two_digits

STEPS = 64
MOMENTS = (0, 1, 4)  # epochs


def of_two_digits(path):
    """`x`, and the digit of each task."""
    with np.load(path) as mnist:
        images, labels = mnist["x_train"][..., None], mnist["y_train"]
    rng = np.random.default_rng(0)
    return two_digits.pair(images[:20_000], labels[:20_000], 1, rng)


def two_tasks(args):
    x, y = of_two_digits(args.mnist)
    model = digits_model(dict.fromkeys(y, 10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, x, y, {"loss": dict.fromkeys(y, loss)}


def twenty_tasks(args):
    x, digits = of_two_digits(args.mnist)
    y = {
        f"{side}_{k}": (of_side == k).astype("float32")[:, None]
        for side, of_side in digits.items()
        for k in range(10)
    }
    model = digits_model(dict.fromkeys(y, 1))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return model, x, y, {"loss": dict.fromkeys(y, loss)}


def digits_model(classes):
    image = keras.Input((28, 28, 1))
    z = keras_mgda.SharedRepresentation()(networks.lenet(image))
    return keras_mgda.MGDAModel(
        image,
        {
            task: networks.lenet_head(z, classes=of_task)
            for task, of_task in classes.items()
        },
    )


def twelve_columns(args):
    names, splits = molecules.molecules(args.tox21)
    x, y = splits["train"]
    model = keras_mgda.MGDAModel(*molecules.network(x.shape[1], len(names)))
    loss = keras_mgda.losses.PerColumn("binary_crossentropy", names)
    options = {"loss": {"assays": loss}, "unlabelled": "nan"}
    return model, x, {"assays": y}, options


class Conflicts(keras.callbacks.Callback):
    """The conflicts of each step, of which the logs hold the mean so far."""

    def __init__(self):
        super().__init__()
        self.of_steps = []

    def on_train_batch_end(self, batch, logs):
        total = logs["conflicts"] * (batch + 1)
        self.of_steps.append(round(total - sum(self.of_steps)))


def compared(problem, args, batch_size):
    """What was foreseen and seen, `[{...}]` by moment."""
    keras.utils.set_random_seed(0)
    model, x, y, options = problem(args)
    optimizer = keras.optimizers.Adam(1e-3)
    model.compile(optimizer, weighting="uniform", verify=True, **options)
    found, epoch = [], 0
    for moment in MOMENTS:
        while epoch < moment:
            model.fit(x, y, batch_size=batch_size, verbose=0)
            epoch += 1
        foreseen = keras_mgda.diagnose(
            model, (x, y), STEPS, batch_size=batch_size
        )
        chosen = np.random.default_rng(epoch).permutation(len(x))
        chosen = chosen[: STEPS * batch_size]
        conflicts = Conflicts()
        model.fit(
            x[chosen],
            {task: of_task[chosen] for task, of_task in y.items()},
            batch_size=batch_size,
            callbacks=[conflicts],
            verbose=0,
        )
        seen = np.array(conflicts.of_steps)
        found.append(
            {
                "epoch": epoch,
                "foreseen": list(foreseen.steps["plain sum"].harmful),
                "seen": list(share_of(seen > 0)),
                "foreseen_conflicts": foreseen.steps["plain sum"].conflicts,
                "seen_conflicts": float(seen.mean()),
            }
        )
        print(found[-1], flush=True)
    return found


def share_of(events):
    """A share, and its interval of Wilson."""
    interval = binomtest(int(events.sum()), len(events)).proportion_ci(
        method="wilson"
    )
    return float(events.mean()), interval.low, interval.high


PROBLEMS = {
    "two digits, 2 tasks": (two_tasks, 128),
    "two digits, 20 tasks": (twenty_tasks, 128),
    "Tox21, 12 columns": (twelve_columns, 64),
}


def main(argv=None):
    parser = harness.parser(__doc__)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--tox21", type=Path, required=True)
    args = parser.parse_args(argv)
    found = {
        name: compared(problem, args, batch_size)
        for name, (problem, batch_size) in PROBLEMS.items()
    }
    path = args.results / "agreement.json"
    harness.write(path, {"steps": STEPS, "problems": found})
    print(tables.agreement(args.results))


if __name__ == "__main__":
    main()
