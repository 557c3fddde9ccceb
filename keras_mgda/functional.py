"""Classes of models that are made from inputs and outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

_some_input = keras.Input((1,), name="input")
_some_output = keras.layers.Identity(name="output")(_some_input)
# What `keras.Model(inputs, outputs)` is. Keras does not export it by name.
Functional = type(keras.Model(_some_input, _some_output, name="model"))


def is_functional(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether these hold `inputs` and `outputs`, as Keras decides it."""
    if len(args) == 2:
        return True
    return "outputs" in kwargs and (len(args) == 1 or "inputs" in kwargs)


def make_functional(cls: type, base: type, functional: type) -> None:
    """Puts the class `functional` for `base` under a user's class."""
    if issubclass(cls, functional):
        return
    for parent in cls.__bases__:
        if issubclass(parent, base) and parent is not base:
            make_functional(parent, base, functional)
    cls.__bases__ = tuple(
        functional if parent is base else parent for parent in cls.__bases__
    )
