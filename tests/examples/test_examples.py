"""The examples: their data by hand, and whole runs on a few images."""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from examples import (
    multi_mnist,
    report,
    two_digits,
)
from keras_mgda import serving  # noqa: E402

METHODS = multi_mnist.METHODS

FEW = ["--images=96", "--epochs=2", "--learning-rates=0.02", "--seeds=1"]


def random_digits(count, seed=0):
    """Noise for images, with all ten labels alike often."""
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(count, 28, 28, 1), dtype="uint8")
    return images, rng.permutation(np.arange(count) % 10)


# The data


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


def test_overlay_samples_as_tensorflow_does():
    left, right = random_digits(3)[0], random_digits(3, seed=1)[0]
    canvas = np.maximum(
        np.pad(left, ((0, 0), (0, 8), (0, 8), (0, 0))),
        np.pad(right, ((0, 0), (6, 2), (6, 2), (0, 0))),
    )
    expected = tf.image.resize(canvas, (28, 28), method="nearest")
    np.testing.assert_array_equal(two_digits.overlay(left, right), expected)


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


# The training


@pytest.fixture(scope="module")
def data():
    """Without the test split: training may not need it."""
    data = two_digits.load("digits")
    del data["test"]
    return {
        split: (x[:96], {task: y[task][:96] for task in y})
        for split, (x, y) in data.items()
    }


@pytest.fixture(scope="module")
def settings():
    return multi_mnist.SETTINGS["digits"]._replace(epochs=3)


def test_methods_start_from_the_same_weights():
    x = random_digits(4)[0].astype("float32") / 255

    def untrained(method, seed):
        keras.utils.set_random_seed(seed)
        return multi_mnist.build(method, learning_rate=0.1)(x)

    expected = untrained(METHODS["uniform"], seed=3)
    for method in METHODS.values():
        start, other = untrained(method, seed=3), untrained(method, seed=4)
        assert set(start) == set(method.tasks)
        for task in method.tasks:
            np.testing.assert_array_equal(start[task], expected[task])
            assert not np.allclose(other[task], expected[task])


def test_batches_change_order_each_epoch_and_are_the_same_for_all_methods():
    x = np.arange(10.0)
    split = (x, {"left": x, "right": -x})
    both = multi_mnist.batches(split, ("left", "right"), 4, seed=1)
    right = multi_mnist.batches(split, ("right",), 4, seed=1)
    epochs = []
    for _ in range(3):
        seen = []
        for (x1, y1), (x2, y2) in zip(both, right, strict=True):
            np.testing.assert_array_equal(x1, x2)
            np.testing.assert_array_equal(y1["right"], -x1)
            assert set(y2) == {"right"}
            seen += x1.numpy().tolist()
        assert sorted(seen) == x.tolist()
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_run_ends_with_the_epoch_that_is_best_on_validation(data, settings):
    run = multi_mnist.train(METHODS["MGDA-UB"], data, settings, 0.05, seed=0)
    reached = multi_mnist.accuracies(run.model, data["validation"])
    assert set(reached) == {"left", "right"}
    assert run.accuracy == pytest.approx(np.mean(list(reached.values())) / 100)
    assert len(run.task_weights) == 6  # steps
    for task_weights in run.task_weights:
        assert sum(task_weights.values()) == pytest.approx(1)


def test_a_seed_determines_a_run(data, settings):
    first, second, other = (
        multi_mnist.train(METHODS["exact MGDA"], data, settings, 0.05, seed)
        for seed in (5, 5, 6)
    )
    for mine, theirs in zip(
        first.model.get_weights(), second.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    assert any(
        not np.allclose(mine, theirs, rtol=1e-2, atol=1e-2)
        for mine, theirs in zip(
            first.model.get_weights(), other.model.get_weights(), strict=True
        )
    )


def test_learning_rate_is_chosen_on_validation_by_the_first_seed(
    monkeypatch, settings
):
    reached = {(0.01, 0): 0.7, (0.02, 0): 0.8, (0.05, 0): 0.6}
    calls = []

    def train(method, data, settings, learning_rate, seed):
        calls.append((learning_rate, seed))
        accuracy = reached.get((learning_rate, seed), 0.1)
        return multi_mnist.Run(None, 1, accuracy, [])

    monkeypatch.setattr(multi_mnist, "train", train)
    chosen, runs = multi_mnist.train_seeds(
        METHODS["uniform"], None, settings, 3
    )
    assert chosen == 0.02
    assert [run.accuracy for run in runs] == [0.8, 0.1, 0.1]
    assert calls == [*reached, (0.02, 1), (0.02, 2)]


def test_accuracies_by_hand():
    y = {"left": np.array([0, 1, 2, 3]), "right": np.array([0, 0, 0, 1])}

    def model(x, training):
        assert not training
        return {task: np.eye(4)[[0, 1, 2, 0]] for task in y}

    assert multi_mnist.accuracies(model, (None, y)) == {
        "left": 75.0,
        "right": 25.0,
    }


# The report


def test_delta_m_by_hand():
    accuracy, single = {"left": 90, "right": 80}, {"left": 100, "right": 64}
    assert report.delta_m(accuracy, single) == pytest.approx((-10 + 25) / 2)
    assert report.delta_m(single, single) == 0


def test_table_by_hand():
    scores = {
        "single task, left": [{"left": 50.0}, {"left": 80.0}],
        "single task, right": [{"right": 40.0}, {"right": 50.0}],
        "uniform": [
            {"left": 55.0, "right": 40.0},  # +10 % and 0: delta-m 5
            {"left": 80.0, "right": 45.0},  # 0 and -10 %: delta-m -5
        ],
    }
    lines = report.table(
        scores, dict.fromkeys(scores, 0.1), dict.fromkeys(scores, 1.234)
    ).splitlines()
    rows = [",".join(c.strip() for c in line.split("|")) for line in lines]
    # The standard deviation of two values: their distance / sqrt(2).
    assert rows[2:] == [
        ",single task, left,0.1,65.00 ± 21.21,,,1.23x,",
        ",single task, right,0.1,,45.00 ± 7.07,,1.23x,",
        ",uniform,0.1,67.50 ± 17.68,42.50 ± 3.54,0.00 ± 7.07,1.23x,",
    ]


def test_table_of_one_seed_claims_no_spread():
    scores = {
        "single task, left": [{"left": 50.0}],
        "single task, right": [{"right": 40.0}],
        "uniform": [{"left": 55.0, "right": 40.0}],
    }
    lines = report.table(
        scores, dict.fromkeys(scores, 0.1), dict.fromkeys(scores, 1.0)
    )
    assert "±" not in lines
    assert "5.00" in lines


# The whole


@pytest.fixture(scope="module", params=["digits", "mnist"])
def finished(request, tmp_path_factory):
    """A finished run: its folder, what it returned and what it was told."""
    folder = tmp_path_factory.mktemp(request.param)
    arguments = [*FEW, f"--data={request.param}"]
    arguments += [f"--output={folder}/figures", f"--saved-models={folder}"]
    if request.param == "mnist":
        prepared, _ = request.getfixturevalue("prepared_mnist")
        arguments.append(f"--data-dir={prepared}")
    runs = multi_mnist.main(arguments)
    return request.param, folder, runs


def test_a_run_writes_what_it_found(finished):
    source, folder, runs = finished
    assert list(runs) == list(METHODS)
    found = json.loads(
        (folder / "figures" / f"multi_{source}.json").read_text()
    )
    assert found.keys() == {"settings", "scores", "rates", "times"}
    assert list(found["scores"]) == list(METHODS)
    files = sorted(path.name for path in (folder / "figures").iterdir())
    assert files == [
        f"multi_{source}.json",
        f"multi_{source}_accuracies.png",
        f"multi_{source}_task_weights.png",
    ]


def test_the_published_model_answers_as_the_keras_model(finished):
    _, folder, runs = finished
    model = runs["MGDA-UB"][0].model
    path = folder / "multi_mnist" / "1"
    assert serving.problems(serving.read(path)) == []
    loaded = tf.saved_model.load(str(path)).signatures
    assert set(loaded) == {"serving_default", "predict_left", "predict_right"}
    for count in (1, 7):
        x = random_digits(count)[0].astype("float32") / 255
        expected = model(x, training=False)
        for signature, tasks in {
            "serving_default": {"left", "right"},
            "predict_left": {"left"},
            "predict_right": {"right"},
        }.items():
            served = loaded[signature](image=tf.constant(x))
            assert set(served) == tasks
            for task in served:
                np.testing.assert_allclose(
                    served[task], tf.nn.softmax(expected[task]), atol=1e-6
                )


def test_publishing_again_adds_a_version(tmp_path):
    x = np.zeros((8, 28, 28, 1), "float32")
    model = multi_mnist.build(METHODS["MGDA-UB"], 0.1)
    first = multi_mnist.publish(model, x, tmp_path).path
    before = {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    (tmp_path / "10").mkdir()  # of somebody else
    second = multi_mnist.publish(model, x, tmp_path).path
    assert (first.name, second.name) == ("1", "11")
    assert all(path.read_bytes() == before[path] for path in before)
    assert sorted(os.listdir(tmp_path)) == ["1", "10", "11"]


def test_no_seeds_are_refused(capsys):
    with pytest.raises(SystemExit):
        multi_mnist.main(["--seeds=0"])
    assert "--seeds must be 1 or more. Received: 0." in capsys.readouterr().err
