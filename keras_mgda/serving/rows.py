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
_ANY = 32


def sample_rows(
    specs: Mapping[str, tf.TensorSpec], given: Any, size: int
) -> dict[str, np.ndarray]:
    """Rows to ask with: the given ones in turn, or else made up.

    Floats that are made up are uniform on [0, 1) and differ between inputs.
    Integers are 1; the last of every second row is 0, as if it were padded, but
    not where it is the only one. Strings are empty.

    Args:
        specs: What a request holds.
        given: `None`, `{input: array}`, or an array for a single input.
        size: The number of rows.

    Raises:
        ValueError: The given rows do not fit the inputs.
    """
    if given is None:
        random = np.random.default_rng(0)
        return {
            name: _made_up(spec, size, random) for name, spec in specs.items()
        }
    if not isinstance(given, Mapping):
        given = dict.fromkeys(list(specs)[:1], given)
    served = served_names(given, "input")
    given = {served[name]: array for name, array in given.items()}
    if set(given) != set(specs):
        raise ValueError(
            "`warmup` must have rows for each input and for no other. "
            f"Received: {sorted(given)} for the inputs {sorted(specs)}."
        )
    return {
        name: _repeated(given[name], spec, size) for name, spec in specs.items()
    }


def _made_up(
    spec: tf.TensorSpec, size: int, random: np.random.Generator
) -> np.ndarray:
    shape = [size, *(_ANY if n is None else n for n in spec.shape[1:])]
    if spec.dtype == tf.string:
        return np.full(shape, b"", dtype=object)
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


def _repeated(given: Any, spec: tf.TensorSpec, size: int) -> np.ndarray:
    rows = rows_array(given)
    fit = spec.shape.is_compatible_with(rows.shape) and len(rows) > 0
    if not fit or not _holds(spec.dtype, rows):
        raise ValueError(
            f"The `warmup` rows for {spec.name!r} must be one or more of shape "
            f"{spec.shape[1:]}, with values of {spec.dtype.name}. Received: an "
            f"array of shape {rows.shape} and {rows.dtype}. Convert it first."
        )
    rows = np.take(rows, range(size), axis=0, mode="wrap")
    if spec.dtype == tf.string:
        return np.vectorize(tf.compat.as_bytes, otypes=[object])(rows)
    return rows.astype(spec.dtype.as_numpy_dtype)


def _holds(dtype: tf.DType, rows: np.ndarray) -> bool:
    """Whether a cast to `dtype` changes no more than the digits of floats."""
    text = rows.dtype.kind in "OSU"
    if text or dtype == tf.string:
        return text and dtype == tf.string
    if dtype.is_floating:
        return rows.dtype.kind != "c"
    with np.errstate(invalid="ignore"):
        return np.array_equal(rows.astype(dtype.as_numpy_dtype), rows)
