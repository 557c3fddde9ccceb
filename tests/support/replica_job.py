"""One process of a distributed run; prints what it found.

    python -m tests.support.replica_job JOB [ARGUMENT ...]

A worker if `TF_CONFIG` says so. Prints `RESULT` and JSON as its last line.
"""

import json
import os
import pathlib
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_mgda import weightings
from tests.support import runs


def mirrored_cases(number, *cases):
    """Runs of the cases on so many logical CPUs."""
    devices = [f"CPU:{index}" for index in range(int(number))]
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration() for _ in devices],
    )
    strategy = tf.distribute.MirroredStrategy(devices)
    return {case: of_case(case, strategy) for case in cases}


def worker_cases(*cases):
    """Runs of the cases on the workers."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    return {case: of_case(case, strategy) for case in cases}


def of_case(case, strategy):
    return as_json(runs.of_case(runs.CASES[int(case)], strategy))


def as_json(run):
    return run._replace(weights=[w.tolist() for w in run.weights])._asdict()


def worker_suite(directory, *cases):
    """All that workers can do while none of them dies."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    results = {"cases": {case: of_case(case, strategy) for case in cases}}
    for part in (
        evaluation,
        normalized,
        overflow,
        stock,
        uneven,
        different_numbers_of_batches,
        different_starts,
        saved,
    ):
        results[part.__name__] = part(strategy, pathlib.Path(directory))
    return results


def evaluation(strategy, directory):
    model = runs.compiled(strategy)
    x, y = runs.data(97)
    metrics = model.evaluate(x, y, batch_size=24, verbose=0, return_dict=True)
    outputs = model.predict(x, batch_size=24, verbose=0)
    return metrics, {
        task: of_task.tolist() for task, of_task in outputs.items()
    }


def normalized(strategy, directory):
    """Variables after training with batch statistics and dropout."""
    of_encoder = (layers.BatchNormalization, lambda: layers.Dropout(0.3))
    model = runs.compiled(strategy, of_encoder)
    loss = runs.fit(model).history["loss"]
    return loss, runs.on_each_replica(model)[0]


def overflow(strategy, directory):
    """Trains in float16 on a label that overflows on the last worker."""
    x, y = runs.data(48)
    y["b"][23] = 1e30
    keras.config.set_dtype_policy("mixed_float16")
    model = runs.compiled(strategy)
    keras.config.set_dtype_policy("float32")
    before = [variable.numpy().tolist() for variable in model.weights]
    model.fit(
        x[:24], {t: v[:24] for t, v in y.items()}, batch_size=24, verbose=0
    )
    skipped = [variable.numpy().tolist() for variable in model.weights]
    model.fit(
        x[24:], {t: v[24:] for t, v in y.items()}, batch_size=24, verbose=0
    )
    scale = float(model.optimizer.dynamic_scale.numpy())
    return before, skipped, runs.on_each_replica(model)[0], scale


def stock(strategy, directory):
    """How stock Keras fails."""
    plain = runs.compiled(strategy, make=keras.Model)
    x, y = runs.data(24)
    return error_of(lambda: plain.fit(x, y, batch_size=24, verbose=0))


def uneven(strategy, directory):
    """Workers with batches of different sizes, that end at different times."""
    model = runs.compiled(strategy)
    rank = strategy.cluster_resolver.task_id
    data = own_data(strategy, 20 - 8 * rank, batch_size=2 + rank, known=False)
    # Not `optimizer.iterations`: in stock Keras, on one device too, it also
    # counts the step that finds out that an iterator has ended.
    steps = []
    counter = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    history = model.fit(data, epochs=2, verbose=0, callbacks=counter).history
    return len(steps), history["loss"], runs.on_each_replica(model)[0]


def different_numbers_of_batches(strategy, directory):
    model = runs.compiled(strategy)
    rank = strategy.cluster_resolver.task_id
    data = own_data(strategy, size=20 - 8 * rank, batch_size=2)
    return [
        error_of(lambda: model.fit(data, verbose=0)),
        error_of(lambda: model.fit(data, steps_per_epoch=8, verbose=0)),
        error_of(lambda: model.evaluate(data, verbose=0)),
        int(model.optimizer.iterations.numpy()),
    ]


def different_starts(strategy, directory):
    """One after another in a weight, a rate, a seed and a state."""
    rank = strategy.cluster_resolver.task_id
    in_weight = runs.compiled(strategy)
    in_weight.weights[0].assign(in_weight.weights[0] + float(rank))
    in_rate = runs.compiled(strategy)
    in_rate.optimizer.learning_rate = 0.1 * (1 + rank)
    in_seed = runs.compiled(strategy, weighting=weightings.PCGrad(seed=rank))
    in_state = runs.compiled(strategy, weighting=weightings.FAMO())
    (logits, *_) = in_state._descent.weighting.state.variables
    logits.assign(logits + float(rank))
    return [
        error_of(lambda different=different: runs.fit(different))
        for different in (in_weight, in_rate, in_seed, in_state)
    ]


def saved(strategy, directory):
    """Saved after an epoch, loaded under the strategy, and trained on."""
    model = runs.compiled(strategy)
    runs.fit(model, epochs=1)
    path = directory / f"{strategy.cluster_resolver.task_id}.keras"
    model.save(path)
    with strategy.scope():
        loaded = keras.saving.load_model(path)
    return as_json(runs.fit(loaded, epochs=runs.EPOCHS - 1))


def own_data(strategy, size, batch_size, known=True):
    """Data of this worker, in batches of its own size."""

    def of_worker(context):
        data = tf.data.Dataset.from_tensor_slices(runs.data(size))
        data = data.batch(batch_size)
        return data if known else data.filter(lambda *_: True)

    return strategy.distribute_datasets_from_function(of_worker)


def error_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def resumable(directory, victim, epoch, batch):
    """Trains with checkpoints; the victim kills itself after that batch.

    The first worker writes the checkpoints, all of them read.
    """
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    model = runs.compiled(strategy)
    rank = strategy.cluster_resolver.task_id
    backup = keras.callbacks.BackupAndRestore(
        directory,
        save_freq="epoch" if rank == 0 else sys.maxsize,
        delete_checkpoint=False,
    )
    callbacks = [backup]
    if rank == int(victim):
        callbacks.append(Kill(int(epoch), int(batch)))
    return of_fit(model, callbacks)


def unresponsive(over, timeout):
    """The last worker pauses after three batches, until the first has ended.

    Args:
        over: path of a file that the first worker makes when it has.
        timeout: of the collectives, in seconds.
    """
    over = pathlib.Path(over)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=tf.distribute.experimental.CommunicationOptions(
            timeout_seconds=float(timeout)
        )
    )
    model = runs.compiled(strategy)
    callbacks = []
    first = strategy.cluster_resolver.task_id == 0
    if not first:
        callbacks.append(Wait(over, batch=3))
    try:
        return of_fit(model, callbacks)
    finally:
        if first:
            over.touch()


def of_fit(model, callbacks):
    try:
        run = runs.fit(model, callbacks=callbacks)
    except tf.errors.OpError as error:
        return {
            "error": type(error).__name__,
            "message": str(error),
        }
    return as_json(run) | {"steps": int(model.optimizer.iterations.numpy())}


class Wait(keras.callbacks.Callback):
    def __init__(self, path, batch):
        super().__init__()
        self.path, self.batch = path, batch

    def on_train_batch_end(self, batch, logs=None):
        while batch == self.batch and not self.path.exists():
            time.sleep(0.1)


class Kill(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.when = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            os.kill(os.getpid(), signal.SIGKILL)


def parameter_server(*ports):
    """What stock Keras and `compile` do under that strategy."""
    cluster = tf.train.ClusterSpec(
        {
            job: [f"127.0.0.1:{port}"]
            for job, port in zip(("worker", "ps"), ports, strict=True)
        }
    )
    servers = [tf.distribute.Server(cluster, job) for job in cluster.jobs]
    strategy = tf.distribute.ParameterServerStrategy(
        tf.distribute.cluster_resolver.SimpleClusterResolver(
            cluster, rpc_layer="grpc"
        )
    )
    refusal = error_of(lambda: runs.compiled(strategy))
    stock = runs.compiled(strategy, make=keras.Model)
    try:
        stock.fit(*runs.data(), verbose=0)
    except Exception as error:
        return refusal, type(error).__name__, str(error), len(servers)
    return refusal, None


if __name__ == "__main__":
    found = globals()[sys.argv[1]](*sys.argv[2:])
    print("RESULT", json.dumps(found, default=lambda x: np.asarray(x).tolist()))
