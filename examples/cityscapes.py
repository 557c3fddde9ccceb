"""Classes, instances and disparity of streets: the Cityscapes experiment.

That of Sener & Koltun, 2018 (section 4.3, table 4). A dilated ResNet-50 makes
the representation of an image, and each task reads it by pyramid pooling:

segmentation  the 19 classes of the benchmark;
offset        for each pixel of a person, rider or vehicle, the vector to the
              centre of that instance, `(y, x)`, in pixels of 1024x2048;
disparity     between the two cameras, in pixels of 1024x2048.

    python -m examples.cityscapes --data-dir ~/tensorflow_datasets \\
        --gt-fine ~/cityscapes/gtFine --imagenet

THE EXPERIMENT ITSELF WAS NOT RUN, for it needs the data set, which Cityscapes
gives out on registration, the ImageNet variables, and a GPU for days. The
script was, on a few made-up images. The paper reports a mean IoU of 66.63 %, an
instance error of 10.25 px and a disparity error of 2.54 px with MGDA-UB, and
54.59 %, 10.38 px and 2.96 px with the sum of the losses.

TensorFlow Datasets has classes and disparity, in two configurations, which are
read side by side. It has no instances: they are read from `--gt-fine`, the
folder of `gtFine_trainvaltest.zip` that holds `train` and `val`. Without it
there are two tasks.

As in the authors' code, images are 256x512, labels and errors are taken at
every eighth pixel of them, the losses are cross-entropy and L1 (`--regression
mse`: the paper's), and Adam starts at 5e-4 with batches of 8. The images are
mirrored at random. What differs:

- Images are not rotated. (The authors do, by up to 10 degrees.)
- Disparity is in pixels. The authors divide it by its deviation, 10.66 px,
  after taking off a mean that they did not publish, and then leave out what is
  negative. So the loss, and with it the task weights, have other scales.
- Instances are those with an id of their own. The authors take a group of, say,
  cars whose borders cannot be told for one instance.
- 275 images of the training split choose the epoch, and are not trained on;
  the validation split is evaluated once. (The paper tunes on 275, then trains
  on all.) The best epoch has the least geometric mean of the tasks' errors,
  `1 - IoU` among them: their units do not matter to it.
"""

from examples import experiment, networks  # before TensorFlow: see there

# isort: split
import math

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from keras import layers

import keras_mgda

HELD_OUT = 275  # images of the training split
CHANNELS = {"segmentation": 19, "offset": 2, "disparity": 1}
UNLABELLED = {"segmentation": 255, "offset": "nan", "disparity": "nan"}
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


def batches(examples, args, training=False):
    """Reduced once, and kept in memory: 1.3 GB for the training split."""
    examples = examples.take(args.images or -1)
    examples = examples.map(
        lambda example: reduce(example, args.size),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).cache()
    if training:
        examples = examples.shuffle(len(examples)).map(mirror_half)
    return examples.batch(args.batch_size).prefetch(tf.data.AUTOTUNE)


def build(tasks, size=256, width=64):
    """`Z [b, size/8, size/4, 2048]` at a width of 64, and a head per task."""
    image = keras.Input((size, 2 * size, 3), dtype="uint8", name="image")
    offset = [-mean for mean in networks.IMAGENET_MEAN]
    x = networks.resnet50(layers.Rescaling(1, offset)(image), width)
    z = keras_mgda.SharedRepresentation(name="Z")(x)
    outputs = {
        task: networks.pyramid_pooling(z, CHANNELS[task], 8 * width, task)
        for task in tasks
    }
    return keras_mgda.MGDAModel(image, outputs)


def compile_options(tasks, regression):
    """Losses and metrics. They are means over the pixels that have labels."""
    losses = {"l1": "mean_absolute_error", "mse": "mean_squared_error"}
    loss = dict.fromkeys(tasks, losses[regression])
    loss["segmentation"] = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True
    )
    metrics = {t: keras.metrics.MeanAbsoluteError("error") for t in tasks}
    metrics["segmentation"] = keras.metrics.MeanIoU(
        CHANNELS["segmentation"], "iou", "float32", sparse_y_pred=False
    )
    unlabelled = {task: UNLABELLED[task] for task in tasks}
    return {"loss": loss, "metrics": metrics, "unlabelled": unlabelled}


def mean_error(logs):
    """The geometric mean of the tasks' errors on validation."""
    errors = [logs[key] for key in logs if key.endswith("_error")]
    errors.append(1 - logs["val_segmentation_iou"])
    return math.prod(errors) ** (1 / len(errors))


def publish(model, images, folder):
    """The next version in `folder`. It takes `image [b, 256, 512, 3]`, uint8.

    Answers are `[b, 32, 64, ...]`: probabilities of classes, and pixels.
    """
    return keras_mgda.export_saved_model(
        model,
        folder,
        postprocess={"segmentation": tf.nn.softmax},
        warmup=images,
    )


def read_arguments(argv):
    parser = experiment.parser(
        "cityscapes", __doc__.partition("\n")[0], epochs=250, batch_size=8
    )
    add = parser.add_argument
    add("--gt-fine", help="folder with the instances, */*/*_instanceIds.png")
    add("--imagenet", action="store_true", help="start from its variables")
    add("--regression", choices=("l1", "mse"), default="l1")
    add("--size", type=int, default=256, help="height of an image")
    add("--held-out", type=int, default=HELD_OUT, help="to choose the epoch")
    args = parser.parse_args(argv)
    if args.size % 8:
        parser.error(f"--size must be a multiple of 8. Received: {args.size}.")
    if args.imagenet and args.width != 64:
        parser.error(f"--imagenet needs --width 64. Received: {args.width}.")
    return args


def main(argv=None):
    args = read_arguments(argv)
    experiment.start(args, "cityscapes")
    splits = {
        "train": f"train[{args.held_out}:]",
        "held_out": f"train[:{args.held_out}]",
        "validation": "validation",
    }
    data = {
        name: batches(
            load(split, args.data_dir, args.gt_fine),
            args,
            name == "train",
        )
        for name, split in splits.items()
    }
    tasks = list(data["train"].element_spec[1])

    model = build(tasks, args.size, args.width)
    if args.imagenet:
        networks.load_imagenet(model)
    model.compile(
        **compile_options(tasks, args.regression),
        **experiment.compile_options(args, len(data["train"])),
    )
    epoch = experiment.train(
        model,
        data["train"],
        args,
        lambda logs: mean_error(
            {k: v for k, v in logs.items() if k.startswith("val_")}
        ),
        validation_data=data["held_out"],
    )

    found = model.evaluate(data["validation"], verbose=0, return_dict=True)
    errors = {k: v for k, v in found.items() if k.endswith(("_error", "_iou"))}
    print(f"Validation split, after epoch {epoch}: {errors}")
    experiment.record(
        args,
        images={name: sum(len(x) for x, _ in data[name]) for name in splits},
        best_epoch=epoch,
        validation=errors,
    )
    image, _ = next(iter(data["validation"]))
    folder = args.saved_models / "cityscapes"
    print("Published:", publish(model, image[:1].numpy(), folder))
    return model


if __name__ == "__main__":
    main()
