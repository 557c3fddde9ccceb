"""Images of streets with three kinds of labels: Cityscapes.

TensorFlow Datasets has classes and disparity, in two configurations, which are
read side by side. It has no instances: they are read from the label images of
Cityscapes itself.
"""

import math

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

# The ids in the label images of the 19 classes, in the order of the benchmark.
CLASS_IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
INSTANCE_IDS = (24, 25, 26, 27, 28, 31, 32, 33)  # person ... bicycle


def classes(label_ids):
    """The class of each pixel, 0 to 18, or 255 where none is to be learned."""
    table = np.full(256, 255, "uint8")
    table[list(CLASS_IDS)] = range(19)
    return tf.gather(tf.constant(table), tf.cast(label_ids, tf.int32))


def offsets(instance_ids):
    """From each pixel `[h, w]` to the centre of its instance, `[h, w, 2]`.

    An instance has the id `1000 class + number`; a pixel of none gets NaN.
    """
    height, width = instance_ids.shape
    flat = tf.reshape(tf.cast(instance_ids, tf.int32), [-1])
    ids, index = tf.unique(flat)
    y, x = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
    at = tf.cast(tf.reshape(tf.stack([y, x], -1), [-1, 2]), tf.float64)
    centres = tf.math.unsorted_segment_mean(at, index, tf.size(ids))
    known = tf.reduce_any(ids[:, None] // 1000 == INSTANCE_IDS, axis=1)
    centres = tf.where(known[:, None], centres, tf.cast(math.nan, tf.float64))
    vectors = tf.cast(tf.gather(centres, index) - at, tf.float32)
    return tf.reshape(vectors, [height, width, 2])


def disparity(raw):
    """In pixels: `(p - 1) / 256` of a 16-bit `p`, and NaN where that is 0."""
    value = (tf.cast(raw, tf.float32) - 1) / 256
    return tf.where(raw == 0, math.nan, value)


def load(split, data_dir=None, gt_fine=None):
    """Encoded images: `{image, label_ids, disparity, instance_ids}`.

    Encoded, since TensorFlow Datasets would decode 8 of disparity's 16 bits.
    Both configurations hold the images in the same order. If they do not,
    reading them stops with an error.
    """
    skip = tfds.decode.SkipDecoding()
    in_order = tfds.ReadConfig(interleave_cycle_length=1)

    def read(config, *images):
        return tfds.load(
            f"cityscapes/{config}",
            split=split,
            data_dir=data_dir,
            read_config=in_order,
            decoders=tfds.decode.PartialDecoding(
                {"image_id", *images}, decoders=dict.fromkeys(images, skip)
            ),
        )

    def join(scene, stereo):
        image_id = scene["image_id"]
        tf.debugging.assert_equal(
            image_id,
            stereo["image_id"],
            "Both configurations of cityscapes must hold the same images. "
            "Prepare them anew.",
        )
        example = {
            "image": scene["image_left"],
            "label_ids": scene["segmentation_label"],
            "disparity": stereo["disparity_map"],
        }
        if gt_fine is not None:
            folder = "train" if split.startswith("train") else "val"
            city = tf.strings.regex_replace(image_id, "_.*", "")
            path = tf.strings.join([str(gt_fine), folder, city, image_id], "/")
            path += "_gtFine_instanceIds.png"
            example["instance_ids"] = tf.io.read_file(path)
        return example

    scenes = read("semantic_segmentation", "image_left", "segmentation_label")
    stereo = read("stereo_disparity", "disparity_map")
    return tf.data.Dataset.zip(scenes, stereo).map(join)


def reduce(example, size):
    """`(image [size, 2 size, 3] uint8, {task: labels [size/8, size/4, ...]})`.

    Labels are those of the pixel in the middle of each patch.
    """
    shape = (1024, 2048)

    def decode(key, channels=1, dtype=tf.uint16):
        image = tf.io.decode_png(example[key], channels, dtype)
        return tf.ensure_shape(image, (*shape, channels))

    image = decode("image", 3, tf.uint8)
    image = tf.image.resize(image, (size, 2 * size), antialias=True)
    labels = {
        "segmentation": classes(decode("label_ids", dtype=tf.uint8)),
        "disparity": disparity(decode("disparity")),
    }
    if "instance_ids" in example:
        labels["offset"] = offsets(decode("instance_ids")[..., 0])
    grid = (size // 8, size // 4)
    labels = {
        task: tf.image.resize(label, grid, method="nearest")
        for task, label in labels.items()
    }
    labels["segmentation"] = labels["segmentation"][..., 0]
    return tf.cast(tf.round(image), tf.uint8), labels


def mirror(image, labels):
    """Left and right exchanged."""
    labels = {task: label[:, ::-1] for task, label in labels.items()}
    if "offset" in labels:
        labels["offset"] *= (1.0, -1.0)
    return image[:, ::-1], labels


def mirror_half(image, labels):
    return tf.cond(
        tf.random.uniform([]) < 0.5,
        lambda: mirror(image, labels),
        lambda: (image, labels),
    )
