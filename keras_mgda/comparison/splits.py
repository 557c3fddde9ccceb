"""The three splits, and whether they are three."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def given(split: Any) -> Any:
    """The split itself, if a function was given that returns it."""
    is_function = callable(split) and not isinstance(split, tf.data.Dataset)
    return split() if is_function else split


def of_tasks(split: Any, tasks: Sequence[str]) -> Any:
    """The split with the labels of these tasks alone."""

    def cut(x: Any, y: Any, *sample_weight: Any) -> tuple[Any, ...]:
        for what, part in zip(
            ("labels", "sample weights"), (y, *sample_weight), strict=False
        ):
            if isinstance(part, Mapping) and not set(tasks) <= set(part):
                raise ValueError(
                    f"A split must have {what} for every task of `losses`. "
                    f"Received: {list(part)} for {list(tasks)}. Give the "
                    "missing tasks zeros, or NaN with `unlabelled`, where "
                    "there are none."
                )
        labels_and_weights = (
            {task: part[task] for task in tasks}
            if isinstance(part, Mapping)
            else part
            for part in (y, *sample_weight)
        )
        return x, *labels_and_weights

    if isinstance(split, tf.data.Dataset):
        return split.map(cut)
    return cut(*split)


def fit_arguments(split: Any, batch_size: int) -> dict[str, Any]:
    """Of `fit` and `evaluate`; a data set has batches already."""
    if isinstance(split, tf.data.Dataset):
        return {"x": split}
    named = dict(zip(("x", "y", "sample_weight"), split, strict=False))
    return {**named, "batch_size": batch_size}


def digests(splits: Mapping[str, Any], allow_overlap: bool) -> dict[str, Any]:
    """A digest of each split; `None` where the data are no arrays.

    Raises:
        ValueError: if a split is missing, is another one, or shares examples
            with it.
    """
    examples: dict[str, set[bytes]] = {}
    found: dict[str, str | None] = {}
    for name, split in splits.items():
        same = [f"`{n}`" for n, other in splits.items() if other is split]
        if split is None or len(same) > 1:
            raise ValueError(
                "Three splits must be given: `train`, `validation`, which "
                "chooses, and `test`, which does not. Received: "
                f"{'None' if split is None else 'the same data'} as "
                f"{' and '.join(same)}. Hold examples out, as by "
                "`sklearn.model_selection.train_test_split`."
            )
        data = given(split)
        found[name] = None
        if isinstance(data, tf.data.Dataset):
            if data.cardinality() == tf.data.INFINITE_CARDINALITY:
                raise ValueError(
                    "A split must end. Received: a data set without an end as "
                    f"`{name}`. Leave out `repeat()`, or bound it by `take`."
                )
            continue
        pair = isinstance(data, (tuple, list)) and len(data) in (2, 3)
        if not pair or not isinstance(data[1], Mapping):
            raise ValueError(
                f"`{name}` must be `(x, {{task: labels}})`, with sample "
                "weights or without, a `tf.data.Dataset`, or a function that "
                f"returns one. Received: {type(data).__name__}. Name the "
                "labels of each task."
            )
        try:
            inputs, known = _hashes(data[0]), set(_hashes(data[0], alike=True))
            labels = [h for part in data[1:] for h in _hashes(part)]
        except (TypeError, ValueError):  # not what NumPy takes
            continue
        for other, before in examples.items():
            both = before & known
            if both and not allow_overlap:
                raise ValueError(
                    "No example must be in two splits. Received: "
                    f"{len(both)} different inputs that are in `{other}` and "
                    f"in `{name}`. Leave them out of one, or pass "
                    "`allow_overlap=True` if different examples have the same "
                    "inputs."
                )
        examples[name] = known
        everything = b"".join(inputs + labels)
        found[name] = hashlib.blake2b(everything, digest_size=8).hexdigest()
    return found


def _hashes(structure: Any, alike: bool = False) -> list[bytes]:
    """A hash of every example in a structure of arrays.

    Args:
        structure: the arrays.
        alike: whether integers have the hash of the same floating numbers.
    """
    arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(structure)]
    hashes = [hashlib.blake2b(digest_size=8) for _ in range(len(arrays[0]))]
    for array in arrays:
        as_text = array.dtype.kind not in "fiub"
        if array.dtype.kind == "f":
            # Zero has two signs, and the type may differ between splits.
            array = array.astype("float32") + np.float32(0)
        elif not as_text:
            array = array.astype("int64")
            if alike and (array == array.astype("float32")).all():
                array = array.astype("float32")
        for hashed, row in zip(hashes, array, strict=True):
            hashed.update(
                repr(np.asarray(row).tolist()).encode()
                if as_text
                else np.ascontiguousarray(row).tobytes()
            )
    return [hashed.digest() for hashed in hashes]
