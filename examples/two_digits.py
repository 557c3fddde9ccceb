"""Images of two overlapping digits, made as Sener & Koltun, 2018, make them.

Each digit is the left one of as many images as asked for; its partner on the
right is drawn uniformly from the same split. The sources of the digits:

digits  1797 of 8x8 pixels, which come with scikit-learn: works offline. Scaled
        to 20x20 (bilinear) in the middle of 28x28, where MNIST has its own.
mnist   MNIST from TensorFlow Datasets, as in the paper.

A fifth of `digits` is the test split; MNIST has one. In both a sixth of the
rest is the validation split. (The authors' code validates on the test split.)
"""

import numpy as np
import sklearn.datasets
import tensorflow as tf
from sklearn.model_selection import train_test_split


def load(source, data_dir=None, copies=1, images=None):
    """The splits, always the same ones.

    Args:
        source: "digits" or "mnist".
        data_dir: where TensorFlow Datasets keeps MNIST.
        copies: in how many images each digit is the left one.
        images: of each split, at most.

    Returns:
        `{split: (x, y)}` for "train", "validation" and "test", with images
        `x [n, 28, 28, 1]` in [0, 1] and labels `y = {task: [n]}`.
    """
    rng = np.random.default_rng(seed=0)
    singles = bundled_digits() if source == "digits" else mnist(data_dir)
    pairs = {
        split: pair(*digits, copies, rng) for split, digits in singles.items()
    }
    return {
        split: (x[:images], {task: y[task][:images] for task in y})
        for split, (x, y) in pairs.items()
    }


def bundled_digits():
    """Single digits: `{split: (images [n, 28, 28, 1] uint8, labels [n])}`."""
    digits = sklearn.datasets.load_digits()
    images = tf.image.resize(digits.images[..., None] * 255 / 16, (20, 20))
    images = np.rint(images).astype("uint8")
    images = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    train, test = hold_out(1 / 5, images, digits.target)
    train, validation = hold_out(1 / 6, *train)
    return {"train": train, "validation": validation, "test": test}


def mnist(data_dir=None):
    """The same of MNIST. Downloads it if it is not in `data_dir`."""
    import tensorflow_datasets as tfds  # slow to import

    train, test = tfds.as_numpy(
        tfds.load(
            "mnist",
            split=["train", "test"],
            data_dir=data_dir,
            batch_size=-1,  # all
            as_supervised=True,
        )
    )
    train, validation = hold_out(1 / 6, *train)
    return {"train": train, "validation": validation, "test": test}


def hold_out(fraction, images, labels):
    """Splits a fraction off, with the same share of each label."""
    images, held_images, labels, held_labels = train_test_split(
        images, labels, test_size=fraction, stratify=labels, random_state=0
    )
    return (images, labels), (held_images, held_labels)


def pair(images, labels, copies, rng):
    """Gives each digit `copies` partners."""
    left = np.tile(np.arange(len(images)), copies)
    right = rng.integers(len(images), size=len(left))
    x = overlay(images[left], images[right]).astype("float32") / 255
    return x, {"left": labels[left], "right": labels[right]}


def overlay(left, right):
    """Two digits in one image, all `[n, 28, 28, 1]`.

    On a canvas of 36x36 the right one lies 6 pixels lower and further right;
    the larger value counts; the nearest pixels make it 28x28 again.
    """
    canvas = np.zeros((len(left), 36, 36, 1), left.dtype)
    canvas[:, 0:28, 0:28] = left
    canvas[:, 6:34, 6:34] = np.maximum(canvas[:, 6:34, 6:34], right)
    nearest = ((np.arange(28) + 0.5) * 36 / 28).astype(int)
    return canvas[:, nearest][:, :, nearest]
