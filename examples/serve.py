"""Reads two digits with the model that multi_mnist.py published.

What a server does, in a few lines: TensorFlow alone loads the newest version
in the folder and calls its signature. The package keras_mgda is not needed.

    python examples/serve.py [saved_models/multi_mnist]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

FOLDER = Path(__file__).parents[1] / "saved_models" / "multi_mnist"
SHADES = " .:-=+*#%@"


def newest(folder):
    """The version with the largest number, as TF Serving takes it."""
    versions = [path for path in folder.glob("*") if path.name.isdigit()]
    if not versions:
        sys.exit(
            f"No model is published in {folder}. "
            "Run `python examples/multi_mnist.py` first."
        )
    return max(versions, key=lambda path: int(path.name))


def drawing(image):
    """Twelve lines of 24 letters; a letter is twice as high as wide."""
    rows = image[2:26, 2:26, 0].reshape(12, 2, 24).mean(axis=1)
    levels = np.rint(rows * (len(SHADES) - 1)).astype(int)
    return ["".join(SHADES[level] for level in row) for row in levels]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    folder = parser.parse_args(argv).folder

    version = newest(folder)
    predict = tf.saved_model.load(str(version)).signatures["serving_default"]
    tests = np.load(folder / "test_images.npz")
    probabilities = predict(image=tf.constant(tests["image"]))

    print(f"{version}: {len(tests['image'])} test images\n")
    captions = []
    for i in range(len(tests["image"])):
        digits = [
            f"{task} {np.argmax(probabilities[task][i])} ({tests[task][i]})"
            for task in ("left", "right")
        ]
        captions.append("  ".join(digits))
    for first in range(0, len(captions), 3):  # three side by side
        three = slice(first, first + 3)
        for line in zip(*map(drawing, tests["image"][three]), strict=True):
            print("  ".join(line).rstrip())
        print("  ".join(f"{caption:24}" for caption in captions[three]))
        print()
    print("Predicted, and in parentheses the truth.")


if __name__ == "__main__":
    main()
