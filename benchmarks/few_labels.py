"""A task that few examples are labelled for, beside tasks that all are.

It has labels in 1 % of the training images. Its test accuracy if it is trained
alone, on these, is compared with that of all tasks trained together. The cases
(images of `examples.two_digits`):

related    one digit in an image. Rare: which one it is. The others: whether it
           is odd, at least 5, and has a closed loop.
unrelated  two digits that overlap. Rare: the left one. The other: the right.

Batches are filled in two ways:

as it comes  from all training images, with `compile(unlabelled=-1)`;
joined       by `datasets.join_tasks(..., sampling="uniform")`, an equal share
             of every batch for each task.

All have the same network, optimizer and number of steps. Of each run the step
counts that was best on the validation split. Prints a table and writes
results/few_labels.json.

    python -m benchmarks.few_labels [--rounds 6] [--seeds 3] [--share 0.01]
"""

import statistics

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_mgda
from benchmarks import harness, tables
from examples import networks, two_digits

BATCH_SIZE, STEPS = 64, 100  # between two looks at the validation split
METHODS = {
    "alone": None,
    "mgda, as it comes": ("mgda", False),
    "mgda, joined": ("mgda", True),
    "upgrad, joined": ("upgrad", True),
    "uniform, joined": ("uniform", True),
}


def related():
    """Splits `(x, {task: y})`."""

    def with_attributes(x, y):
        attributes = {
            "odd": y % 2,
            "large": y // 5,
            "loop": np.isin(y, [0, 6, 8, 9]).astype(y.dtype),
        }
        return x.astype("float32") / 255, {"digit": y} | attributes

    singles = two_digits.bundled_digits()
    return {s: with_attributes(*xy) for s, xy in singles.items()}


def unrelated():
    return two_digits.load("digits", copies=4)


CASES = {"related": related, "unrelated": unrelated}
RARE = {"related": "digit", "unrelated": "left"}


def build(num_classes):
    inputs = keras.Input((28, 28, 1))
    z = layers.Dropout(0.3)(networks.half_lenet(inputs))
    z = keras_mgda.SharedRepresentation()(z)
    outputs = {
        task: networks.lenet_head(z, classes=number)
        for task, number in num_classes.items()
    }
    return keras_mgda.MGDAModel(inputs, outputs)


def labelled(y, share, rng):
    """As many of each class as the share leaves, and one at least."""
    chosen = np.zeros(len(y), bool)
    for digit in np.unique(y):
        (of_digit,) = np.nonzero(y == digit)
        number = max(1, round(share * len(of_digit)))
        chosen[rng.choice(of_digit, number, replace=False)] = True
    return chosen


def data(splits, rare, chosen, joined, tasks, seed):
    """Batches without an end."""
    x, y = splits["train"]
    if len(tasks) > 1 and not joined:
        y = {**y, rare: np.where(chosen, y[rare], -1)}
        batches = tf.data.Dataset.from_tensor_slices((x, y))
        return batches.shuffle(len(x), seed).repeat().batch(BATCH_SIZE)
    of_task = {task: (x, y[task]) for task in tasks}
    of_task[rare] = (x[chosen], y[rare][chosen])
    slices = tf.data.Dataset.from_tensor_slices
    return keras_mgda.datasets.join_tasks(
        {task: slices(xy) for task, xy in of_task.items()},
        min(BATCH_SIZE, sum(len(x) for x, _ in of_task.values())),
        sampling="uniform",
        seed=seed,
    ).repeat()


def run(case, method, seed, rounds, share):
    """Test accuracies `{task: share of images}`, and the number of images."""
    splits, rare = CASES[case](), RARE[case]
    keras.utils.set_random_seed(seed)
    labels = splits["train"][1]
    chosen = labelled(labels[rare], share, np.random.default_rng(seed))
    tasks = [rare] if METHODS[method] is None else list(labels)
    weighting, joined = METHODS[method] or ("mgda", True)
    model = build({task: int(labels[task].max()) + 1 for task in tasks})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.Adam(1e-3),
        dict.fromkeys(tasks, loss),
        weighting=weighting,
        unlabelled=dict.fromkeys(tasks, None if joined else -1),
    )
    batches = data(splits, rare, chosen, joined, tasks, seed)
    found = []
    for _ in range(rounds):
        model.fit(batches, steps_per_epoch=STEPS, verbose=0)
        validation, test = (
            accuracies(model, *splits[split])
            for split in ("validation", "test")
        )
        found.append((validation[rare], test))
    _, test = max(found, key=lambda pair: pair[0])
    return test, len(labels[rare])


def accuracies(model, x, y):
    return {
        task: float((np.argmax(logits, -1) == y[task]).mean())
        for task, logits in model.predict(x, batch_size=512, verbose=0).items()
    }


def main(argv=None):
    parser = harness.parser(__doc__, rounds=6, seeds=3, share=0.01)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS)
    )
    args = parser.parse_args(argv)
    results = []
    for case in CASES:
        for method in args.methods:
            found = [
                harness.in_fresh_process(
                    run, case, method, seed, args.rounds, args.share
                )
                for seed in range(args.seeds)
            ]
            tests, images = zip(*found, strict=True)
            accuracies = [test[RARE[case]] for test in tests]
            print(case, method, accuracies, flush=True)
            results.append(
                {
                    "case": case,
                    "rare_task": RARE[case],
                    "training_images": images[0],
                    "method": method,
                    "mean_test_accuracy_of_rare_task": statistics.mean(
                        accuracies
                    ),
                    "test_accuracy": tests,
                }
            )
            harness.write(
                args.results / "few_labels.json",
                {
                    "steps": args.rounds * STEPS,
                    "batch_size": BATCH_SIZE,
                    "share": args.share,
                    "results": results,
                },
            )
    print(tables.few_labels(args.results))


if __name__ == "__main__":
    main()
