"""Two overlapping digits, trained on one device, on several, or on a TPU.

IT WAS NOT RUN ON A TPU, for there was none to try it on. With the strategies
`none`, `mirrored` and `multiworker` it runs as it stands on any machine, and
that is tested. docs/distributed.md says what is known of TPUs.

    python -m examples.tpu --strategy mirrored      # GPUs, or a CPU cut in two
    python -m examples.tpu --strategy tpu --mixed-bfloat16 \\
        --steps-per-execution 18                    # on a Cloud TPU VM

On several machines, two here: the same on each, but for the index.

    export TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                       "task": {"type": "worker", "index": 0}}'
    python -m examples.tpu --strategy multiworker --backup /shared/backup

If a worker dies the others stop; started anew, all go on after the last epoch.
"""

import argparse
import sys
from pathlib import Path

import keras
import tensorflow as tf

import keras_mgda
from examples import networks, two_digits

ROOT = Path(__file__).parents[1]
TASKS = ("left", "right")
STRATEGIES = ("none", "mirrored", "multiworker", "tpu")


def make_strategy(args):
    """Where to train. It decides which devices there are: call it first."""
    if args.strategy == "mirrored":
        if not tf.config.list_physical_devices("GPU"):
            (cpu,) = tf.config.list_physical_devices("CPU")
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * args.devices
            )
        return tf.distribute.MirroredStrategy()
    if args.strategy == "multiworker":
        # A worker that dies is missed within seconds. One that merely hangs
        # would hold up the others for ever, but for this.
        options = tf.distribute.experimental.CommunicationOptions(
            timeout_seconds=600
        )
        return tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=options
        )
    if args.strategy == "tpu":  # which compiles the step: no `jit_compile`
        connect = tf.distribute.cluster_resolver.TPUClusterResolver.connect
        return tf.distribute.TPUStrategy(connect(args.tpu))
    return tf.distribute.get_strategy()


def build(steps_per_execution):
    """LeNet with two heads. Its logits are float32, whatever the policy."""
    image = keras.Input((28, 28, 1), name="image")
    z = keras_mgda.SharedRepresentation()(networks.lenet(image))
    logits = {
        task: networks.lenet_head(z, name=task, dtype="float32")
        for task in TASKS
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = keras_mgda.MGDAModel(image, logits)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        loss=dict.fromkeys(TASKS, loss),
        metrics={task: ["accuracy"] for task in TASKS},
        steps_per_execution=steps_per_execution,
    )
    return model


def batches(split, size, training):
    """Batches for all replicas together, which `fit` shares out.

    All of the same size: a TPU compiles the step for one. Endless for training,
    so that no worker runs out of data before the others; and in an order that
    is the same on all of them, or they would not take different parts of it.
    """
    data = tf.data.Dataset.from_tensor_slices(split)
    if training:
        data = data.repeat()
        data = data.shuffle(len(split[0]), 0, reshuffle_each_iteration=False)
    data = data.batch(size, drop_remainder=True)
    return data.prefetch(tf.data.AUTOTUNE)


def publish(model, folder):
    """Saves the model, and publishes a copy of it that is on this host only."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    copy = keras.saving.load_model(folder / "model.keras")
    return keras_mgda.export_saved_model(copy, folder)


def read_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--strategy", choices=STRATEGIES, default="none")
    add("--devices", type=int, default=2, help="of a CPU, for mirrored")
    add("--tpu", default="local", help="its name, if not this VM's own")
    add("--batch-size", type=int, default=32, help="of a replica")
    add("--epochs", type=int, default=10)
    add("--mixed-bfloat16", action="store_true", help="for a TPU")
    add("--steps-per-execution", type=int, default=1, help="for a TPU")
    add("--images", type=int, help="of each split, at most")
    add("--backup", help="directory to resume from, that all workers read")
    add("--saved-models", type=Path, default=ROOT / "saved_models")
    return parser.parse_args(argv)


def main(argv=None):
    args = read_arguments(argv)
    strategy = make_strategy(args)
    replicas = strategy.num_replicas_in_sync
    writes = strategy.extended.should_checkpoint  # only one of the workers
    if args.mixed_bfloat16:
        keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)

    data = two_digits.load("digits", copies=4, images=args.images)
    train, test = data["train"], data["test"]
    size = args.batch_size * replicas
    if size > min(len(train[0]), len(test[0])):
        sys.exit(f"{size} images in a batch are more than there are.")

    with strategy.scope():  # of all variables, those of the optimizer too
        model = build(args.steps_per_execution)
    callbacks = []
    if args.backup:  # all workers read it, one writes and removes it
        often = "epoch" if writes else sys.maxsize
        callbacks.append(
            keras.callbacks.BackupAndRestore(
                args.backup, save_freq=often, delete_checkpoint=writes
            )
        )
    model.fit(
        batches(train, size, training=True),
        epochs=args.epochs,
        steps_per_epoch=len(train[0]) // size,
        shuffle=False,  # `batches` does
        callbacks=callbacks,
        verbose=2 if writes else 0,
    )
    metrics = model.evaluate(
        batches(test, size, training=False), return_dict=True, verbose=0
    )
    print(f"{replicas} replicas, test loss {metrics['loss']:.6f}")
    print("Task weights of the last step:", model.task_weights)
    tested = len(test[0]) // size * size
    for task in TASKS:
        right = 100 * metrics[f"{task}_accuracy"]
        print(f"{task}: {right:.2f} % of {tested} test images")
    if writes:
        print("Published:", publish(model, args.saved_models / "tpu"))


if __name__ == "__main__":
    main()
