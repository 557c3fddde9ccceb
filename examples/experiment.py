"""What surrounds the network of an experiment that runs for days.

A run has a folder, `--run`. Stopped, it goes on after its last whole epoch; so
it does if it is started again with more epochs. The epoch with the least error
on validation data is kept, and goes to the results.
"""

import argparse
import csv
import datetime
import json
import math
import os
import platform
import sys
from pathlib import Path

# With oneDNN, TensorFlow 2.21 crashed on a CPU as it trained a thin ResNet-18,
# in stock Keras, too. Only what is set before the import counts.
if "tensorflow" not in sys.modules:
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import tensorflow as tf

from keras_mgda import weightings

ROOT = Path(__file__).parents[1]
METHODS = {  # the weighting, and the gradients that it sees
    "mgda-ub": (weightings.MGDA, "representation"),
    "mgda": (weightings.MGDA, "parameters"),
    "uniform": (weightings.Uniform, "representation"),  # the plain sum
}
# What may differ when a run goes on.
_NOT_SETTINGS = ("epochs", "data_dir", "run", "output", "saved_models")


def parser(name, description, **defaults):
    """The arguments that all experiments have."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--data-dir", help="of TensorFlow Datasets")
    add("--method", choices=METHODS, default="mgda-ub")
    normalizations = ("none", "l2", "loss", "loss+")
    add("--normalization", choices=normalizations, default="none")
    add("--optimizer", choices=("adam", "sgd"), default="adam")
    add("--learning-rate", type=float, default=5e-4)
    add("--epochs", type=int)
    add("--batch-size", type=int)
    add("--width", type=int, default=64, help="channels of the first stage")
    add("--seed", type=int, default=0)
    add("--images", type=int, help="of each split, at most")
    add("--run", type=Path, help=f"default: saved_models/runs/{name}-METHOD")
    results = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    add("--output", type=Path, default=results, help="a line is appended")
    add("--saved-models", type=Path, default=ROOT / "saved_models")
    parser.set_defaults(**defaults)
    return parser


def start(args, name):
    """Seeds the run, and makes sure that its folder is that of no other.

    Raises:
        ValueError: if a run with other settings was started in the folder.
    """
    if args.run is None:
        args.run = ROOT / "saved_models" / "runs" / f"{name}-{args.method}"
    settings = _settings(args)
    path = args.run / "settings.json"
    if path.exists():
        started = json.loads(path.read_text())
        if started != settings:
            raise ValueError(
                f"A run must go on with the settings of its start, {started}. "
                f"Received: {settings}. Give another folder as `--run`, or "
                f"remove {args.run}."
            )
    else:
        args.run.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    keras.utils.set_random_seed(args.seed)


def _settings(args):
    settings = {k: v for k, v in vars(args).items() if k not in _NOT_SETTINGS}
    return json.loads(json.dumps(settings, default=str))


def compile_options(args, steps_per_epoch):
    """The optimizer, its rate halved every 30 epochs, and the method."""
    rate = keras.optimizers.schedules.ExponentialDecay(
        args.learning_rate, 30 * steps_per_epoch, 0.5, staircase=True
    )
    if args.optimizer == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    weighting, gradients = METHODS[args.method]
    if weighting is weightings.MGDA:
        weighting = weightings.MGDA(args.normalization)
    else:
        weighting = weighting()
    return {
        "optimizer": optimizer,
        "weighting": weighting,
        "gradients": gradients,
    }


def train(model, examples, args, validation_error, **fit_options):
    """The epochs that are left, then back to the best of all.

    Args:
        model: compiled, of random variables.
        examples: batches to train on.
        args: those of `parser`.
        validation_error: a function from the logs of an epoch to the number
            that the best epoch has the least of.
        **fit_options: of `fit`.

    Returns:
        The best epoch, counted from 1.

    Raises:
        ValueError: if a validation error is not finite.
    """

    def on_epoch_end(epoch, logs):
        logs["val_error"] = error = validation_error(logs)
        if not math.isfinite(error):
            raise ValueError(
                "The validation error of an epoch must be finite. Received: "
                f"{error} in epoch {epoch + 1}. Take a lower learning rate."
            )

    log, best = args.run / "epochs.csv", args.run / "best.weights.h5"
    least = min((error for error, _ in epochs(log)), default=None)
    model.fit(
        examples,
        epochs=args.epochs,
        shuffle=False,  # the data do
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end),
            keras.callbacks.ModelCheckpoint(
                best,
                monitor="val_error",
                mode="min",
                save_best_only=True,
                save_weights_only=True,
                initial_value_threshold=least,
            ),
            keras.callbacks.CSVLogger(log, append=True),
            keras.callbacks.BackupAndRestore(
                args.run / "backup", delete_checkpoint=False
            ),
        ],
        verbose=2,
        **fit_options,
    )
    model.load_weights(best)
    _, epoch = min(epochs(log))
    return epoch


def epochs(log):
    """`(validation error, epoch)` of the epochs that are over."""
    if not log.exists():
        return []
    with log.open() as file:
        return [
            (float(row["val_error"]), int(row["epoch"]) + 1)
            for row in csv.DictReader(file)
        ]


def record(args, **found):
    """Appends what was found to the results, as a line of JSON."""
    line = {
        "time": datetime.datetime.now().isoformat(timespec="seconds"),
        "settings": _settings(args) | {"epochs": args.epochs},
        "machine": platform.machine(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        **found,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"Results: {args.output}")
