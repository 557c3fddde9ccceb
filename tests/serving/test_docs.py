"""The code in docs/serving.md runs, in its order, and does what it says."""

import contextlib
import os
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from keras import layers
from tensorflow_serving.config import model_server_config_pb2

import keras_mgda
from keras_mgda import serving
from tests.support.pages import python_blocks
from tests.support.serving.served_models import answers_of, ask, randomized

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)


@pytest.fixture(scope="module")
def files(images):
    return np.array([tf.io.encode_png(i).numpy() for i in images], object)


@pytest.fixture(scope="module")
def records(images):
    return np.array(
        [record((image / 255).ravel()).SerializeToString() for image in images],
        object,
    )


def record(pixels):
    example = tf.train.Example()
    example.features.feature["image"].float_list.value.extend(pixels)
    return example


@pytest.fixture(scope="module")
def model():
    image = keras.Input((28, 28, 1), name="image")
    z = layers.Dense(4)(layers.Flatten()(image))
    return randomized(
        keras.Model(image, {t: layers.Dense(2)(z) for t in ("left", "right")})
    )


@pytest.fixture(scope="module")
def folder(model, images, files, records, tmp_path_factory):
    """Where the code ran."""
    folder = tmp_path_factory.mktemp("docs")
    names = {
        "keras_mgda": keras_mgda,
        "pathlib": pathlib,
        "tf": tf,
        "model": model,
        "png_files": files,
        "records": records,
        "images": (images / 255).astype("float32"),
    }
    blocks = [block.code for block in python_blocks(DOCS)]
    assert len(blocks) == 6
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(None):
            for block in blocks:
                exec(block, names)
    finally:
        os.chdir(before)
    return folder / "saved_models"


def test_the_first_version_is_published(folder):
    assert list(serving.list_versions(folder / "mtl")) == [1]


def test_one_task_is_published_alone(folder):
    published = serving.read(folder / "left" / "1")
    assert set(published.signatures) == {"serving_default", "predict_left"}


def test_image_files_and_records_are_answered(
    folder, model, images, files, records
):
    expected = answers_of(model, {"image": (images / 255).astype("float32")})
    for name, asked in (
        ("from_files", {"image_bytes": files}),
        ("from_records", {"examples": records}),
    ):
        published = serving.read(folder / name / "1")
        found = ask(published, "serving_default", asked)
        for task, right in expected.items():
            np.testing.assert_allclose(found[task], right, rtol=1e-4)


def test_made_up_rows_are_no_image_files(folder, model):
    """So real ones are asked for, by what the decoder says."""
    spec = tf.TensorSpec([None], tf.string, name="image_bytes")
    decode = tf.function(
        lambda files: tf.map_fn(
            lambda file: tf.io.decode_png(file, 1) / 255,
            files,
            fn_output_signature=tf.TensorSpec([28, 28, 1]),
        ),
        input_signature=[spec],
    )
    with pytest.raises(
        ValueError, match=r"InvalidArgumentError .*give real ones as `warmup`"
    ):
        keras_mgda.export_saved_model(model, folder / "x", preprocess=decode)


def test_the_labels_are_those_of_the_file(folder):
    (served,) = text_format.Parse(
        (folder / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    ).model_config_list.config
    assert served.version_labels == {"stable": 1, "canary": 2}
    assert list(served.model_version_policy.specific.versions) == [1, 2]
    assert not (folder / "models.config.draft").exists()
