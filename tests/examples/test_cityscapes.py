"""The Cityscapes example: its data by hand, its network, and whole runs."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.metrics import jaccard_score

import keras_mgda
from examples import cityscapes, experiment
from keras_mgda import serving

ROOT = Path(__file__).parents[2]
TASKS = ("segmentation", "disparity", "offset")
COUNTS = {"train": 4, "validation": 2}
PATCH = 128  # pixels of 1024x2048 for a label, at a size of 64
CONFIGS = ("semantic_segmentation", "stereo_disparity")


def scene(seed):
    """`[8, 16]` patches: image, label ids, instance ids, raw disparity."""
    rng = np.random.default_rng(seed)
    label_ids = rng.choice([0, 3, 7, 11, 23, 24, 26, 33], size=(8, 16))
    instance_ids = np.where(
        label_ids > 23, 1000 * label_ids + rng.integers(2, size=(8, 16)), 0
    )
    instance_ids[0, :4] = 26  # a group of cars
    raw = rng.integers(1, 30_000, size=(8, 16)) * (rng.random((8, 16)) < 0.8)
    return rng.integers(256, size=(8, 16, 3)), label_ids, instance_ids, raw


def write(path, patches, dtype):
    """Writes patches as a PNG of 1024x2048."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.atleast_3d(patches).astype(dtype)
    pixels = pixels.repeat(PATCH, axis=0).repeat(PATCH, axis=1)
    path.write_bytes(tf.io.encode_png(pixels).numpy())
    return str(path)


def store(folder, config, splits):
    """The features and the version are those of TensorFlow Datasets itself."""
    builder = tfds.builder(f"cityscapes/{config}", data_dir=folder)
    features = builder.info.features
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cityscapes",
        config=config,
        version=str(builder.version),
        features=features,
        split_datasets={
            split: [
                (each["image_id"], {name: each[name] for name in features})
                for each in examples
            ]
            for split, examples in splits.items()
        },
        data_dir=folder,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Both configurations, the folder of instances, and `{id: scene}`."""
    folder = tmp_path_factory.mktemp("cityscapes")
    splits, scenes = {}, {}
    for split, count in COUNTS.items():
        splits[split] = []
        for n in range(count):
            city = "ulm" if n % 2 else "bad-honnef"
            image_id = f"{city}_{n:06}_{split == 'train':06}"
            image, label_ids, instance_ids, raw = scene(len(scenes))
            scenes[image_id] = image, label_ids, instance_ids, raw
            name = {"train": "train", "validation": "val"}[split]
            fine = folder / "gtFine" / name / city
            write(
                fine / f"{image_id}_gtFine_instanceIds.png", instance_ids, "u2"
            )
            png = folder / "png" / image_id
            left = write(png / "left.png", image, "u1")
            splits[split].append(
                {
                    "image_id": image_id,
                    "image_left": left,
                    "image_right": left,
                    "segmentation_label": write(png / "l.png", label_ids, "u1"),
                    "disparity_map": write(png / "d.png", raw, "u2"),
                }
            )
    for config in CONFIGS:
        store(folder, config, splits)
    return folder, scenes


# Labels


def test_classes_by_hand():
    """From the table of the Cityscapes scripts: ids and train ids."""
    table = {
        0: 255,  # unlabeled
        6: 255,  # ground
        7: 0,  # road
        8: 1,  # sidewalk
        9: 255,  # parking
        11: 2,  # building
        12: 3,  # wall
        13: 4,  # fence
        14: 255,  # guard rail
        17: 5,  # pole
        18: 255,  # polegroup
        19: 6,  # traffic light
        20: 7,  # traffic sign
        23: 10,  # sky
        24: 11,  # person
        25: 12,  # rider
        26: 13,  # car
        28: 15,  # bus
        29: 255,  # caravan
        30: 255,  # trailer
        31: 16,  # train
        32: 17,  # motorcycle
        33: 18,  # bicycle
        34: 255,  # license plate
        255: 255,
    }
    ids = np.array(list(table), "uint8").reshape(5, 5)
    expected = np.array(list(table.values())).reshape(5, 5)
    np.testing.assert_array_equal(cityscapes.classes(ids), expected)
    every = cityscapes.classes(np.arange(256)).numpy()
    assert sorted(every[every != 255]) == list(range(19))


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_offsets_equal_a_loop(dtype):
    rng = np.random.default_rng(0)
    # Stuff, a group of cars, two cars, a bicycle, a caravan.
    choices = [0, 7, 26, 26000, 26001, 33004, 29000]
    ids = rng.choice(choices, size=(9, 14)).astype(dtype)
    found = cityscapes.offsets(tf.constant(ids)).numpy()
    for i, j in np.ndindex(ids.shape):
        if ids[i, j] in (26000, 26001, 33004):
            centre = np.argwhere(ids == ids[i, j]).mean(axis=0)
            np.testing.assert_allclose(found[i, j], centre - (i, j), rtol=1e-5)
        else:
            assert np.isnan(found[i, j]).all()
    assert np.isfinite(found).any()


def test_an_image_without_instances_has_no_offsets():
    ids = tf.constant(np.array([[0, 7], [26, 29001]], "uint16"))
    assert np.isnan(cityscapes.offsets(ids)).all()


def test_offsets_of_a_large_instance_are_exact():
    """Sums of a million coordinates: too many for float32."""
    ids = tf.fill([1024, 2048], 26000)
    found = cityscapes.offsets(ids).numpy()
    np.testing.assert_array_equal(found[0, 0], [511.5, 1023.5])
    np.testing.assert_array_equal(found[-1, -1], [-511.5, -1023.5])


def test_disparity_by_hand():
    raw = np.array([0, 1, 257, 32_257], "uint16")
    np.testing.assert_array_equal(
        cityscapes.disparity(raw), np.array([np.nan, 0, 1, 126], "float32")
    )


# The data


def options(**given):
    return argparse.Namespace(
        **({"size": 64, "images": None, "batch_size": 4} | given)
    )


@pytest.mark.parametrize("split", COUNTS)
@pytest.mark.slow
def test_an_image_and_all_of_its_labels(prepared, split):
    folder, scenes = prepared
    data = cityscapes.load(split, folder, folder / "gtFine")
    seen = []
    for x, y in cityscapes.batches(data, options(batch_size=1)):
        assert x.shape == (1, 64, 128, 3)
        middles = x[0, 4::8, 4::8].numpy().astype(int)
        (image_id,) = (
            image_id
            for image_id, (image, *_) in scenes.items()
            if abs(image - middles).max() <= 1
        )
        seen.append(image_id)
        _, label_ids, instance_ids, raw = scenes[image_id]
        np.testing.assert_array_equal(
            y["segmentation"][0], cityscapes.classes(label_ids)
        )
        np.testing.assert_array_equal(
            y["disparity"][0, ..., 0], cityscapes.disparity(raw)
        )
        assert np.nanmax(y["disparity"]) > 1  # what 8 bits would not hold
        for i, j in np.ndindex(8, 16):
            if instance_ids[i, j] > 1000:
                alike = np.argwhere(instance_ids == instance_ids[i, j])
                centre = alike.mean(axis=0) * PATCH + (PATCH - 1) / 2
                at = np.array([i, j]) * PATCH + PATCH // 2
                np.testing.assert_allclose(
                    y["offset"][0, i, j], centre - at, atol=1e-3
                )
            else:
                assert np.isnan(y["offset"][0, i, j]).all()
    assert sorted(seen) == sorted(
        image_id
        for image_id in scenes
        if image_id.endswith(f"{split == 'train':06}")
    )


def test_without_instances_there_are_two_tasks(prepared):
    folder, _ = prepared
    data = cityscapes.batches(cityscapes.load("validation", folder), options())
    assert set(data.element_spec[1]) == {"segmentation", "disparity"}


def test_configurations_that_hold_other_images_are_refused(prepared, tmp_path):
    folder, _ = prepared
    examples = []
    for path in sorted((folder / "png").iterdir())[:2]:
        left = str(path / "left.png")
        examples.append(
            {
                "image_id": path.name,
                "image_left": left,
                "image_right": left,
                "segmentation_label": str(path / "l.png"),
                "disparity_map": str(path / "d.png"),
            }
        )
    store(tmp_path, CONFIGS[0], {"train": examples[:1]})
    store(tmp_path, CONFIGS[1], {"train": examples[1:]})
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="must hold the same images"
    ):
        list(cityscapes.load("train", tmp_path))


def test_mirrored_labels_are_those_of_the_mirrored_scene(tmp_path):
    image, label_ids, instance_ids, raw = scene(0)

    def reduced(step):
        patches = {
            "image": (image, "u1"),
            "label_ids": (label_ids, "u1"),
            "instance_ids": (instance_ids, "u2"),
            "disparity": (raw, "u2"),
        }
        files = {
            name: Path(write(tmp_path / name, array[:, ::step], dtype))
            for name, (array, dtype) in patches.items()
        }
        return cityscapes.reduce(
            {name: path.read_bytes() for name, path in files.items()}, 64
        )

    x, y = cityscapes.mirror(*reduced(1))
    expected_x, expected = reduced(-1)
    # But for how halves are rounded.
    np.testing.assert_allclose(x, expected_x, atol=1)
    for task in ("segmentation", "disparity"):
        np.testing.assert_array_equal(y[task], expected[task])
    gaps = y["offset"] - expected["offset"]
    assert np.isfinite(gaps).any()
    np.testing.assert_array_equal(
        np.isnan(y["offset"]), np.isnan(expected["offset"])
    )
    np.testing.assert_allclose(
        gaps[..., 0][np.isfinite(gaps[..., 0])], 0, atol=1e-3
    )
    # The middle of an even number of pixels is the one right of it, and so the
    # left one in the mirror: one pixel of 1024x2048.
    np.testing.assert_allclose(
        gaps[..., 1][np.isfinite(gaps[..., 1])], 1, atol=1e-3
    )


def test_half_of_the_training_images_are_mirrored():
    image = tf.reshape(tf.range(2), [1, 2, 1])
    data = tf.data.Dataset.from_tensors(
        (image, {"segmentation": image[..., 0]})
    )
    mirrored = 0
    for x, y in data.repeat(200).map(cityscapes.mirror_half):
        np.testing.assert_array_equal(x[..., 0], y["segmentation"])
        mirrored += int(x[0, 0, 0])
    assert 70 < mirrored < 130


# The network


@pytest.mark.slow
def test_the_network_has_the_size_of_the_paper():
    model = cityscapes.build(TASKS)
    assert model.get_layer("Z").output.shape == (None, 32, 64, 2048)
    assert {task: tensor.shape for task, tensor in model.output.items()} == {
        "segmentation": (None, 32, 64, 19),
        "offset": (None, 32, 64, 2),
        "disparity": (None, 32, 64, 1),
    }


# Losses and metrics


@pytest.fixture
def identity():
    """A model that answers what it is given, compiled as the example's."""
    inputs, outputs = {}, {}
    for task in TASKS:
        shape = (8, 16, cityscapes.CHANNELS[task])
        inputs[task] = keras.Input(shape, name=f"{task}_in")
        outputs[task] = keras.layers.Rescaling(1.0, name=task)(
            keras_mgda.SharedRepresentation()(inputs[task])
        )
    model = keras_mgda.MGDAModel(inputs, outputs)
    model.compile("sgd", **cityscapes.compile_options(TASKS, "l1"))
    return model


def labels_and_answers(seed=0):
    rng = np.random.default_rng(seed)
    labels = {
        "segmentation": rng.integers(19, size=(3, 8, 16)).astype("uint8"),
        "disparity": rng.normal(size=(3, 8, 16, 1)).astype("float32"),
        "offset": rng.normal(size=(3, 8, 16, 2)).astype("float32"),
    }
    labels["segmentation"][rng.random((3, 8, 16)) < 0.3] = 255
    labels["disparity"][rng.random((3, 8, 16)) < 0.3] = np.nan
    labels["offset"][rng.random((3, 8, 16)) < 0.6] = np.nan
    labels["offset"][1] = np.nan  # an image with no instance
    answers = {
        task: rng.normal(size=(3, 8, 16, channels)).astype("float32")
        for task, channels in cityscapes.CHANNELS.items()
    }
    right = labels["segmentation"] % 19  # more often right than by chance
    answers["segmentation"] += 2 * np.eye(19, dtype="float32")[right]
    return labels, answers


@pytest.mark.parametrize("batch_size", [1, 3])
def test_metrics_equal_numpy_and_sklearn(identity, batch_size):
    y, answers = labels_and_answers()
    found = identity.evaluate(
        answers, y, batch_size=batch_size, verbose=0, return_dict=True
    )
    known = y["segmentation"] != 255
    iou = jaccard_score(
        y["segmentation"][known],
        answers["segmentation"].argmax(-1)[known],
        average="macro",
        labels=range(19),
    )
    assert 0.1 < iou < 0.9
    assert found["segmentation_iou"] == pytest.approx(iou, rel=1e-5)
    for task in ("disparity", "offset"):
        error = np.nanmean(abs(y[task] - answers[task]))
        assert found[f"{task}_error"] == pytest.approx(error, rel=1e-5)
        assert found[f"{task}_loss"] == pytest.approx(error, rel=1e-5)


def test_pixels_without_labels_change_nothing(identity):
    y, answers = labels_and_answers()
    first = identity.evaluate(answers, y, verbose=0, return_dict=True)
    for task, label in y.items():
        missing = label == 255 if task == "segmentation" else np.isnan(label)
        if task != "segmentation":
            missing = missing[..., 0]
        answers[task][missing] += 100 * np.arange(answers[task].shape[-1]) + 7
    assert identity.evaluate(
        answers, y, verbose=0, return_dict=True
    ) == pytest.approx(first, rel=1e-6)


def test_the_epochs_are_compared_by_the_geometric_mean():
    logs = {
        "val_loss": 9.0,
        "val_segmentation_iou": 0.75,
        "val_offset_error": 8.0,
        "val_disparity_error": 4.0,
    }
    assert cityscapes.mean_error(logs) == pytest.approx(2.0)


# The whole


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    """A run of two epochs. That of CelebA is the one that is resumed."""
    data, _ = prepared
    folder = tmp_path_factory.mktemp("finished")
    given = [
        f"--data-dir={data}",
        f"--gt-fine={data}/gtFine",
        f"--run={folder}/run",
        f"--output={folder}/results.jsonl",
        f"--saved-models={folder}",
        "--width=2",
        "--size=64",
        "--images=2",
        "--held-out=2",
        "--batch-size=2",
    ]
    # As a script: see `experiment` for what TensorFlow may not load.
    subprocess.run(
        [sys.executable, "-m", "examples.cityscapes", *given, "--epochs=2"],
        check=True,
        cwd=ROOT,
    )
    model = cityscapes.build(TASKS, size=64, width=2)
    model.load_weights(folder / "run" / "best.weights.h5")
    (line,) = (folder / "results.jsonl").read_text().splitlines()
    return folder, model, json.loads(line)


@pytest.mark.slow
def test_a_run_reports_its_best_epoch(finished, prepared):
    folder, model, line = finished
    rows = experiment.epochs(folder / "run" / "epochs.csv")
    assert [epoch for _, epoch in rows] == [1, 2]
    assert (min(rows)[1], 2) == (line["best_epoch"], line["settings"]["epochs"])
    assert line["images"] == {"train": 2, "held_out": 2, "validation": 2}
    data, _ = prepared
    examples = cityscapes.load("validation", data, data / "gtFine")
    (batch,) = cityscapes.batches(examples, options())
    model.compile(**cityscapes.compile_options(TASKS, "l1"))
    found = model.evaluate(*batch, verbose=0, return_dict=True)
    assert set(line["validation"]) == {
        "segmentation_iou",
        "offset_error",
        "disparity_error",
    }
    for name, value in line["validation"].items():
        assert value == pytest.approx(found[name], rel=1e-4)


@pytest.mark.slow
def test_the_published_model_answers_as_the_keras_model(finished):
    folder, model, _ = finished
    path = folder / "cityscapes" / "1"
    assert serving.problems(serving.read(path)) == []
    signatures = tf.saved_model.load(str(path)).signatures
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(2, 64, 128, 3), dtype="uint8")
    expected = dict(model(x, training=False))
    expected["segmentation"] = tf.nn.softmax(expected["segmentation"])
    answers = signatures["serving_default"](image=tf.constant(x))
    assert set(answers) == set(TASKS)
    for task in TASKS:
        np.testing.assert_allclose(answers[task], expected[task], atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--size=100", "--size must be a multiple of 8. Received: 100."),
        ("--width=8", "--imagenet needs --width 64. Received: 8."),
    ],
)
def test_arguments_that_cannot_be_are_refused(capsys, given, message):
    with pytest.raises(SystemExit):
        cityscapes.read_arguments([given, "--imagenet"])
    assert message in capsys.readouterr().err
