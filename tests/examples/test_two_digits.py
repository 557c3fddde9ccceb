"""Two overlapping digits: the images and labels, by hand."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from examples import two_digits


def random_digits(count, seed=0):
    """Noise for images, with all ten labels alike often."""
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(count, 28, 28, 1), dtype="uint8")
    return images, rng.permutation(np.arange(count) % 10)


def test_overlay_equals_a_composition_by_hand():
    left, right = random_digits(3)[0], random_digits(3, seed=1)[0]
    both = two_digits.overlay(left, right)
    assert both.shape == left.shape
    for n, i, j in np.ndindex(both.shape[:3]):
        # The centre of pixel (i, j), on the canvas of 36x36.
        y, x = int((i + 0.5) * 36 / 28), int((j + 0.5) * 36 / 28)
        digits = []
        if y < 28 and x < 28:
            digits.append(left[n, y, x, 0])
        if 6 <= y < 34 and 6 <= x < 34:
            digits.append(right[n, y - 6, x - 6, 0])
        assert both[n, i, j, 0] == max(digits, default=0)


def test_partners_come_from_the_same_split():
    images, labels = random_digits(20)
    x, y = two_digits.pair(images, labels, 3, np.random.default_rng(0))
    assert len(x) == 60
    assert x.min() >= 0
    assert x.max() <= 1
    partners = set()
    for n, (image, left, right) in enumerate(
        zip(x, y["left"], y["right"], strict=True)
    ):
        assert left == labels[n % 20]
        mine = np.repeat(images[n % 20][None], 20, axis=0)
        possible = two_digits.overlay(mine, images) / np.float32(255)
        (partner,) = np.flatnonzero((possible == image).all(axis=(1, 2, 3)))
        assert right == labels[partner]
        partners.add(partner)
    assert len(partners) > 10  # of 20, in 60 draws


def test_splits_of_the_digits_do_not_overlap():
    splits = two_digits.bundled_digits()
    seen = {
        split: {image.tobytes() for image in images}
        for split, (images, _) in splits.items()
    }
    assert [len(seen[split]) for split in splits] == [1197, 240, 360]
    assert len(set.union(*seen.values())) == 1797
    for _, labels in splits.values():  # about as many of each digit
        counts = np.bincount(labels, minlength=10)
        assert counts.min() > 0.9 * counts.mean()


def test_digits_are_where_mnist_has_them():
    images, _ = two_digits.bundled_digits()["train"]
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert images[:, 4:24, 4:24].sum() == images.sum()
    assert images[:, 4].any()
    assert images[:, 23].any()


def test_data_are_the_same_every_time():
    first, second = (two_digits.load("digits", copies=2) for _ in range(2))
    assert {split: len(x) for split, (x, _) in first.items()} == {
        "train": 2394,
        "validation": 480,
        "test": 720,
    }
    for split, (x, y) in first.items():
        np.testing.assert_array_equal(x, second[split][0])
        for task in y:
            np.testing.assert_array_equal(y[task], second[split][1][task])


@pytest.fixture(scope="module")
def prepared_mnist(tmp_path_factory):
    """A small `mnist` as TensorFlow Datasets keeps it when prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    splits = {"train": random_digits(120), "test": random_digits(20, seed=1)}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mnist",
        version="3.0.1",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(28, 28, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={
            split: [
                (n, {"image": image, "label": label})
                for n, (image, label) in enumerate(zip(*digits, strict=True))
            ]
            for split, digits in splits.items()
        },
        data_dir=folder,
    )
    return folder, splits


def labelled(images, labels):
    return {
        (image.tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    }


def test_mnist_keeps_its_test_split(prepared_mnist):
    folder, stored = prepared_mnist
    splits = two_digits.mnist(folder)
    assert [len(labels) for _, labels in splits.values()] == [100, 20, 20]
    assert labelled(*splits["test"]) == labelled(*stored["test"])
    assert labelled(*splits["train"]) | labelled(
        *splits["validation"]
    ) == labelled(*stored["train"])
