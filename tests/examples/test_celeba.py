"""The CelebA example: its data, its network, and whole runs on few images."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from examples import celeba, experiment
from keras_mgda import serving

ROOT = Path(__file__).parents[2]
TASKS = ("Bald", "5_o_Clock_Shadow", "Young")
COUNTS = {"train": 12, "validation": 5, "test": 6}


def faces(count, tasks, seed):
    """Smooth images, which JPEG keeps, and attributes, each alike often."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(256, size=(count, 4, 4, 3))
    images = tf.image.resize(coarse, celeba.IMAGE[:2]).numpy().astype("uint8")
    return images, {task: rng.random(count) < 0.5 for task in tasks}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small `celeb_a` as TensorFlow Datasets keeps it, and what is in it.

    The features and the version are those of TensorFlow Datasets itself.
    """
    folder = tmp_path_factory.mktemp("tfds")
    builder = tfds.builder("celeb_a", data_dir=folder)
    features = builder.info.features
    tasks = list(features["attributes"])
    stored = {
        split: faces(count, tasks, seed)
        for seed, (split, count) in enumerate(COUNTS.items())
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="celeb_a",
        version=str(builder.version),
        features=features,
        split_datasets={
            split: [
                (
                    n,
                    {
                        "image": images[n],
                        "attributes": {t: labels[t][n] for t in tasks},
                        "landmarks": dict.fromkeys(features["landmarks"], 0),
                        "identity": dict.fromkeys(features["identity"], 0),
                    },
                )
                for n in range(len(images))
            ]
            for split, (images, labels) in stored.items()
        },
        data_dir=folder,
    )
    return folder, stored


# The data


def test_forty_attributes(prepared):
    folder, _ = prepared
    tasks = celeba.load("test", folder).element_spec["attributes"]
    assert len(tasks) == 40
    assert {"Bald", "Smiling", "Young", "5_o_Clock_Shadow"} < set(tasks)


@pytest.mark.parametrize("split", COUNTS)
def test_each_image_comes_with_its_own_labels(prepared, split):
    folder, stored = prepared
    images, labels = stored[split]
    expected = celeba.resize(images).numpy()
    seen = []
    for x, y in celeba.batches(celeba.load(split, folder), labels, 4):
        assert x.shape[1:] == (64, 64, 3)
        for n in range(len(x)):
            gaps = abs(expected - x[n].numpy()).mean(axis=(1, 2, 3))
            mine = int(np.argmin(gaps))
            assert gaps[mine] < 2  # of 255: JPEG
            assert np.sort(gaps)[1] > 10
            assert {t: int(y[t][n]) for t in y} == {
                t: int(labels[t][mine]) for t in labels
            }
            seen.append(mine)
    assert sorted(seen) == list(range(COUNTS[split]))


def test_resize_keeps_the_whole_image_and_the_scale():
    image = np.zeros(celeba.IMAGE, "uint8")
    image[:109] = 255  # the upper half
    image[:, :89, 1] = 77  # the left half
    small = celeba.resize(image).numpy()
    np.testing.assert_allclose(small[:31, 33:, 0], 255, atol=1e-3)
    np.testing.assert_allclose(small[33:, :, 2], 0, atol=1e-3)
    np.testing.assert_allclose(small[:, :31, 1], 77, atol=1e-3)


def test_shuffled_batches_have_every_image_once_and_other_orders(prepared):
    folder, _ = prepared
    examples = celeba.load("train", folder)
    examples = celeba.batches(examples, ["Bald"], 5, shuffle=True)
    keras.utils.set_random_seed(0)
    epochs = [
        [x.tobytes() for batch, _ in examples for x in batch.numpy()]
        for _ in range(3)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len(set(epochs[0])) == COUNTS["train"]
    assert epochs[0] != epochs[1] != epochs[2]


def test_images_limits_each_split(prepared):
    folder, _ = prepared
    assert len(celeba.load("train", folder, images=3)) == 3
    assert len(celeba.load("test", folder)) == COUNTS["test"]


# The network


def test_each_attribute_has_a_linear_head_on_the_representation():
    model = celeba.build([f"task{n}" for n in range(40)], width=2)
    assert model.get_layer("Z").output.shape == (None, 64)
    for n in range(40):
        kernel, bias = model.get_layer(f"task{n}").weights
        assert (kernel.shape, bias.shape) == ((64, 2), (2,))


def test_errors_by_hand():
    z = keras.Input((2,))
    identity = keras.layers.Identity
    model = keras.Model(z, {t: identity(name=t)(z) for t in ("a", "b")})
    logits = np.eye(2, dtype="float32")[[0, 1, 1, 0, 1]]
    labels = {"a": [0, 1, 1, 0, 0], "b": [1, 0, 0, 0, 1]}
    examples = tf.data.Dataset.from_tensor_slices((logits, labels)).batch(2)
    assert celeba.errors(model, examples) == {"a": 20.0, "b": 60.0}
    assert celeba.mean_error(model, examples) == 40.0


# The whole


@pytest.fixture(scope="module")
def arguments(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("celeba")
    return folder, [
        f"--data-dir={prepared[0]}",
        f"--run={folder}/run",
        f"--output={folder}/results/celeba.jsonl",
        f"--saved-models={folder}",
        "--width=2",
        "--images=8",
        "--batch-size=4",
        "--attributes",
        *TASKS,
    ]


@pytest.fixture(scope="module")
def finished(arguments):
    """Two epochs; then, started again, a third."""
    folder, given = arguments
    for epochs in (2, 3):
        # As a script: see `experiment` for what TensorFlow may not load.
        script = [sys.executable, "-m", "examples.celeba", *given]
        subprocess.run([*script, f"--epochs={epochs}"], check=True, cwd=ROOT)
    model = celeba.build(TASKS, width=2)
    model.load_weights(folder / "run" / "best.weights.h5")
    lines = (folder / "results" / "celeba.jsonl").read_text().splitlines()
    return folder, model, [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_run_goes_on_after_its_last_epoch(finished):
    folder, _, _ = finished
    rows = experiment.epochs(folder / "run" / "epochs.csv")
    assert [epoch for _, epoch in rows] == [1, 2, 3]
    backup = folder / "run" / "backup"
    assert json.loads((backup / "training_metadata.json").read_text()) == {
        "epoch": 3,
        "batch": 0,
    }


@pytest.mark.slow
def test_the_results_are_those_of_the_best_epoch(finished, prepared):
    folder, model, lines = finished
    assert [line["settings"]["epochs"] for line in lines] == [2, 3]
    rows = experiment.epochs(folder / "run" / "epochs.csv")
    for line in lines:
        error, epoch = min(rows[: line["settings"]["epochs"]])
        assert line["best_epoch"] == epoch
        assert line["validation_error"] == pytest.approx(error)
        assert line["images"] == {"train": 8, "validation": 5, "test": 6}
        assert line["settings"]["method"] == "mgda-ub"
        assert line["settings"]["normalization"] == "loss+"
        assert line["settings"]["seed"] == 0
        assert {"keras", "tensorflow", "time"} <= set(line)
    test = tfds.load(
        "celeb_a", split="test", data_dir=prepared[0], batch_size=-1
    )
    logits = model.predict_on_batch(celeba.resize(test["image"]))
    for task, error in lines[-1]["test_errors"].items():
        wrong = np.argmax(logits[task], -1) != test["attributes"][task]
        assert error == pytest.approx(100 * np.mean(wrong))
    assert lines[-1]["test_error"] == pytest.approx(
        np.mean(list(lines[-1]["test_errors"].values()))
    )


@pytest.mark.slow
def test_the_published_model_answers_as_the_keras_model(finished, prepared):
    folder, model, _ = finished
    path = folder / "celeba" / "2"
    assert serving.problems(serving.read(path)) == []
    signatures = tf.saved_model.load(str(path)).signatures
    images, _ = prepared[1]["test"]
    logits = model(celeba.resize(images), training=False)
    answers = signatures["serving_default"](image=tf.constant(images))
    assert set(answers) == set(logits) == set(TASKS)
    for task in answers:
        expected = tf.nn.softmax(logits[task])[:, 1]
        np.testing.assert_allclose(answers[task], expected, atol=1e-5)
    alone = signatures["predict_Bald"](image=tf.constant(images[:1]))
    np.testing.assert_allclose(alone["Bald"], answers["Bald"][:1], atol=1e-5)
