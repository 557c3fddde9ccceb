"""Classes, instances and disparity of streets: the Cityscapes experiment.

That of Sener & Koltun, 2018 (section 4.3, table 4). A dilated ResNet-50 makes
the representation of an image, and each task reads it by pyramid pooling:

segmentation  the 19 classes of the benchmark;
offset        for each pixel of a person, rider or vehicle, the vector to the
              centre of that instance, `(y, x)`, in pixels of 1024x2048;
disparity     between the two cameras, in pixels of 1024x2048.

    python examples/cityscapes.py --data-dir ~/tensorflow_datasets \\
        --gt-fine ~/cityscapes/gtFine --imagenet

THE EXPERIMENT ITSELF WAS NOT RUN, for it needs the data set, which Cityscapes
gives out on registration, the ImageNet variables, and a GPU for days. The
script was, on a few made-up images. The paper reports a mean IoU of 66.63 %, an
instance error of 10.25 px and a disparity error of 2.54 px with MGDA-UB, and
54.59 %, 10.38 px and 2.96 px with the sum of the losses.

The data are those of `streets.py`. TensorFlow Datasets has no instances: they
are read from `--gt-fine`, the folder of `gtFine_trainvaltest.zip` that holds
`train` and `val`. Without it there are two tasks.

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

import math

import experiment
import keras
import numpy as np
import streets
import tensorflow as tf
from keras import layers
from resnet import IMAGENET_MEAN, load_imagenet, resnet50

import keras_mgda

HELD_OUT = 275  # images of the training split
CHANNELS = {"segmentation": 19, "offset": 2, "disparity": 1}
UNLABELLED = {"segmentation": 255, "offset": "nan", "disparity": "nan"}


def batches(examples, args, training=False):
    """Reduced once, and kept in memory: 1.3 GB for the training split."""
    examples = examples.take(args.images or -1)
    examples = examples.map(
        lambda example: streets.reduce(example, args.size),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).cache()
    if training:
        examples = examples.shuffle(len(examples)).map(streets.mirror_half)
    return examples.batch(args.batch_size).prefetch(tf.data.AUTOTUNE)


def build(tasks, size=256, width=64):
    """`Z [b, size/8, size/4, 2048]` at a width of 64, and a head per task."""
    image = keras.Input((size, 2 * size, 3), dtype="uint8", name="image")
    offset = [-mean for mean in IMAGENET_MEAN]
    x = resnet50(layers.Rescaling(1, offset)(image), width)
    z = keras_mgda.SharedRepresentation(name="Z")(x)
    outputs = {task: head(z, task, 8 * width) for task in tasks}
    return keras_mgda.MGDAModel(image, outputs)


def head(z, task, filters):
    """Pyramid pooling: Zhao et al., 2017. https://arxiv.org/abs/1612.01105"""
    height, width = z.shape[1:3]
    pyramid = [z]
    for scale in (1, 2, 3, 6):
        x = convolution(average(z, scale), filters, 1)
        pyramid.append(layers.Resizing(height, width)(x))
    x = convolution(layers.concatenate(pyramid), filters, 3)
    return layers.Conv2D(CHANNELS[task], 1, name=task)(x)


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


def convolution(x, filters, size):
    x = layers.Conv2D(filters, size, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


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
            streets.load(split, args.data_dir, args.gt_fine),
            args,
            name == "train",
        )
        for name, split in splits.items()
    }
    tasks = list(data["train"].element_spec[1])

    model = build(tasks, args.size, args.width)
    if args.imagenet:
        load_imagenet(model)
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
