"""Two overlapping digits, trained on a TPU, on several GPUs or machines.

IT WAS NOT RUN ON A TPU, for there was none to try it on. With the strategies
`none`, `mirrored` and `multiworker` it runs as it stands on any machine, and
that is tested; so is that its training step is one XLA program of static
shapes, which is what a TPU needs.

On a Cloud TPU VM:

    pip install "keras_mgda[tpu,examples]"
    python examples/tpu.py --strategy tpu

On all GPUs of a machine, or on two logical devices of its CPU:

    python examples/tpu.py --strategy mirrored

On several machines, two here: the same on each, but for the index.

    export TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                       "task": {"type": "worker", "index": 0}}'
    python examples/tpu.py --strategy multiworker --backup /shared/backup

If a worker dies the others stop; started anew, all go on after the last epoch.
"""

import argparse
import sys

import keras
import tensorflow as tf
import two_digits
from keras import layers

import keras_mgda

TASKS = ("left", "right")


def tpu(name):
    """All cores of a TPU: `"local"` on a TPU VM, else its name."""
    # Finds the TPU, connects to it and initializes its memory.
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(name)
    return tf.distribute.TPUStrategy(resolver)


def mirrored(_):
    """All GPUs of this machine; without any, two logical devices of its CPU."""
    if not tf.config.list_physical_devices("GPU"):
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
    return tf.distribute.MirroredStrategy()


def multiworker(_):
    """All workers that `TF_CONFIG` names."""
    # A worker that dies is missed within seconds. One that merely hangs would
    # hold up the others for ever, but for this.
    options = tf.distribute.experimental.CommunicationOptions(
        timeout_seconds=600
    )
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=options
    )


def none(_):
    """One device."""
    return tf.distribute.get_strategy()


STRATEGIES = {f.__name__: f for f in (none, mirrored, multiworker, tpu)}


def network():
    image = keras.Input((28, 28, 1), name="image")
    x = layers.Conv2D(10, 5, activation="relu")(image)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(20, 5, activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    z = layers.Dense(50, activation="relu")(layers.Flatten()(x))
    z = keras_mgda.SharedRepresentation()(z)
    logits = {}
    for task in TASKS:
        hidden = layers.Dense(50, activation="relu")(z)
        # In float32, whatever the policy: the losses need it.
        logits[task] = layers.Dense(10, name=task, dtype="float32")(hidden)
    return image, logits


def build(strategy, learning_rate, steps_per_execution):
    """All variables have to be made under the strategy that trains them."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with strategy.scope():
        model = keras_mgda.MGDAModel(*network())
        model.compile(
            keras.optimizers.SGD(learning_rate, momentum=0.9),
            loss=dict.fromkeys(TASKS, loss),
            metrics={task: ["accuracy"] for task in TASKS},
            weighting="mgda",
            gradients="representation",
            steps_per_execution=steps_per_execution,
        )
    return model


def batches(split, size, training):
    """Batches for all replicas together, which `fit` shares out.

    All of the same size: a TPU compiles the step for one. Endless for training,
    so that no worker runs out of data before the others.
    """
    data = tf.data.Dataset.from_tensor_slices(split)
    if training:
        data = data.shuffle(len(split[0]), seed=0).repeat()
    data = data.batch(size, drop_remainder=True)
    return data.prefetch(tf.data.AUTOTUNE)


def backup(directory, writes):
    """Lets all workers resume from what the first one wrote."""
    return keras.callbacks.BackupAndRestore(
        directory,
        save_freq="epoch" if writes else sys.maxsize,
        delete_checkpoint=writes,
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strategy", choices=STRATEGIES, default="none")
    parser.add_argument("--tpu", default="local", help="name, if not this VM's")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="of a device"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--backup", help="directory to resume from")
    args = parser.parse_args(argv)

    # Before anything else: it decides which devices there are.
    strategy = STRATEGIES[args.strategy](args.tpu)
    replicas = strategy.num_replicas_in_sync
    on_tpu = args.strategy == "tpu"
    if on_tpu:
        keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)

    data = two_digits.load("digits", copies=4)
    size = args.batch_size * replicas
    steps = len(data["train"][0]) // size
    if steps == 0:
        parser.error(f"{size} examples in a batch are more than there are.")
    # On a TPU the host starts many steps at once. Elsewhere Keras cannot do so
    # with several replicas.
    model = build(strategy, args.learning_rate, steps if on_tpu else 1)

    first = True
    if args.strategy == "multiworker":
        first = strategy.cluster_resolver.task_id == 0
    model.fit(
        batches(data["train"], size, training=True),
        epochs=args.epochs,
        steps_per_epoch=steps,
        callbacks=[backup(args.backup, first)] if args.backup else None,
        verbose=2 if first else 0,
    )
    test = batches(data["test"], size, training=False)
    metrics = model.evaluate(test, return_dict=True, verbose=0)
    if first:
        print(f"{replicas} replicas, task weights {model.task_weights}")
        for task in TASKS:
            right = 100 * metrics[f"{task}_accuracy"]
            print(f"{task}: {right:.2f} % of the test images")
    return model


if __name__ == "__main__":
    main()
