"""Requests that hold serialized `tf.Example` records.

One string per row stands for all inputs, as in TensorFlow Extended pipelines
and in TensorFlow Serving's Classify and Regress calls.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

NAME = "examples"


def check(
    example_spec: Mapping[str, Any], specs: Mapping[str, tf.TensorSpec]
) -> None:
    """Refuses a feature specification that does not give the inputs.

    Args:
        example_spec: `{input name: tf.io.FixedLenFeature}`.
        specs: What the model is asked, `{input name: tf.TensorSpec}`.

    Raises:
        ValueError: The names differ, a feature is not of fixed length, or its
            shape does not fit the input.
    """
    if set(example_spec) != set(specs):
        raise ValueError(
            "`example_spec` must have one feature for each input and no "
            f"other. Received: features {sorted(example_spec)} for inputs "
            f"{sorted(specs)}."
        )
    for name, feature in example_spec.items():
        if not isinstance(feature, tf.io.FixedLenFeature):
            raise ValueError(
                "`example_spec` takes tf.io.FixedLenFeature. Received: "
                f"{name!r}: {feature!r}. Read other features as strings and "
                "decode them in `preprocess`."
            )
        shape = specs[name].shape[1:]
        if not shape.is_compatible_with(feature.shape):
            raise ValueError(
                f"The feature {name!r} must have the shape of its input. "
                f"Received: {tuple(feature.shape)} for {shape}."
            )


def parse(
    serialized: tf.Tensor,
    example_spec: Mapping[str, Any],
    specs: Mapping[str, tf.TensorSpec],
) -> dict[str, tf.Tensor]:
    """The inputs in serialized records, `[batch]` strings."""
    features = tf.io.parse_example(serialized, dict(example_spec))
    return {
        name: features[name]
        if features[name].dtype == spec.dtype
        else tf.cast(features[name], spec.dtype)
        for name, spec in specs.items()
    }


def serialize(
    rows: Mapping[str, np.ndarray], example_spec: Mapping[str, Any]
) -> np.ndarray:
    """The records that `parse` reads `rows` from."""
    size = len(next(iter(rows.values())))
    records = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    name: _feature(rows[name][row], feature.dtype)
                    for name, feature in example_spec.items()
                }
            )
        ).SerializeToString()
        for row in range(size)
    ]
    return np.array(records, dtype=object)


def _feature(values: np.ndarray, dtype: tf.DType) -> tf.train.Feature:
    values = np.ravel(values)
    if dtype == tf.string:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if dtype == tf.int64:
        return tf.train.Feature(
            int64_list=tf.train.Int64List(value=values.astype(np.int64))
        )
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
