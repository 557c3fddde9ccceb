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
        image = tf.io.decode_image(
            file, channels=channels, expand_animations=False
        )
        image.set_shape([None, None, channels])
        return tf.image.resize(image, [height, width]) * scale

    def decode_all(files: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(decode, files, fn_output_signature=tf.float32)

    spec = tf.TensorSpec([None], tf.string, name=name)
    return tf.function(decode_all, input_signature=[spec], autograph=False)
