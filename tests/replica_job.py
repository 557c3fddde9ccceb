"""One process of a distributed run; prints what it found.

    python replica_job.py JOB [ARGUMENT ...]

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
import runs
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel


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
        uneven_parts,
        early_end,
        different_numbers_of_batches,
        different_states,
        saved,
    ):
        results[part.__name__] = part(strategy, pathlib.Path(directory))
    return results


def evaluation(strategy, directory):
    model = runs.compiled(strategy)
    x, y = runs.data(97)
    metrics = model.evaluate(x, y, batch_size=24, verbose=0, return_dict=True)
    outputs = model.predict(x, batch_size=24, verbose=0)
    return metrics, {task: of_task.tolist() for task, of_task in outputs.items()}


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
    model.fit(x[:24], {t: v[:24] for t, v in y.items()}, batch_size=24, verbose=0)
    skipped = [variable.numpy().tolist() for variable in model.weights]
    model.fit(x[24:], {t: v[24:] for t, v in y.items()}, batch_size=24, verbose=0)
    scale = float(model.optimizer.dynamic_scale.numpy())
    return before, skipped, runs.on_each_replica(model)[0], scale


def uneven_parts(strategy, directory):
    """Each worker reads its own data, in batches of another size."""
    model = runs.compiled(strategy)
    rank = strategy.cluster_resolver.task_id
    data = own_data(strategy, size=10 * (1 + rank), batch_size=1 + rank)
    model.fit(data, verbose=0)
    return int(model.optimizer.iterations.numpy()), runs.on_each_replica(model)[0]


def early_end(strategy, directory):
    """The last worker has fewer batches, and no one knows the numbers."""
    model = runs.compiled(strategy)
    rank = strategy.cluster_resolver.task_id
    data = own_data(strategy, size=20 - 8 * rank, batch_size=2, known=False)
    model.fit(data, epochs=2, verbose=0)
    return int(model.optimizer.iterations.numpy()), runs.on_each_replica(model)[0]


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


def different_states(strategy, directory):
    rank = strategy.cluster_resolver.task_id
    model = runs.compiled(strategy)
    if rank > 0:
        model.weights[0].assign(model.weights[0] + 1.0)
    weights = error_of(lambda: runs.fit(model))
    model = runs.compiled(strategy)
    model.optimizer.learning_rate = 0.1 * (1 + rank)
    return weights, error_of(lambda: runs.fit(model))


def saved(strategy, directory):
    """Largest changes of the outputs when saved, loaded, and trained on."""
    model = runs.compiled(strategy, gradients="parameters")
    x, _ = runs.data(24)
    runs.fit(model, epochs=1)
    path = directory / f"{strategy.cluster_resolver.task_id}.keras"
    model.save(path)
    with strategy.scope():
        in_scope = keras.saving.load_model(path)
    outside = keras.saving.load_model(path)
    change = {
        "in scope": distance(model, in_scope, x),
        "outside": distance(model, outside, x),
    }
    runs.fit(model, epochs=1)
    runs.fit(in_scope, epochs=1)
    return change | {"trained on": distance(model, in_scope, x)}


def distance(model, other, x):
    outputs, others = model(x), other(x)
    return max(float(np.abs(outputs[t] - others[t]).max()) for t in outputs)


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
    """Trains with checkpoints; the victim kills itself in that batch.

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
    if rank == int(victim):
        backup = [backup, Kill(int(epoch), int(batch))]
    start = time.monotonic()
    try:
        run = runs.fit(model, callbacks=backup)
    except tf.errors.OpError as error:
        seconds = time.monotonic() - start
        return {
            "error": type(error).__name__,
            "message": str(error),
            "seconds": seconds,
        }
    return as_json(run) | {"steps": int(model.optimizer.iterations.numpy())}


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
