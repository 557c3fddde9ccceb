"""The batches that are looked at."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.diagnosis.estimates import MIN_BATCHES


def batches_of(data: Any, steps: int, batch_size: int) -> Iterator[Any]:
    """`(x, y, sample_weight)`, `steps` of them at most."""
    if isinstance(data, keras.utils.PyDataset):
        length = data.num_batches
        length = steps if length is None else min(steps, length)
        found: Any = (data[i] for i in range(length))
    elif isinstance(data, tuple) and len(data) in (2, 3):
        found = _drawn(data, steps, batch_size)
    elif isinstance(data, (Mapping, np.ndarray, tf.Tensor, tuple)):
        raise ValueError(
            "`data` must hold labels: `(x, y)`, `(x, y, sample_weight)`, or "
            f"batches of these. Received: {type(data).__name__}."
        )
    else:
        found = itertools.islice(iter(data), steps)
    for batch in found:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None:
            raise ValueError(
                "`data` must hold labels, as pairs `(x, y)`. Received: a batch "
                "of inputs alone."
            )
        yield tuple(
            None if part is None else keras.tree.map_structure(_tensor, part)
            for part in (x, y, sample_weight)
        )


def _drawn(data: Any, steps: int, batch_size: int) -> Iterator[Any]:
    """Batches of arrays, without an example in two of them."""
    arrays = keras.tree.map_structure(
        lambda leaf: None if leaf is None else np.asarray(leaf), data
    )
    sizes = {
        len(leaf) for leaf in keras.tree.flatten(arrays) if leaf is not None
    }
    if len(sizes) != 1:
        raise ValueError(
            "All arrays of `data` must have the same number of examples. "
            f"Received: {sorted(sizes)}."
        )
    (size,) = sizes
    if size // batch_size < MIN_BATCHES:
        raise ValueError(
            f"`data` must hold at least {MIN_BATCHES} batches: the intervals "
            f"come from their spread. Received: {size} examples for batches of "
            f"{batch_size}. Make `batch_size` smaller."
        )
    # Its own generator: the state of all others stays as it is.
    order = np.random.default_rng(0).permutation(size)
    for i in range(min(steps, size // batch_size)):
        chosen = order[i * batch_size : (i + 1) * batch_size]
        yield keras.tree.map_structure(
            lambda leaf, chosen=chosen: None if leaf is None else leaf[chosen],
            arrays,
        )


def _tensor(leaf: Any) -> tf.Tensor | None:
    return None if leaf is None else keras.ops.convert_to_tensor(leaf)
