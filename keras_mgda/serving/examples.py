"""Requests that hold serialized `tf.Example` records.

One string per row stands for all inputs, as in TensorFlow Extended pipelines
and in TensorFlow Serving's Classify and Regress calls.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mgda.serving.inputs import served_names

NAME = "examples"


def check(
    example_spec: Mapping[str, Any], specs: Mapping[str, tf.TensorSpec]
) -> None:
    """Refuses a feature specification that does not give the inputs.

    Args:
        example_spec: `{input name: tf.io.FixedLenFeature}`. The name is that
            of the model's input or as it is served; records hold it as it is.
        specs: What the model is asked, `{served name: tf.TensorSpec}`.

    Raises:
        ValueError: The names differ, a feature is not of fixed length, or its
            shape or dtype does not fit the input.
    """
    served = served_names(example_spec, "input")
    if set(served.values()) != set(specs):
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
        spec = specs[served[name]]
        shape, dtype = spec.shape[1:], _stored_as(spec.dtype)
        if not shape.is_compatible_with(feature.shape):
            raise ValueError(
                f"The feature {name!r} must have the shape of its input. "
                f"Received: {tuple(feature.shape)} for {shape}."
            )
        if feature.dtype != dtype:
            raise ValueError(
                f"The feature {name!r} must be {dtype.name}, as which records "
                f"hold {spec.dtype.name}. Received: {feature.dtype!r}."
            )


def parse(
    serialized: tf.Tensor,
    example_spec: Mapping[str, Any],
    specs: Mapping[str, tf.TensorSpec],
) -> dict[str, tf.Tensor]:
    """The inputs in serialized records, `[batch]` strings."""
    features = tf.io.parse_example(serialized, dict(example_spec))
    parsed = {
        name: features[feature]
        for feature, name in served_names(example_spec, "input").items()
    }
    return {
        name: parsed[name]
        if parsed[name].dtype == spec.dtype
        else tf.cast(parsed[name], spec.dtype)
        for name, spec in specs.items()
    }


def serialize(
    rows: Mapping[str, np.ndarray], example_spec: Mapping[str, Any]
) -> np.ndarray:
    """The records that `parse` reads `rows` from.

    Raises:
        ValueError: The rows do not have the shapes of the features.
    """
    served = served_names(example_spec, "input")
    for name, feature in example_spec.items():
        shape = rows[served[name]].shape[1:]
        if shape != tuple(feature.shape):
            raise ValueError(
                f"The rows must have the shape of the feature {name!r}, "
                f"{tuple(feature.shape)}. Received: rows of shape {shape}. "
                "Give rows of that shape as `warmup`."
            )
    size = len(next(iter(rows.values())))
    records = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    name: _feature(rows[served[name]][row], feature.dtype)
                    for name, feature in example_spec.items()
                }
            )
        ).SerializeToString()
        for row in range(size)
    ]
    return np.array(records, dtype=object)


def _stored_as(dtype: tf.DType) -> tf.DType:
    """The dtype that a record has for a tensor's: it knows three."""
    if dtype == tf.string:
        return tf.string
    return tf.float32 if dtype.is_floating else tf.int64


def _feature(values: np.ndarray, dtype: tf.DType) -> tf.train.Feature:
    values = np.ravel(values)
    if dtype == tf.string:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if dtype == tf.int64:
        return tf.train.Feature(
            int64_list=tf.train.Int64List(value=values.astype(np.int64))
        )
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
