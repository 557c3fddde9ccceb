"""Trains with backups in the middle of an epoch; prints what it ended with.

    python -m tests.support.resume_job DIRECTORY WEIGHTING STEP

Kills itself after that many steps, but for `STEP` 0: then it goes on from the
backup, trains the same anew without a break, and prints `RESULT` and both.
"""

import hashlib
import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from tests.support.weighting_cases import STATEFUL, TASKS, state

BATCHES, BATCH_SIZE, SAVE_FREQ = 30, 8, 4


def compiled(weighting):
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    # No dropout: Keras does not save the states of its seed generators.
    h = layers.BatchNormalization()(layers.Dense(8, activation="relu")(x))
    z = SharedRepresentation()(h)
    model = MGDAModel(x, {task: layers.Dense(1)(z) for task in TASKS})
    model.compile(
        keras.optimizers.Adam(0.01),
        dict.fromkeys(TASKS, "mse"),
        weighting=weighting,
        jit_compile=False,
    )
    return model


def batches(directory=None):
    """What a backup in that directory leaves of the epoch.

    `BackupAndRestore` loads all variables and tells `fit` in which epoch to go
    on, but the epoch starts anew: to go on at the same batch is up to the data.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCHES, BATCH_SIZE, 6)).astype("float32")
    y = {
        task: rng.normal(size=(BATCHES, BATCH_SIZE, 1)).astype("float32")
        for task in TASKS
    }
    seen = 0
    if directory:
        backup = pathlib.Path(directory) / "training_metadata.json"
        if backup.exists():
            seen = json.loads(backup.read_text())["batch"] + 1
    return tf.data.Dataset.from_tensor_slices((x, y)).skip(seen)


class Kill(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step, self.start = step, None

    def on_train_begin(self, logs=None):
        self.start = int(self.model.optimizer.iterations.numpy())

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def trained(weighting, data, callbacks=()):
    model = compiled(weighting)
    model.fit(data, verbose=0, callbacks=list(callbacks))
    values = [
        *(v.numpy() for v in [*model.variables, *model.optimizer.variables]),
        *state(model),
        np.array(list(model.task_weights.values())),
    ]
    assert all(np.isfinite(value).all() for value in values)
    return {
        "steps": int(model.optimizer.iterations.numpy()),
        "digests": [hashlib.sha256(v.tobytes()).hexdigest() for v in values],
    }


def main(directory, weighting, step):
    tf.config.experimental.enable_op_determinism()
    backup = keras.callbacks.BackupAndRestore(
        directory, save_freq=SAVE_FREQ, delete_checkpoint=False
    )
    kill = Kill(int(step))
    resumed = trained(STATEFUL[weighting](), batches(directory), [backup, kill])
    whole = trained(STATEFUL[weighting](), batches())
    return {"start": kill.start, "resumed": resumed, "whole": whole}


if __name__ == "__main__":
    print("RESULT", json.dumps(main(*sys.argv[1:])))
