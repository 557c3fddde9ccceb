"""The rows that a model is checked and warmed up with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mgda.serving.inputs import served_names

# A row that is made up has this many random values; the rest are equal, which
# a TensorProto stores once.
_RANDOM = 1024

# What a dimension of any size is taken to be in rows that are made up.
_ANY = 32


def sample_rows(
    specs: Mapping[str, tf.TensorSpec], given: Any, size: int
) -> dict[str, np.ndarray]:
    """Rows to ask with: the given ones in turn, or else made up.

    Floats that are made up are uniform on [0, 1), integers are 1 and strings
    are empty.

    Args:
        specs: What a request holds.
        given: `None`, `{input: array}`, or an array for a single input.
        size: The number of rows.

    Raises:
        ValueError: The given rows do not fit the inputs.
    """
    if given is None:
        return {name: _made_up(spec, size) for name, spec in specs.items()}
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


def _made_up(spec: tf.TensorSpec, size: int) -> np.ndarray:
    shape = [size, *(_ANY if n is None else n for n in spec.shape[1:])]
    if spec.dtype == tf.string:
        return np.full(shape, b"", dtype=object)
    if not spec.dtype.is_floating:
        return np.ones(shape, spec.dtype.as_numpy_dtype)
    values = np.full(shape, 0.5, spec.dtype.as_numpy_dtype)
    random = np.random.default_rng(0).uniform(size=min(values.size, _RANDOM))
    values.flat[: random.size] = random
    return values


def _repeated(given: Any, spec: tf.TensorSpec, size: int) -> np.ndarray:
    rows = np.asarray(given)
    cut = spec.dtype.is_integer and rows.dtype.kind == "f"
    fit = spec.shape.is_compatible_with(rows.shape) and len(rows) > 0
    if cut or not fit:
        raise ValueError(
            f"The `warmup` rows for {spec.name!r} must be one or more of shape "
            f"{spec.shape[1:]} and {spec.dtype.name}. Received: an array of "
            f"shape {rows.shape} and {rows.dtype}."
        )
    rows = np.take(rows, range(size), axis=0, mode="wrap")
    if spec.dtype == tf.string:
        return np.vectorize(tf.compat.as_bytes, otypes=[object])(rows)
    return rows.astype(spec.dtype.as_numpy_dtype)
