"""The networks of Sener & Koltun, 2018, and small ones like them.

MultiMNIST has a LeNet. CelebA has a ResNet-18 for small images: its first
convolution has a stride of 1, and no pooling follows. Cityscapes has a
ResNet-50, dilated, so that its features have an eighth of the image's height
and width; its heads read them by pyramid pooling.

LeCun et al., 1998. Gradient-based learning applied to document recognition.
He et al., 2016. Deep residual learning. https://arxiv.org/abs/1512.03385
Yu et al., 2017. Dilated residual networks. https://arxiv.org/abs/1705.09914
Zhao et al., 2017. Pyramid scene parsing. https://arxiv.org/abs/1612.01105
"""

import functools

import keras
import numpy as np
from keras import layers


def lenet(x, dropout=0.0, kind=layers.SpatialDropout2D):
    """The encoder of MultiMNIST, `[b, 28, 28, 1]` to `[b, 50]`."""
    x = layers.Conv2D(10, 5)(x)  # [b, 24, 24, 10]
    x = layers.ReLU()(layers.MaxPooling2D()(x))
    x = layers.Conv2D(20, 5)(x)  # [b, 8, 8, 20]
    x = kind(dropout)(x) if dropout else x
    x = layers.ReLU()(layers.MaxPooling2D()(x))
    return layers.Dense(50, activation="relu")(layers.Flatten()(x))


def lenet_head(z, dropout=0.0, classes=10, kind=layers.Dropout, **options):
    """The logits of a task, `[b, classes]`. `options` are of its last layer."""
    hidden = layers.Dense(50, activation="relu")(z)
    hidden = kind(dropout)(hidden) if dropout else hidden
    return layers.Dense(classes, **options)(hidden)


def half_lenet(x):
    """A LeNet for half of the resolution, `[b, 28, 28, 1]` to `[b, 50]`."""
    x = layers.AveragePooling2D(2)(x)
    x = layers.Conv2D(10, 3, activation="relu")(x)
    x = layers.Conv2D(20, 3, activation="relu")(layers.MaxPooling2D(2)(x))
    return layers.Dense(50, activation="relu")(layers.Flatten()(x))


def resnet8(x):
    """Seven convolutions, each with batch normalization: `[b, 32]`."""

    def convolution(x, filters, strides=1, size=3):
        x = layers.Conv2D(
            filters, size, strides, padding="same", use_bias=False
        )(x)
        return layers.BatchNormalization()(x)

    x = layers.ReLU()(convolution(x, 8, 2))
    for filters in (16, 32):
        y = layers.ReLU()(convolution(x, filters, 2))
        y = convolution(y, filters)
        x = layers.ReLU()(y + convolution(x, filters, 2, 1))
    return layers.GlobalAveragePooling2D()(x)


def convolution(x, filters, size, name=None, stride=1, dilation=1, **options):
    """A convolution with batch normalization behind it.

    Layers are called as in `keras.applications`: `<name>_conv`, `<name>_bn`.
    """
    if stride > 1 and size > 1:  # "same" would pad one side more than the other
        x = layers.ZeroPadding2D(size // 2)(x)
    x = layers.Conv2D(
        filters,
        size,
        stride,
        padding="valid" if stride > 1 else "same",
        dilation_rate=dilation,
        use_bias=options.get("use_bias", False),
        name=name and f"{name}_conv",
    )(x)
    return layers.BatchNormalization(
        momentum=options.get("momentum", 0.9),
        epsilon=options.get("epsilon", 1e-5),
        name=name and f"{name}_bn",
    )(x)


def resnet18(x, width=64):
    """The encoder of CelebA, `[b, h, w, c]` to `[b, h/32 * w/32 * 8 width]`."""
    x = layers.ReLU()(convolution(x, width, 3, "conv1"))
    for stage in range(4):
        for block in range(2):
            x = basic_block(
                x,
                width * 2**stage,
                f"conv{stage + 2}_block{block + 1}",
                stride=2 if stage > 0 and block == 0 else 1,
            )
    return layers.Flatten()(layers.AveragePooling2D(4)(x))


def basic_block(x, filters, name, stride):
    shortcut = x
    if stride > 1:
        shortcut = convolution(x, filters, 1, f"{name}_0", stride)
    x = layers.ReLU()(convolution(x, filters, 3, f"{name}_1", stride))
    x = convolution(x, filters, 3, f"{name}_2")
    return layers.ReLU(name=f"{name}_out")(layers.add([shortcut, x]))


# The one of `keras.applications`: its biases, which the normalization cancels,
# and its constants, for its weights to fit.
_imagenet_convolution = functools.partial(
    convolution, use_bias=True, momentum=0.99, epsilon=1.001e-5
)


def resnet50(x, width=64):
    """`[b, h, w, c]` to `[b, h/8, w/8, 32 width]`.

    The strides of the last two stages are dilations instead, of 2 and of 4.
    """
    x = layers.ReLU()(_imagenet_convolution(x, width, 7, "conv1", stride=2))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    stages = ((3, 1), (4, 1), (6, 2), (3, 4))  # blocks, dilation
    for stage, (blocks, dilation) in enumerate(stages):
        for block in range(blocks):
            x = bottleneck(
                x,
                width * 2**stage,
                f"conv{stage + 2}_block{block + 1}",
                projected=block == 0,
                stride=2 if stage == 1 and block == 0 else 1,
                dilation=dilation,
            )
    return x


def bottleneck(x, filters, name, projected, stride, dilation):
    convolution = _imagenet_convolution
    shortcut = x
    if projected:
        shortcut = convolution(x, 4 * filters, 1, f"{name}_0", stride)
    x = layers.ReLU()(convolution(x, filters, 1, f"{name}_1", stride))
    x = convolution(x, filters, 3, f"{name}_2", dilation=dilation)
    x = convolution(layers.ReLU()(x), 4 * filters, 1, f"{name}_3")
    return layers.ReLU(name=f"{name}_out")(layers.add([shortcut, x]))


def load_imagenet(model, source=None):
    """Carries the variables of ImageNet over to a model with a `resnet50`.

    Dilation leaves the variables as they are: where the strided network has an
    output, the dilated one has the same.

    Args:
        model: has a `resnet50` of width 64, whose input is the image's red,
            green and blue, 0 to 255, minus `IMAGENET_MEAN`.
        source: whose variables; `None` downloads those of ImageNet.
    """
    if source is None:
        source = keras.applications.ResNet50(include_top=False)
    for layer in source.layers:
        if layer.weights and layer.name != "predictions":
            weights = layer.get_weights()
            if layer.name == "conv1_conv":  # made for blue, green, red
                weights[0] = weights[0][:, :, ::-1]
            model.get_layer(layer.name).set_weights(weights)


IMAGENET_MEAN = (123.68, 116.779, 103.939)


def pyramid_pooling(x, channels, filters, name):
    """A head that sees a place and its surroundings: Zhao et al., 2017.

    `[b, h, w, c]` to `[b, h, w, channels]`.
    """

    def of(x, size):
        return layers.ReLU()(convolution(x, filters, size))

    height, width = x.shape[1:3]
    parts = [of(average(x, scale), 1) for scale in (1, 2, 3, 6)]
    parts = [layers.Resizing(height, width)(part) for part in parts]
    x = of(layers.concatenate([x, *parts]), 3)
    return layers.Conv2D(channels, 1, name=name)(x)


def average(x, scale):
    """Means over `scale` times `scale` parts of an image, which may overlap.

    The parts are those of PyTorch's `AdaptiveAvgPool2d`.
    """

    def means(size):
        at = np.arange(scale)[:, None] * size
        start, end = at // scale, -(-(at + size) // scale)
        inside = (start <= np.arange(size)) & (np.arange(size) < end)
        return (inside / (end - start)).astype("float32")

    rows, columns = map(means, x.shape[1:3])
    return keras.ops.einsum("bhwc,ih,jw->bijc", x, rows, columns)
