"""What a request holds: named tensors, and how the model is called with them.

Names, shapes and dtypes come from the first of these that is given:

1. `preprocess`, a `tf.function` with an `input_signature` or a Keras model,
   which stands in front of the model and is served with it;
2. the inputs of a functional model;
3. sample rows, for a subclassed model, which declares no inputs.
"""

import dataclasses
import inspect
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# The names that Keras and TensorFlow make up, numbered by what the process
# built before.
MADE_UP = re.compile(r"(keras_tensor|input_layer|args|output)(_\d+)*")

# REST knows no half-precision number, in or out.
HALF = (tf.float16, tf.bfloat16)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a request holds.

    Attributes:
        specs: `{name: tf.TensorSpec}`, each `[None, ...]`.
        arguments: From `{name: tensor}` to what the model is called with.
    """

    specs: dict[str, tf.TensorSpec]
    arguments: Callable[[Mapping[str, tf.Tensor]], Any]


def declared_inputs(model: Any, preprocess: Any, rows: Any) -> Inputs:
    """The inputs of `model`, or of `preprocess` in front of it.

    Args:
        model: A built `keras.Model`.
        preprocess: `None`, a `tf.function`, or a functional Keras model.
        rows: `None`, or sample inputs: an array or a dict of arrays, batch
            first. Read for a subclassed model only.

    Raises:
        ValueError: The inputs are unknown, unnamed, sparse, or of a fixed
            batch size, or two names collide.
    """
    if preprocess is not None:
        if _is_functional(preprocess):
            return _inputs(
                _symbolic(preprocess), lambda x: preprocess(x, training=False)
            )
        signature = getattr(preprocess, "input_signature", None)
        if signature is None:
            raise ValueError(
                "`preprocess` must tell what it takes: give a tf.function with "
                "an `input_signature` of named tf.TensorSpecs, or a functional "
                f"Keras model. Received: preprocess={preprocess!r}"
            )
        return _inputs(signature, lambda x: preprocess(*x))
    if _is_functional(model):
        return _inputs(_symbolic(model), lambda x: x)
    if rows is None:
        raise ValueError(
            "A subclassed model does not declare its inputs: give sample rows, "
            "as `warmup={name: array}` or, for one input, `warmup=array`, or a "
            "`preprocess` with an `input_signature`. Received: "
            f"model={model.name!r} of class {type(model).__name__}."
        )
    if isinstance(rows, Mapping):
        return _inputs(
            {name: _spec(array) for name, array in rows.items()}, lambda x: x
        )
    name = next(iter(inspect.signature(model.call).parameters))
    return _inputs({name: _spec(rows)}, lambda x: x[name])


def served_names(names: Iterable[str], kind: str) -> dict[str, str]:
    """The name in the artifact for each name in the model.

    TensorFlow cuts or renames some names in silence, so every character but
    ASCII letters, digits and `_` becomes `_`. An input that could not be a
    Python argument gets the prefix `input_`.

    Args:
        names: Names in the model.
        kind: What they name, for the error: `"input"`, `"task"`, `"output"`,
            `"signature"`.

    Raises:
        ValueError: A name is empty, or two names become the same.
    """
    served: dict[str, str] = {}
    for name in names:
        if not name:
            raise ValueError(
                f"Every {kind} needs a name that clients can rely on. "
                f"Received: one named {name!r}. Name it in keras.Input(..., "
                "name=...) or tf.TensorSpec(..., name=...), or by the key of a "
                "dict."
            )
        clean = re.sub(r"[^A-Za-z0-9_]", "_", name)
        if kind == "input" and not _is_argument(clean):
            clean = f"input_{clean}"
        # TensorFlow does not tell the case of inputs apart.
        rivals = [n for n, s in served.items() if s.lower() == clean.lower()]
        if rivals:
            raise ValueError(
                f"The names of {kind}s must differ in more than case and "
                f"punctuation. Received: {kind}s {rivals[0]!r} and {name!r}, "
                f"both served as {clean!r}. Rename one of them."
            )
        served[name] = clean
    return served


def float32(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor as a client can read it: half precision as float32."""
    if tensor.dtype in HALF:
        return tf.cast(tensor, tf.float32)
    return tf.identity(tensor)


def _is_functional(model: Any) -> bool:
    return isinstance(model, keras.Model) and bool(
        getattr(model, "inputs", None)
    )


def _symbolic(model: Any) -> Any:
    """The structure of a functional model's inputs."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    return model.input


def _inputs(structure: Any, prepare: Callable[[Any], Any]) -> Inputs:
    """`Inputs` for a structure of specs, or of Keras' symbolic tensors."""
    declared = {
        _path_name(path, leaf): leaf
        for path, leaf in keras.tree.flatten_with_path(structure)
    }
    if len(declared) < len(keras.tree.flatten(structure)):
        raise ValueError(
            f"Inputs must have names of their own. Received: {list(declared)} "
            f"for {len(keras.tree.flatten(structure))} inputs."
        )
    served = served_names(declared, "input")
    specs = {
        served[n]: _served_spec(n, served[n], declared[n]) for n in declared
    }

    def arguments(tensors: Mapping[str, tf.Tensor]) -> Any:
        leaves = [
            tf.cast(tensors[served[name]], leaf.dtype)
            if tf.as_dtype(leaf.dtype) in HALF
            else tensors[served[name]]
            for name, leaf in declared.items()
        ]
        return prepare(keras.tree.pack_sequence_as(structure, leaves))

    return Inputs(specs, arguments)


def _path_name(path: tuple[Any, ...], leaf: Any) -> str:
    """The keys that lead to an input, or its own name where none do."""
    keys = [key for key in path if isinstance(key, str)]
    return "_".join(keys) if keys else leaf.name or ""


def _served_spec(name: str, served: str, leaf: Any) -> tf.TensorSpec:
    shape = tf.TensorShape(leaf.shape)
    if MADE_UP.fullmatch(name):
        raise ValueError(
            "Every input needs a name that clients can rely on. Received: an "
            f"input of shape {shape} named {name!r}, which was made up. Build "
            "it with keras.Input(..., name=...) or tf.TensorSpec(..., "
            "name=...), or key the inputs by a dict. A model that is trained "
            "gets names from x = keras.Input(..., name=...) and "
            "keras.Model(x, model(x))."
        )
    if getattr(leaf, "sparse", False) or getattr(leaf, "ragged", False):
        raise ValueError(
            f"Inputs must be dense. Received: {name!r}, sparse or ragged. Take "
            "dense tensors in a `preprocess` and convert there."
        )
    if not shape.rank or shape[0] is not None:
        raise ValueError(
            "The first dimension of every input is the batch and must be "
            f"dynamic. Received: {name!r} of shape {shape}. Build it without "
            "`batch_size`, and pass what is no row of a batch as a constant."
        )
    dtype = tf.as_dtype(leaf.dtype)
    return tf.TensorSpec(
        shape, tf.float32 if dtype in HALF else dtype, name=served
    )


def rows_array(rows: Any) -> np.ndarray:
    """Sample rows as one array.

    Raises:
        ValueError: They are ragged, or neither numbers nor strings.
    """
    try:
        array = np.asarray(rows)
    except ValueError:  # Lists of several lengths.
        array = np.asarray(None)
    if array.dtype.kind in "SU":  # Which cut the zeros that end a file.
        array = np.asarray(rows, dtype=object)
    if array.dtype == object and not all(
        isinstance(item, str | bytes) for item in array.flat
    ):
        raise ValueError(
            "`warmup` rows must be an array of numbers or strings, all rows of "
            f"one shape. Received: {type(rows).__name__}. Pad rows that differ "
            "in length, and give an array and no data set."
        )
    return array


def _spec(rows: Any) -> tf.TensorSpec:
    """The spec of sample rows, with any number of rows."""
    array = rows_array(rows)
    # NumPy's default is wider than any Keras model computes in.
    dtype = np.float32 if array.dtype == np.float64 else array.dtype
    if array.dtype.kind in "OSU":
        dtype = tf.string
    return tf.TensorSpec([None, *array.shape[1:]], dtype)


def _is_argument(name: str) -> bool:
    return name[:1].isalpha() and not keyword.iskeyword(name) and name != "self"
