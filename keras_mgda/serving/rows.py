"""The rows that a model is checked and warmed up with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mgda.serving.inputs import rows_array, served_names

# A row that is made up has this many random values; the rest are equal, which
# a TensorProto stores once.
_RANDOM = 1024

# What a dimension of any size is taken to be in rows that are made up.
LENGTH = 32

# So many rows are the given ones. The others hold one value, which a
# TensorProto stores once: a batch of images would be larger than the weights.
_STORED = 3

# Several words, since a model of text may look at more than one at a time.
_TEXT = "some words of a text that was made up"


def sample_rows(
    specs: Mapping[str, tf.TensorSpec],
    given: Any,
    size: int,
    *,
    length: int = LENGTH,
    repeat: bool = False,
) -> dict[str, np.ndarray]:
    """Rows to ask with: the given ones in turn, or else made up.

    After a few of the given ones the rows hold the first value of the first.

    Floats that are made up are uniform on [0, 1) and differ between inputs.
    Integers are 1; the last of every second row is 0, as if it were padded, but
    not where it is the only one. Strings are a few words, of which every second
    row has more.

    Args:
        specs: What a request holds.
        given: `None`, `{input: array}`, or an array for a single input.
        size: The number of rows.
        length: What a dimension of any size is in rows that are made up.
        repeat: The given rows in turn, to the last row.

    Raises:
        ValueError: The given rows do not fit the inputs.
    """
    if given is None:
        random = np.random.default_rng(0)
        return {
            name: _made_up(spec, size, length, random)
            for name, spec in specs.items()
        }
    if not isinstance(given, Mapping):
        given = dict.fromkeys(list(specs)[:1], given)
    served = served_names(given, "input")
    given = {served[name]: array for name, array in given.items()}
    if set(given) != set(specs):
        raise ValueError(
            "`warmup` must have rows for each input and for no other. "
            f"Received: {sorted(given)} for the inputs {sorted(specs)}. "
            "`tasks` leaves out heads and no inputs: the whole model is called "
            "on these rows. To ask for fewer, publish "
            "keras.Model(inputs, {task: output}) of what is to be served."
        )
    few = size if repeat else min(size, _STORED)
    return {
        name: _in_turn(given[name], spec, few, size)
        for name, spec in specs.items()
    }


def _made_up(
    spec: tf.TensorSpec, size: int, length: int, random: np.random.Generator
) -> np.ndarray:
    shape = [size, *(length if n is None else n for n in spec.shape[1:])]
    if spec.dtype == tf.string:
        texts = np.full(shape, _TEXT.encode(), dtype=object)
        texts[1::2] = f"{_TEXT} and more".encode()
        return texts
    if not spec.dtype.is_floating:
        ones = np.ones(shape, spec.dtype.as_numpy_dtype)
        # A row of nothing but 0 may be masked as a whole, or divide.
        if ones[0].size > 1:
            ones.reshape(size, -1)[1::2, -1] = 0
        return ones
    values = np.full(shape, 0.5, spec.dtype.as_numpy_dtype)
    drawn = random.uniform(size=min(values.size, _RANDOM))
    values.flat[: drawn.size] = drawn
    return values


def _in_turn(
    given: Any, spec: tf.TensorSpec, few: int, size: int
) -> np.ndarray:
    """`few` of the given rows in turn, and up to `size` their first value."""
    rows = rows_array(given)
    fit = spec.shape.is_compatible_with(rows.shape) and len(rows) > 0
    if not fit or not _holds(spec.dtype, rows):
        raise ValueError(
            f"The `warmup` rows for {spec.name!r} must be one or more of shape "
            f"{spec.shape[1:]}, with values of {spec.dtype.name}. Received: an "
            f"array of shape {rows.shape} and {rows.dtype}. Convert it first."
        )
    rows = np.take(rows, range(few), axis=0, mode="wrap")
    rows = (
        np.vectorize(tf.compat.as_bytes, otypes=[object])(rows)
        if spec.dtype == tf.string
        else rows.astype(spec.dtype.as_numpy_dtype)
    )
    value = rows.flat[0] if rows.size else 0
    equal = np.full((size - few, *rows.shape[1:]), value, rows.dtype)
    return np.concatenate([rows, equal])


def _holds(dtype: tf.DType, rows: np.ndarray) -> bool:
    """Whether a cast to `dtype` changes no more than the digits of floats."""
    text = rows.dtype.kind in "OSU"
    if text or dtype == tf.string:
        return text and dtype == tf.string
    if dtype.is_floating:
        return rows.dtype.kind != "c"
    with np.errstate(invalid="ignore"):
        return np.array_equal(rows.astype(dtype.as_numpy_dtype), rows)
