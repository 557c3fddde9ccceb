"""Requests that hold encoded images."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda import serving
from keras_mgda.serving import warmup
from tests.support.serving.served_models import (
    MODELS,
    answers_of,
    ask,
)


def encoded(image, encode):
    return encode(tf.constant(image)).numpy()


def test_encoded_images(tmp_path):
    model, _ = MODELS["convolutional"]()
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    grown = np.repeat(np.repeat(image, 2, 0), 2, 1)
    files = [
        encoded(image, tf.io.encode_png),
        encoded(image, tf.io.encode_jpeg),
        encoded(grown, tf.io.encode_png),
    ]
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        preprocess=serving.encoded_images(12, 12),
        warmup={"image_bytes": files},
    )
    declared = published.signatures["serving_default"].inputs
    assert declared["image_bytes"].dtype == tf.string
    found = ask(
        published, "predict_label", {"image_bytes": np.array(files, object)}
    )
    expected = answers_of(model, {"image": image[None].astype("float32") / 255})
    np.testing.assert_allclose(
        found["label"][0], expected["label"][0], rtol=1e-4
    )
    assert found["label"].shape == (3, 5)


def test_grey_images_in_other_units(tmp_path):
    image = keras.Input((5, 7, 1), name="image")
    model = keras.Model(image, {"mean": layers.GlobalAveragePooling2D()(image)})
    white = encoded(np.full((5, 7, 1), 200, np.uint8), tf.io.encode_png)
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        preprocess=serving.encoded_images(
            5, 7, channels=1, scale=1.0, name="scan"
        ),
        warmup=[white],
    )
    found = ask(published, "predict_mean", {"scan": np.array([white], object)})
    np.testing.assert_allclose(found["mean"], [[200.0]])


# The two files that TensorFlow has no encoder for: one pixel, red or grey.
GIF = b"GIF89a\1\0\1\0\x80\0\0\xc8\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
BMP = (
    b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\1\0\0\0\1\0\0\0\1\0"
    b"\x18\0" + bytes(24) + b"\0\0\xc8\0"
)


@pytest.mark.parametrize(
    ("channels", "red"),
    [(1, [60]), (3, [200, 0, 0]), (4, [200, 0, 0, 255])],
)
def test_a_pixel_of_every_kind_of_file(channels, red, tmp_path):
    pixel = np.array([[[200, 0, 0]]], np.uint8)
    files = [
        GIF,
        BMP,
        encoded(pixel, tf.io.encode_png),
        encoded(np.tile(pixel, (8, 8, 1)), tf.io.encode_jpeg),
    ]
    preprocess = serving.encoded_images(1, 1, channels, scale=1.0)
    found = preprocess(tf.constant(files)).numpy()[:, 0, 0]
    # Decoders differ in how they weigh colours, and JPEG loses some.
    np.testing.assert_allclose(found, [red] * 4, atol=18)
    np.testing.assert_allclose(found[:2], [red] * 2, atol=1)
    grey = encoded(pixel[..., :1], tf.io.encode_png)
    found = preprocess(tf.constant([grey])).numpy()[0, 0, 0]
    np.testing.assert_array_equal(found, [200, 200, 200, 255][: len(red)])


def test_a_file_that_ends_in_zeros_is_kept_whole(tmp_path):
    image = keras.Input((1, 1, 3), name="image")
    model = keras.Model(image, {"mean": layers.GlobalAveragePooling2D()(image)})
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        preprocess=serving.encoded_images(1, 1),
        warmup=[BMP],
    )
    (first, *_) = warmup.read(published.path / warmup.PATH)
    assert first.inputs["image_bytes"][0] == BMP
