"""Whether `diagnose` foresees the conflicts that `verify=True` logs.

A model is trained by the plain sum. At several moments `diagnose` tells in
which share of the steps the sum raises some task's loss, and `verify` counts
them, on 64 other batches each:

- held: from 64 batches, and in 64 steps at a learning rate of 0, which leave
  the model where it is;
- in training: from 8 batches at every 8th step, and in these 64 steps.

All are shares of 64, with intervals of 95 % (Wilson, 1927); two agree if their
intervals meet.

Two overlapping digits as two tasks (which are they) and as twenty (is the left
one a 0, ...), of MNIST; 12 assays of Tox21 as columns; from the folder that
`benchmarks.study` reads. Prints a table and writes results/agreement.json.

    python -m benchmarks.agreement --data FOLDER
"""

import contextlib
from pathlib import Path

import keras
import numpy as np
from scipy.stats import binomtest

import keras_mgda
from benchmarks import harness, tables
from benchmarks.study import datasets
from examples import molecules, networks

STEPS, EVERY = 64, 8
MOMENTS = (0, 1, 4)  # epochs


def two_tasks(folder):
    x, y = datasets.multi_mnist(folder, 20_000)["train"]
    model = digits_model(dict.fromkeys(y, 10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, x, y, {"loss": dict.fromkeys(y, loss)}


def twenty_tasks(folder):
    x, digits = datasets.multi_mnist(folder, 20_000)["train"]
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


def twelve_columns(folder):
    path = folder / "molecules" / "tox21.csv.gz"
    names, splits = molecules.molecules(path)
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


def compared(problem, folder, batch_size):
    """What was foreseen and seen, `[{...}]` by moment."""
    keras.utils.set_random_seed(0)
    model, x, y, options = problem(folder)
    # A last batch of four molecules would move the model as far as others do.
    whole = len(x) // batch_size * batch_size
    x, y = x[:whole], {task: of_task[:whole] for task, of_task in y.items()}
    optimizer = keras.optimizers.Adam(1e-3)
    model.compile(optimizer, weighting="uniform", verify=True, **options)
    rng, found, epoch = np.random.default_rng(0), [], 0

    def batches(number):
        chosen = rng.permutation(len(x))[: number * batch_size]
        return x[chosen], {task: of_task[chosen] for task, of_task in y.items()}

    def foreseen(number):
        """How many tasks each of so many steps would harm, and how many do."""
        found = keras_mgda.diagnose(
            model, batches(number), number, batch_size=batch_size
        ).steps["plain sum"]
        return found.conflicts, round(found.harmful.value * number)

    def seen(number):
        callback = Conflicts()
        model.fit(
            *batches(number),
            batch_size=batch_size,
            callbacks=[callback],
            verbose=0,
        )
        conflicts = np.array(callback.of_steps)
        return conflicts.mean(), (conflicts > 0).sum()

    for moment in MOMENTS:
        while epoch < moment:
            model.fit(x, y, batch_size=batch_size, verbose=0)
            epoch += 1
        with held(model):
            at_rest = [(foreseen(STEPS), seen(STEPS))]
        moving = [
            (foreseen(EVERY), seen(EVERY)) for _ in range(0, STEPS, EVERY)
        ]
        for how, pairs in (("held", at_rest), ("in training", moving)):
            before, after = zip(*pairs, strict=True)
            found.append(
                {
                    "epoch": epoch,
                    "how": how,
                    "foreseen": of_all(before),
                    "seen": of_all(after),
                }
            )
            print(found[-1], flush=True)
    return found


def of_all(parts):
    """The share of 64 steps that harm some task, and how many they harm."""
    conflicts, harmful = zip(*parts, strict=True)
    interval = binomtest(int(sum(harmful)), STEPS).proportion_ci(
        method="wilson"
    )
    return {
        "harmful": float(sum(harmful) / STEPS),
        "low": float(interval.low),
        "high": float(interval.high),
        "conflicts": float(np.mean(conflicts)),
    }


@contextlib.contextmanager
def held(model):
    """Whatever is trained within leaves the model and its optimizer alone."""
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    before = [variable.numpy() for variable in variables]
    model.optimizer.learning_rate = 0.0
    yield
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)


PROBLEMS = {
    "two digits, 2 tasks": (two_tasks, 128),
    "two digits, 20 tasks": (twenty_tasks, 128),
    "Tox21, 12 columns": (twelve_columns, 64),
}


def main(argv=None):
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args(argv)
    found = {
        name: compared(problem, args.data, batch_size)
        for name, (problem, batch_size) in PROBLEMS.items()
    }
    path = args.results / "agreement.json"
    harness.write(path, {"steps": STEPS, "problems": found})
    print(tables.agreement(args.results))


if __name__ == "__main__":
    main()
