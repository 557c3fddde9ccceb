"""From the texts and labels of problems to batches."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_mgda.datasets import Sampling, join_tasks
from keras_mgda.problems.expression import parse
from keras_mgda.problems.problem import MASKED, PAIRS, Problem
from keras_mgda.problems.tokens import Tokenization, Tokens


def dataset(
    expression: str,
    problems: Sequence[Problem],
    tokenization: Tokenization,
    batch_size: int,
    *,
    split: str = "train",
    sampling: Sampling = "proportional",
    epochs: int = 1,
    seed: int | None = None,
    bucket_boundaries: Sequence[int] = (),
) -> tf.data.Dataset:
    """The batches of several problems.

    Problems that `&` joins are labels of the same examples, and must have the
    same texts, in the same order. What `|` joins are data sets of their own,
    which share the batches as `datasets.join_tasks` says.

    Rules: a text that is longer than the encoder takes is cut, with its labels;
    an empty one is left out; a token that the tokenizer makes nothing of is
    left out, with its label. A warning counts each. The label of a token is
    that of its first piece; its other pieces have none. Masked language
    modelling changes its texts, and so has examples of its own: of 100 tokens
    that the model shall find, 80 are masked, 10 are random and 10 stay, others
    in each epoch.

    Args:
        expression: as `parse` takes it.
        problems: those of the model, as `network` was given them. One that the
            expression does not name has no labels here: its weights are zero.
        tokenization: of the texts.
        batch_size: the number of examples in a batch.
        split: of the problems' data.
        sampling: as in `join_tasks`; `"once"` for evaluation.
        epochs: how many the data set shall hold, for `"annealed"`.
        seed: of order, sampling and masks.
        bucket_boundaries: as in `join_tasks`: batches of texts that are alike
            in length.

    Returns:
        Batches `({"token_ids": [b, l]}, {problem: y}, {problem: weight})`;
        with pairs also `"pair_token_ids"`. `fit` takes them.

    Raises:
        ValueError: if the expression is none, names a problem that is not there
            or has no such split; if problems that `&` joins have other texts;
            if a label is no class of its problem, or a text has not as many
            tags as tokens.

    Example:

    >>> import keras
    >>> from keras_mgda import problems
    >>> lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    >>> tokenization = problems.Tokenization(lambda x: lookup(x) + 1)
    >>> letters = problems.Problem(
    ...     "letters", "tagging", {"train": ([["a", "b"], ["b"]], ["NV", "V"])}
    ... )
    >>> tone = problems.Problem(
    ...     "tone", "classification", {"train": ([["a"], ["b"]], ["+", "-"])}
    ... )
    >>> batches = problems.dataset(
    ...     "letters|tone", [letters, tone], tokenization, 4, sampling="once"
    ... )
    >>> x, y, weight = next(iter(batches))
    >>> x["token_ids"].numpy().tolist()
    [[2, 3], [3, 0], [2, 0], [3, 0]]
    >>> weight["letters"].numpy().tolist(), weight["tone"].numpy().tolist()
    ([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [0.0, 0.0, 1.0, 1.0])
    """
    by_name = {problem.name: problem for problem in problems}
    if len(by_name) < len(problems):
        raise ValueError(
            "Each problem must have a name of its own. Received: "
            f"{[problem.name for problem in problems]}."
        )
    groups = parse(expression)
    datasets = {}
    counts: Counter[str] = Counter()
    for group in groups:
        if unknown := set(group) - set(by_name):
            raise ValueError(
                "An expression must name the problems that are given. "
                f"Received: {sorted(unknown)} in {expression!r} for the "
                f"problems {list(by_name)}."
            )
        members = [by_name[name] for name in group]
        datasets["&".join(group)] = _of_group(
            members, split, tokenization, seed, counts
        )
    _warn(counts, tokenization, split)
    pad = {"token_ids": tokenization.pad}
    if any(by_name[n].kind == PAIRS for group in groups for n in group):
        pad["pair_token_ids"] = tokenization.pad
    joined = join_tasks(
        datasets,
        batch_size,
        sampling=sampling,
        epochs=epochs,
        seed=seed,
        pad=pad,
        bucket_boundaries=bucket_boundaries,
    )
    named = {name for group in groups for name in group}
    if others := [p for p in problems if p.name not in named]:
        joined = joined.map(_with_nothing_of(others, tokenization.pad))
    # All of it is in memory, and nothing there to tune. To end an iterator
    # TensorFlow waits until its tuner wakes up, which takes longer each time.
    options = tf.data.Options()
    options.autotune.enabled = False
    return joined.with_options(options)


def _with_nothing_of(others: Sequence[Problem], pad: int) -> Any:
    """Fills a batch up with problems of which it has no label."""

    def fill(x: Any, y: Any, weight: Any) -> tuple[Any, Any, Any]:
        x, y, weight = dict(x), dict(y), dict(weight)
        ids = x["token_ids"]
        for problem in others:
            of_each = ids if problem.of_kind.of_tokens else ids[:, 0]
            weight[problem.name] = tf.zeros_like(of_each, tf.float32)
            y[problem.name] = tf.zeros_like(of_each)
            if problem.kind in _OF_NUMBERS:
                size = 1 if problem.kind == PAIRS else problem.size
                y[problem.name] = tf.zeros([tf.shape(ids)[0], size])
            if problem.kind == PAIRS and "pair_token_ids" not in x:
                x["pair_token_ids"] = tf.fill(tf.shape(ids), pad)
        return x, y, weight

    return fill


def _warn(counts: Counter[str], tokenization: Tokenization, split: str) -> None:
    what = {
        "cut": f"texts that were cut to {tokenization.max_length} token ids",
        "empty": "texts that were left out, for they are empty",
        "lost": "tokens that were left out, with their labels, for the "
        "tokenizer makes nothing of them",
    }
    found = [f"{text}: {counts[of]}" for of, text in what.items() if counts[of]]
    if found:
        warnings.warn(
            f"In the split {split!r} {'; '.join(found)}.", stacklevel=3
        )


class _Column(NamedTuple):
    """The labels of one problem, for all texts that are kept.

    Attributes:
        labels: `[n, ...]`, or ragged `[n, None]`.
        weights: `[n]`, or ragged as the labels.
    """

    labels: Any
    weights: Any


def _of_group(
    members: Sequence[Problem],
    split: str,
    tokenization: Tokenization,
    seed: int | None,
    counts: Counter[str],
) -> tf.data.Dataset:
    """Examples with the labels of all members."""
    for problem in members:
        if split not in problem.data:
            raise ValueError(
                "A problem must have data in the split. Received: split="
                f"{split!r} for '{problem.name}' with {list(problem.data)}."
            )
    masked = [p for p in members if p.kind == MASKED]
    if masked and len(members) > 1:
        raise ValueError(
            "Masked language modelling must have examples of its own, for it "
            f"changes the texts. Received: {[p.name for p in members]} joined "
            "by '&'. Join it by '|'."
        )
    texts = members[0].data[split][0]
    for problem in members[1:]:
        _check_same(texts, problem.data[split][0], members[0], problem)
    kept = [k for k, text in enumerate(texts) if len(text)]
    tokens = tokenization.encode([texts[k] for k in kept])
    counts["cut"] += tokens.num_cut
    counts["lost"] += tokens.num_lost
    some = [
        place
        for place, ids in enumerate(tokens.ids)
        if tokenization.has_tokens(ids)
    ]
    tokens = tokens._replace(
        ids=[tokens.ids[place] for place in some],
        first=[tokens.first[place] for place in some],
    )
    kept = [kept[place] for place in some]
    counts["empty"] += len(texts) - len(kept)
    if not kept:
        raise ValueError(
            "A problem must have a text that is not empty. Received: "
            f"{len(texts)} empty texts in the split {split!r} of "
            f"'{members[0].name}'."
        )
    inputs = {"token_ids": _ragged(tokens.ids)}
    columns = {}
    for problem in members:
        labels = problem.data[split][1]
        if problem.kind == MASKED:
            continue
        of_kept = [labels[k] for k in kept]
        if problem.kind == PAIRS:
            partners = ["" if text is None else text for text in of_kept]
            encoded = tokenization.encode(partners)
            counts["cut"] += encoded.num_cut
            counts["lost"] += encoded.num_lost
            of_kept = [
                text if tokenization.has_tokens(ids) else None
                for text, ids in zip(of_kept, encoded.ids, strict=True)
            ]
            inputs["pair_token_ids"] = _ragged(encoded.ids)
        of_kept_texts = [texts[k] for k in kept]
        columns[problem.name] = _COLUMNS[problem.kind](
            problem, of_kept, of_kept_texts, tokens
        )
    examples = tf.data.Dataset.range(len(kept))
    if masked:
        (problem,) = masked
        random = tf.data.Dataset.random(
            seed=seed, rerandomize_each_iteration=True
        )
        return tf.data.Dataset.zip(examples, random.batch(2)).map(
            _with_masks(problem, inputs["token_ids"], tokenization)
        )
    return examples.map(
        lambda k: (
            {name: ids[k] for name, ids in inputs.items()},
            {name: column.labels[k] for name, column in columns.items()},
            {name: column.weights[k] for name, column in columns.items()},
        )
    )


def _check_same(
    texts: Any, others: Any, first: Problem, other: Problem
) -> None:
    if len(texts) == len(others):
        pairs = enumerate(zip(texts, others, strict=True))
        differ = next((k for k, (a, b) in pairs if list(a) != list(b)), None)
        if differ is None:
            return
        received = f"{texts[differ]!r} and {others[differ]!r} at {differ}"
    else:
        received = f"{len(texts)} and {len(others)} texts"
    raise ValueError(
        "Problems that '&' joins must have the same texts in the same order. "
        f"Received: {received} for '{first.name}' and '{other.name}'. Join "
        "them by '|', which takes each with texts of its own."
    )


def _ragged(rows: Sequence[Sequence[Any]], dtype: Any = np.int32) -> Any:
    lengths = [len(row) for row in rows]
    flat = np.fromiter((v for row in rows for v in row), dtype, sum(lengths))
    return tf.RaggedTensor.from_row_lengths(flat, lengths)


def _index(problem: Problem) -> Callable[[Any], int]:
    """From a class to its number."""
    numbers = {c: k for k, c in enumerate(problem.classes)}

    def number(label: Any) -> int:
        if label not in numbers:
            raise ValueError(
                "A label must be one of the problem's classes. Received: "
                f"{label!r} for '{problem.name}' with the classes "
                f"{list(problem.classes)[:100]}. If it is one that training "
                "does not know, name it in `classes`; if it shall not count, "
                "put `None` in its place."
            )
        return numbers[label]

    return number


def _weights(labels: Sequence[Any]) -> np.ndarray:
    return np.array([label is not None for label in labels], np.float32)


def _classes(problem: Problem, labels: Any, *_: Any) -> _Column:
    number = _index(problem)
    numbers = [0 if label is None else number(label) for label in labels]
    return _Column(
        tf.constant(numbers, tf.int32), tf.constant(_weights(labels))
    )


def _several(problem: Problem, labels: Any, *_: Any) -> _Column:
    number = _index(problem)
    hot = np.zeros([len(labels), problem.size], np.float32)
    for row, several in zip(hot, labels, strict=True):
        row[[number(label) for label in _listed(several)]] = 1.0
    return _Column(tf.constant(hot), tf.constant(_weights(labels)))


def _numbers(problem: Problem, labels: Any, *_: Any) -> _Column:
    y = np.zeros([len(labels), problem.size], np.float32)
    for row, label in zip(y, labels, strict=True):
        if label is None:
            continue
        values = np.reshape(np.asarray(label, np.float32), [-1])
        if len(values) != problem.size or not np.isfinite(values).all():
            raise ValueError(
                "The labels of a regression must be finite numbers, as many "
                f"for each text. Received: {label!r} for '{problem.name}' of "
                f"size {problem.size}. Put `None` where there is no label."
            )
        row[:] = values
    return _Column(tf.constant(y), tf.constant(_weights(labels)))


def _partners(problem: Problem, labels: Any, *_: Any) -> _Column:
    weights = _weights(labels)
    return _Column(tf.constant(weights[:, None]), tf.constant(weights))


def _tags(problem: Problem, labels: Any, texts: Any, tokens: Tokens) -> _Column:
    """Labels at the first pieces of tokens, and nowhere else."""
    number = _index(problem)
    rows, weights = [], []
    for text, of_text, ids, first in zip(
        texts, labels, tokens.ids, tokens.first, strict=True
    ):
        if isinstance(text, str) or (
            of_text is not None and len(of_text) != len(text)
        ):
            raise ValueError(
                "Tagging needs a list of tokens and as many tags. Received: "
                f"{text!r} and {of_text!r} for '{problem.name}'. Split a text "
                "first, as by `list(text)` into characters."
            )
        row, weight = [0] * len(ids), [0.0] * len(ids)
        for place, label in zip(
            first,
            [None] * len(text) if of_text is None else of_text,
            strict=True,
        ):
            if label is None:
                continue
            value = number(label)
            if place >= 0:
                row[place], weight[place] = value, 1.0
        rows.append(row)
        weights.append(weight)
    return _Column(_ragged(rows), _ragged(weights, np.float32))


# Kinds with labels `[b, k]` of float32.
_OF_NUMBERS = ("multi-label", "regression", PAIRS)

_COLUMNS: dict[str, Callable[..., _Column]] = {
    "classification": _classes,
    "multi-label": _several,
    "regression": _numbers,
    "tagging": _tags,
    PAIRS: _partners,
}


def _with_masks(
    problem: Problem, ids: tf.RaggedTensor, tokenization: Tokenization
) -> Callable[..., Any]:
    """Hides some tokens of an example, which become its labels."""
    kept = [i for i in (tokenization.start, tokenization.end) if i is not None]

    def masked(k: tf.Tensor, seed: tf.Tensor) -> tuple[Any, Any, Any]:
        true = ids[k]
        chance, how = tf.unstack(
            tf.random.stateless_uniform([2, tf.shape(true)[0]], seed)
        )
        chosen = chance < problem.mask_rate
        for special in kept:
            chosen &= true != special
        random = tf.random.stateless_uniform(
            tf.shape(true), seed + 1, 0, problem.size, tf.int32
        )
        random = tf.where(random == tokenization.pad, true, random)
        shown = tf.where(how < 0.8, problem.mask_id, random)
        shown = tf.where(chosen & (how < 0.9), shown, true)
        return (
            {"token_ids": shown},
            {problem.name: true},
            {problem.name: tf.cast(chosen, tf.float32)},
        )

    return masked


def _listed(several: Any) -> Any:
    return () if several is None else several
