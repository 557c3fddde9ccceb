"""Requests that hold encoded images, decoded in the graph."""

from typing import Any

import tensorflow as tf


def encoded_images(
    height: int,
    width: int,
    channels: int = 3,
    *,
    scale: float = 1 / 255,
    name: str = "image_bytes",
) -> Any:
    r"""A `preprocess` for requests that hold PNG, JPEG, GIF or BMP files.

    Each row is one file. It is decoded, resized bilinearly where its size
    differs, and multiplied by `scale`: `[batch]` strings become
    `[batch, height, width, channels]` float32. Over REST a file is
    `{"b64": "<base64>"}`.

    Of a GIF the first frame is taken. Colours become grey as the decoder of
    the file does it, which for JPEG takes the stored luminance; GIF and BMP,
    whose decoders do not, by `tf.image.rgb_to_grayscale`. Where a file has no
    transparency it is opaque.

    Args:
        height: Rows of pixels that the model takes.
        width: Columns of pixels that the model takes.
        channels: 1 for grey, 3 for colours, 4 with transparency.
        scale: What pixels, 0 to 255, are multiplied by. Take what the model was
            trained with.
        name: The name of the input in requests.

    Returns:
        A `tf.function` to give to `export_saved_model` as `preprocess`, for
        a model with one input.

    Example:

    ```python
    keras_mgda.export_saved_model(
        model,
        "saved_models/multi_mnist",
        preprocess=encoded_images(28, 28, channels=1),
        warmup={"image_bytes": [Path("five.png").read_bytes()]},
    )
    ```
    """

    def decode(file: tf.Tensor) -> tf.Tensor:
        image = _decoded(file, channels)
        image.set_shape([None, None, channels])
        return tf.image.resize(image, [height, width]) * scale

    def decode_all(files: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(decode, files, fn_output_signature=tf.float32)

    spec = tf.TensorSpec([None], tf.string, name=name)
    return tf.function(decode_all, input_signature=[spec], autograph=False)


def _decoded(file: tf.Tensor, channels: int) -> tf.Tensor:
    """The pixels of a file, converted here where its decoder cannot."""
    # GIF, BMP and, for transparency, JPEG, by their first two bytes.
    fixed = [b"GI", b"BM", *([b"\xff\xd8"] if channels == 4 else [])]

    def decoded(channels: int) -> tf.Tensor:
        return tf.io.decode_image(file, channels, expand_animations=False)

    return tf.cond(
        tf.reduce_any(tf.strings.substr(file, 0, 2) == tf.constant(fixed)),
        lambda: _converted(decoded(0), channels),
        lambda: decoded(channels),
    )


def _converted(pixels: tf.Tensor, channels: int) -> tf.Tensor:
    """Grey, colours, or colours with transparency, from any of them."""
    size = tf.shape(pixels)[:2]
    colours = tf.broadcast_to(pixels[..., :3], tf.concat([size, [3]], 0))
    if channels == 1:
        return tf.image.rgb_to_grayscale(colours)
    if channels == 3:
        return colours
    opaque = tf.fill(tf.concat([size, [1]], 0), tf.constant(255, tf.uint8))
    return tf.concat([colours, pixels[..., 3:], opaque], -1)[..., :4]
