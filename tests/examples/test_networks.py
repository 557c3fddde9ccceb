"""The networks have the sizes of the paper's, and the values of others."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from examples import networks


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def test_the_lenet_of_the_paper():
    """Weights and biases of each layer."""
    image = keras.Input((28, 28, 1))
    z = networks.lenet(image, dropout=0.5)
    model = keras.Model(image, networks.lenet_head(z, dropout=0.5))
    assert z.shape == (None, 50)
    encoder = (25 * 10 + 10) + (250 * 20 + 20) + (320 * 50 + 50)
    head = (50 * 50 + 50) + (50 * 10 + 10)
    assert count(model.trainable_variables) == encoder + head


def test_the_resnet18_of_celeba_has_the_size_of_the_authors():
    image = keras.Input((64, 64, 3))
    z = networks.resnet18(image)
    assert z.shape == (None, 2048)
    assert count(keras.Model(image, z).trainable_variables) == 11_168_832


def test_resnet18_equals_its_definition():
    """He et al., 2016, in operations of TensorFlow, in evaluation."""
    image = keras.Input((32, 32, 3))
    z = networks.resnet18(image, width=4)
    whole = keras.Model(image, z)
    model = keras.Model(image, [whole.get_layer("conv5_block2_out").output, z])
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        if variable.name == "kernel":
            variable.assign(rng.normal(size=variable.shape) / 5)

    def convolve(x, name, stride=1):
        kernel = whole.get_layer(f"{name}_conv").kernel
        side = [kernel.shape[0] // 2] * 2  # alike on both sides
        padding = [[0, 0], side, side, [0, 0]]
        x = tf.nn.conv2d(x, kernel, stride, padding)
        norm = whole.get_layer(f"{name}_bn")
        gamma, beta, mean, variance = norm.get_weights()
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-5)

    x = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    y = tf.nn.relu(convolve(x, "conv1"))
    for stage in range(2, 6):
        for block in (1, 2):
            name = f"conv{stage}_block{block}"
            stride = 2 if stage > 2 and block == 1 else 1
            shortcut = convolve(y, f"{name}_0", 2) if stride == 2 else y
            y = tf.nn.relu(convolve(y, f"{name}_1", stride))
            y = tf.nn.relu(convolve(y, f"{name}_2") + shortcut)
    assert y.shape == (2, 4, 4, 32)
    assert np.ptp(y) > 1
    features, pooled = model(x, training=False)
    np.testing.assert_allclose(features, y, rtol=1e-3, atol=1e-3)
    mean = np.mean(y, axis=(1, 2))
    np.testing.assert_allclose(pooled, mean, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_dilated_network_equals_keras_where_that_has_outputs():
    source = keras.applications.ResNet50(weights=None, include_top=False)
    rng = np.random.default_rng(0)
    for variable in source.weights:
        if variable.name != "kernel":  # biases and normalization, too
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    image = keras.Input((64, 64, 3))
    offset = [-mean for mean in networks.IMAGENET_MEAN]
    model = keras.Model(
        image, networks.resnet50(layers.Rescaling(1, offset)(image))
    )
    networks.load_imagenet(model, source)
    x = rng.integers(256, size=(1, 64, 64, 3)).astype("float32")
    theirs = keras.applications.resnet50.preprocess_input(x.copy())

    def compare(layer, step):
        mine = keras.Model(image, model.get_layer(layer).output)(x)
        of_keras = keras.Model(source.input, source.get_layer(layer).output)
        expected = of_keras(theirs).numpy()
        assert mine.shape[1:3] == (8, 8)
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(
            mine[:, ::step, ::step] / np.ptp(expected),
            expected / np.ptp(expected),
            atol=1e-4,
        )

    compare("conv3_block4_out", 1)  # before dilation
    compare("conv4_block6_out", 2)
    compare("conv5_block3_out", 4)


@pytest.mark.parametrize("scale", [1, 2, 3, 6])
def test_parts_of_the_pyramid_by_hand(scale):
    """From `floor(i h / s)` to `ceil((i + 1) h / s)`, as PyTorch has them."""
    x = np.random.default_rng(0).normal(size=(2, 8, 17, 3)).astype("float32")
    found = networks.average(x, scale)
    assert found.shape == (2, scale, scale, 3)
    for i, j in np.ndindex(scale, scale):
        rows = slice(i * 8 // scale, -(-(i + 1) * 8 // scale))
        columns = slice(j * 17 // scale, -(-(j + 1) * 17 // scale))
        part = x[:, rows, columns].mean(axis=(1, 2))
        np.testing.assert_allclose(found[:, i, j], part, atol=1e-6)


def test_a_head_sees_the_whole_image():
    z = keras.Input((4, 6, 8))
    head = keras.Model(z, networks.pyramid_pooling(z, 2, 3, "task"))
    x = np.random.default_rng(0).normal(size=(1, 4, 6, 8)).astype("float32")
    first = head(x, training=False)
    assert first.shape == (1, 4, 6, 2)
    x[:, -1, -1] += 10.0
    assert abs(head(x, training=False) - first)[0, 0, 0].numpy().max() > 0
