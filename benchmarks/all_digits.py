"""Table 3 of the paper on all 60,000 digits, and by the authors' protocol.

`benchmarks.accuracy` chooses learning rate and epoch on a validation split of
10,000 digits. Here each method keeps both and is trained again on all digits;
the test accuracies of every epoch are written, so that one run has two rows:

- after as many epochs as validation chose, the honest one;
- at the epoch that is best on the test split, by the mean of the tasks, which
  is how the authors' code chooses the one that it reports.

Where validation has not seen 100 epochs of a method, it keeps the rate of the
ten epochs and trains for all 100.

With `--masks` the dropout is the one of the authors' code: of the encoder's
channels one mask serves the whole batch, and what is kept is not divided by the
share that is kept, so that predictions see activations of twice the size.

Prints a table. Each run is a line of results/all_digits.jsonl once it is
finished, and is not repeated: start the script again to go on. A run takes
ten to twenty minutes of a core.

    python -m benchmarks.all_digits [--data-dir DIR] [--seeds 3] [--masks]
"""

import time

import keras
import numpy as np
from keras import layers

from benchmarks import harness, tables
from benchmarks.accuracy import METHODS
from examples import multi_mnist, two_digits

EPOCHS = 100
SHOWN = (
    "uniform",
    "MGDA-UB",
    "single task, left",
    "single task, right",
    "exact MGDA",
    "UPGrad",
)


@keras.saving.register_keras_serializable("benchmarks")
class Mask(layers.Dropout):
    """Dropout that leaves what it keeps as large as it was."""

    def call(self, inputs, training=False):
        kept = super().call(inputs, training=training)
        return kept * (1 - self.rate) if training else kept


@keras.saving.register_keras_serializable("benchmarks")
class ChannelMask(Mask):
    """Drops the same channels of all images of a batch, `[b, h, w, c]`."""

    def build(self, input_shape):
        self.noise_shape = (1, 1, 1, input_shape[-1])
        super().build(input_shape)


MASKS = {"channels": ChannelMask, "units": Mask}


def train(name, learning_rate, seed, epochs, masks, data_dir):
    """The test accuracies, in percent, of each task after each epoch."""
    start = time.perf_counter()
    method = METHODS[name]
    settings = multi_mnist.SETTINGS["mnist"]
    digits = two_digits.load("mnist", data_dir)
    train, test = all_digits(digits), digits["test"]
    keras.utils.set_random_seed(seed)
    examples = multi_mnist.batches(
        train, method.tasks, settings.batch_size, seed
    )
    model = multi_mnist.build(
        method,
        multi_mnist.halved(learning_rate, epochs * len(examples)),
        settings.dropout,
        **(MASKS if masks else {}),
    )
    reached = {task: [] for task in method.tasks}

    def on_epoch_end(epoch, logs):
        for task, accuracy in multi_mnist.accuracies(model, test).items():
            reached[task].append(round(accuracy, 2))

    model.fit(
        examples,
        epochs=epochs,
        shuffle=False,  # `batches` does
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)],
        verbose=0,
    )
    return {
        "test_of_epochs": reached,
        "seconds": round(time.perf_counter() - start, 1),
    }


def all_digits(splits):
    """The images of the training and the validation split, as one."""
    (x, y), (held_x, held_y) = splits["train"], splits["validation"]
    joined = {task: np.concatenate([y[task], held_y[task]]) for task in y}
    return np.concatenate([x, held_x]), joined


def main(argv=None):
    parser = harness.parser(__doc__, epochs=EPOCHS, seeds=3)
    add = parser.add_argument
    add("--methods", nargs="+", choices=SHOWN, default=list(SHOWN))
    add("--data-dir", help="of TensorFlow Datasets")
    add("--masks", action="store_true", help="the dropout of the authors' code")
    args = parser.parse_args(argv)
    rates = tables.chosen_rates(args.results)
    # Seed by seed, so that what is there when time is up can be compared.
    for seed in range(args.seeds):
        for name in args.methods:
            asked = {
                "method": name,
                "learning_rate": rates[name],
                "seed": seed,
                "epochs": args.epochs,
                "masks": args.masks,
            }

            def measure(asked=asked):
                print(asked, flush=True)
                return harness.in_fresh_process(
                    train, *asked.values(), args.data_dir
                )

            harness.once(args.results / "all_digits.jsonl", asked, measure)
    print(tables.all_digits(args.results))


if __name__ == "__main__":
    main()
