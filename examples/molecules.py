"""Toxicity of molecules: hundreds of assays as columns of one output.

With `--data` it reads a file in MoleculeNet's format, as `tox21.csv.gz` (12
assays) or `toxcast.csv.gz` (617): a column `smiles` and one for each assay, 0,
1 or empty where nobody measured. A molecule becomes its Morgan fingerprint, and
molecules of one scaffold are in one split, the rarest in the test split. That
takes RDKit, `pip install 'keras_mgda[molecules]'`. Without `--data` the tasks
are scikit-learn's ten digits, each against the rest, with half of the labels
taken away: works offline, in a minute.

    python -m examples.molecules
    python -m examples.molecules --data tox21.csv.gz --seeds 0 1 2

All methods get the same data, network, initial weights and epochs, of which the
best on validation data counts: a model for each task alone, the plain sum,
MGDA-UB and UPGrad. With 617 tasks choose by `--methods`: UPGrad solves as many
programs as there are tasks in every step.
"""

import argparse
import csv
import gzip
import json
import math
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_mgda
from keras_mgda import losses, metrics

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures" / "local"
METHODS = {
    "plain sum": "uniform",
    "MGDA-UB": "mgda",
    "MGDA-UB, l2": keras_mgda.weightings.MGDA(normalization="l2"),
    "UPGrad": "upgrad",
    "DualProj": "dualproj",
    "FAMO": "famo",
}
DEFAULT_METHODS = ["alone", "plain sum", "MGDA-UB", "UPGrad"]


# The data: `(task names, {split: (x [n, d], y [n, m])})`, NaN without a label.


def digits(missing=0.5):
    """Ten tasks, each digit against the rest."""
    import sklearn.datasets

    found = sklearn.datasets.load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(found.target))
    x = (found.data[order] / 16).astype("float32")
    y = np.eye(10, dtype="float32")[found.target[order]]
    y[rng.uniform(size=y.shape) < missing] = np.nan
    cuts = [len(x) * 3 // 5, len(x) * 4 // 5]
    parts = zip(np.split(x, cuts), np.split(y, cuts), strict=True)
    splits = dict(zip(("train", "validation", "test"), parts, strict=True))
    return [f"digit {k}" for k in range(10)], splits


def read(path):
    """A file of MoleculeNet: `task names, SMILES [n], labels [n, m]`.

    Raises:
        ValueError: if there is no column `smiles`, or a label is neither 0, 1
            nor empty.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        if "smiles" not in header:
            raise ValueError(
                "The file must have a column 'smiles' and one for each assay. "
                f"Received: {header[:5]} in {path}."
            )
        names = [name for name in header if name not in ("smiles", "mol_id")]
        rows = list(reader)
    labels = np.array([[row[n] or "nan" for n in names] for row in rows], float)
    wrong = labels[~np.isnan(labels) & (labels != 0) & (labels != 1)]
    if wrong.size:
        raise ValueError(
            "Labels must be 0, 1 or empty. Received: "
            f"{sorted(set(wrong.tolist()))[:5]} in {path}."
        )
    return names, [row["smiles"] for row in rows], labels.astype("float32")


def featurized(smiles, size=1024):
    """`[n, size]` fingerprints, `[n]` scaffolds, `[n]` who could be read."""
    from rdkit import Chem, RDLogger
    from rdkit.Chem import rdFingerprintGenerator
    from rdkit.Chem.Scaffolds import MurckoScaffold

    RDLogger.DisableLog("rdApp.*")  # the number of those is printed
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=size)
    found = [Chem.MolFromSmiles(text) for text in smiles]
    readable = np.array([molecule is not None for molecule in found])
    molecules = [molecule for molecule in found if molecule is not None]
    counts = np.array(
        [generator.GetCountFingerprintAsNumPy(m) for m in molecules]
    )
    scaffolds = [
        MurckoScaffold.MurckoScaffoldSmiles(mol=molecule)
        for molecule in molecules
    ]
    return np.log1p(counts).astype("float32"), scaffolds, readable


def scaffold_split(scaffolds, shares=(0.8, 0.1, 0.1)):
    """Indices of the splits. The molecules of a scaffold stay together.

    As usual for these data, the most frequent scaffolds come first, and each
    goes to the first split that has room for it; the last one takes the rest.
    """
    groups = {}
    for i, scaffold in enumerate(scaffolds):
        groups.setdefault(scaffold, []).append(i)
    splits = [[] for _ in shares]
    for group in sorted(groups.values(), key=lambda g: (-len(g), g[0])):
        has_room = [
            len(split) + len(group) <= share * len(scaffolds)
            for split, share in zip(splits[:-1], shares, strict=False)
        ]
        splits[[*has_room, True].index(True)] += group
    return [np.array(sorted(split), int) for split in splits]


def molecules(path):
    names, smiles, y = read(path)
    x, scaffolds, readable = featurized(smiles)
    print(f"{(~readable).sum()} of {len(smiles)} molecules cannot be read.")
    y = y[readable]
    parts = scaffold_split(scaffolds)
    splits = {
        split: (x[part], y[part])
        for split, part in zip(
            ("train", "validation", "test"), parts, strict=True
        )
    }
    return names, splits


# The models


def network(size, num_columns):
    """Inputs, and probabilities of one column for each task."""
    inputs = keras.Input((size,), name="molecule")
    x = layers.Dense(256, activation="relu")(inputs)
    x = layers.Dropout(0.2)(x)
    x = layers.Dense(128, activation="relu")(x)
    z = keras_mgda.SharedRepresentation()(x)
    outputs = layers.Dense(num_columns, activation="sigmoid")(z)
    return inputs, {"assays": outputs}


class BestEpoch(keras.callbacks.Callback):
    """Puts back the weights of the epoch of the best validation score."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.best, self.weights = x, y, -math.inf, None

    def on_epoch_end(self, epoch, logs=None):
        p = self.model(self.x, training=False)
        score = mean(roc_auc(self.y, p))
        # NaN where validation data have one class alone: the last epoch counts.
        if score > self.best:
            self.best, self.weights = score, self.model.get_weights()

    def on_train_end(self, logs=None):
        if self.weights is not None:
            self.model.set_weights(self.weights)


def of_columns(metric, y, p):
    """`[m]`, NaN for a column of one class."""
    metric = metric(y.shape[1])
    metric.update_state(y, p["assays"])
    return np.array(metric.of_columns())


def roc_auc(y, p):
    return of_columns(metrics.ColumnROCAUC, y, p)


def mean(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def train(method, names, splits, args, seed):
    """Predictions of one model for all tasks, `{split: {"assays": [n, m]}}`."""
    keras.utils.set_random_seed(seed)
    x, y = splits["train"]
    model = keras_mgda.MGDAModel(*network(x.shape[1], len(names)))
    model.compile(
        keras.optimizers.Adam(args.learning_rate),
        {"assays": losses.PerColumn("binary_crossentropy", names)},
        weighting=METHODS[method],
        unlabelled="nan",
    )
    model.fit(
        x,
        {"assays": y},
        batch_size=args.batch_size,
        epochs=args.epochs,
        callbacks=[BestEpoch(*splits["validation"])],
        verbose=0,
    )
    return {
        split: {"assays": model(x, training=False)["assays"].numpy()}
        for split, (x, _) in splits.items()
    }


def train_alone(names, splits, args, seed):
    """The same of a model for each task, on what is labelled for it."""
    keras.utils.set_random_seed(seed)
    model = keras.Model(*network(splits["train"][0].shape[1], 1))
    start = [w.copy() for w in model.get_weights()]
    model.compile(keras.optimizers.Adam(args.learning_rate), "bce")
    # Compiled once: each task starts from these weights and a new optimizer.
    model.optimizer.build(model.trainable_variables)
    of_optimizer = [v.numpy().copy() for v in model.optimizer.variables]
    found = {
        split: {"assays": np.full(labels.shape, 0.5, np.float32)}
        for split, (_, labels) in splits.items()
    }
    for k in range(len(names)):
        model.set_weights(start)
        for variable, value in zip(
            model.optimizer.variables, of_optimizer, strict=True
        ):
            variable.assign(value)
        mine = {
            split: (x[known], labels[known, k : k + 1])
            for split, (x, labels) in splits.items()
            for known in [~np.isnan(labels[:, k])]
        }
        if not len(mine["train"][0]):
            continue
        model.fit(
            *mine["train"],
            batch_size=args.batch_size,
            epochs=args.epochs,
            callbacks=[BestEpoch(*mine["validation"])],
            verbose=0,
        )
        for split, (x, _) in splits.items():
            p = model(x, training=False)["assays"]
            found[split]["assays"][:, k] = p[:, 0]
    return found


# The results


def scores(names, splits, predictions):
    """What one method reached, as a part of its line of results.

    `learnt`: of how many tasks the model orders the training labels better
    than chance does. Those of one class in the training labels have no order.
    """
    auc = {s: roc_auc(splits[s][1], p) for s, p in predictions.items()}
    precision = of_columns(
        metrics.ColumnAveragePrecision, splits["test"][1], predictions["test"]
    )
    trained = auc["train"]
    return {
        "roc_auc": mean(auc["test"]),
        "average_precision": mean(precision),
        "tested": int((~np.isnan(auc["test"])).sum()),
        "learnt": int((trained > 0.5).sum()),
        "not_learnt": [
            n for n, a in zip(names, trained, strict=True) if a <= 0.5
        ],
        "one_class": [
            n for n, a in zip(names, trained, strict=True) if np.isnan(a)
        ],
        "of_tasks": [
            None if np.isnan(a) else round(float(a), 4) for a in auc["test"]
        ],
    }


def table(lines):
    """In Markdown: mean and standard deviation over the seeds."""

    def spread(values):
        values = 100 * np.array(values)
        text = f"{values.mean():.1f}"
        return text + (
            f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        )

    header = ["method", "ROC-AUC, %", "average precision, %", "tasks learnt"]
    rows = [[*header, "seconds"], ["---"] * 5]
    for method in dict.fromkeys(line["method"] for line in lines):
        of_method = [line for line in lines if line["method"] == method]
        learnt = min(line["learnt"] for line in of_method)
        rows.append(
            [
                method,
                spread([line["roc_auc"] for line in of_method]),
                spread([line["average_precision"] for line in of_method]),
                f"{learnt} of {of_method[0]['tasks']}",
                f"{np.mean([line['seconds'] for line in of_method]):.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(lines, path):
    """The ROC-AUC of the tasks of each method, in ascending order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(line["method"] for line in lines):
        of_seeds = [
            np.array(line["of_tasks"], float)
            for line in lines
            if line["method"] == method
        ]
        values = np.sort(np.mean(of_seeds, axis=0))
        values = values[~np.isnan(values)]
        marker = "o" if len(values) < 50 else ""
        axes.plot(
            range(1, len(values) + 1), values, label=method, marker=marker
        )
    axes.set(xlabel="tasks, in order", ylabel="test ROC-AUC")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, help="a file of MoleculeNet, .csv or .csv.gz")
    add(
        "--methods",
        nargs="+",
        choices=["alone", *METHODS],
        default=DEFAULT_METHODS,
    )
    add("--seeds", type=int, nargs="+", default=[0])
    add("--epochs", type=int, default=15)
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=1e-3)
    add("--output", type=Path, default=FIGURES, help="of the picture")
    add("--results", type=Path, help="default: in --output; lines are added")
    args = parser.parse_args(argv)
    if args.data is None:
        data, (names, splits) = "digits", digits()
    else:
        data, (names, splits) = args.data.name, molecules(args.data)
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.results or args.output / "molecules.jsonl"
    missing = float(np.isnan(splits["train"][1]).mean())
    lines = []
    for seed in args.seeds:
        for method in args.methods:
            begin = time.perf_counter()
            predictions = (
                train_alone(names, splits, args, seed)
                if method == "alone"
                else train(method, names, splits, args, seed)
            )
            line = {
                "data": data,
                "method": method,
                "seed": seed,
                "epochs": args.epochs,
                "tasks": len(names),
                "missing": round(missing, 4),
                "seconds": round(time.perf_counter() - begin, 1),
                **scores(names, splits, predictions),
            }
            lines.append(line)
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
    one_class = lines[0]["one_class"]
    if one_class:
        print(f"Of one class in training: {', '.join(one_class)}.")
    print(table(lines))
    figure = args.output / f"molecules_{data.partition('.')[0]}.png"
    plot(lines, figure)
    print(f"Figure: {figure}\nResults: {results}")


if __name__ == "__main__":
    main()
