"""The two residual networks that Sener & Koltun, 2018, share among tasks.

`resnet18` is that of CelebA, for small images: its first convolution has a
stride of 1, and no pooling follows. `resnet50` is that of Cityscapes: dilated,
so that its features have an eighth of the image's height and width.

He et al., 2016. Deep residual learning. https://arxiv.org/abs/1512.03385
Yu et al., 2017. Dilated residual networks. https://arxiv.org/abs/1705.09914
"""

import functools

import keras
from keras import layers


def convolution(x, filters, size, name, stride=1, dilation=1, **options):
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
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(
        momentum=options.get("momentum", 0.9),
        epsilon=options.get("epsilon", 1e-5),
        name=f"{name}_bn",
    )(x)


def resnet18(x, width=64):
    """`[b, h, w, c]` to `[b, h/8, w/8, 8 width]`."""
    x = layers.ReLU()(convolution(x, width, 3, "conv1"))
    for stage in range(4):
        for block in range(2):
            x = basic_block(
                x,
                width * 2**stage,
                f"conv{stage + 2}_block{block + 1}",
                stride=2 if stage > 0 and block == 0 else 1,
            )
    return x


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
