"""A setting of a training: sent to another process, made anew, written down."""

import contextlib
import functools
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_mgda import weightings
from keras_mgda.recipe import Recipe


def portable(structure: Any) -> Any:
    """The structure with a recipe in place of what has variables."""

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, (keras.metrics.Metric, weightings.Weighting)):
            return Recipe.of(leaf)
        return leaf

    return keras.tree.map_structure(of_leaf, structure)


def new(structure: Any) -> Any:
    """What `portable` was given, made anew. So are classes, of metrics."""

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Recipe):
            return leaf.make()
        made = leaf.func if isinstance(leaf, functools.partial) else leaf
        return _made(leaf) if isinstance(made, type) else leaf

    return keras.tree.map_structure(of_leaf, structure)


def _made(cls: Any) -> Any:
    """An instance; a metric that Keras numbers has the name of the first."""
    one, other = cls(), cls()
    if getattr(one, "name", None) != getattr(other, "name", None):
        # Some take no name.
        with contextlib.suppress(TypeError):
            return cls(name=re.sub(r"_\d+$", "", other.name))
    return one


def described(value: Any) -> Any:
    """The value as JSON, the same in every process."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return described(value.tolist())
    if isinstance(value, Recipe):
        return {name_of(value.cls): described(value.config)}
    if isinstance(value, Mapping):
        return {str(key): described(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(v) for v in value]
    if isinstance(value, functools.partial):
        given = [described(value.args), described(value.keywords)]
        return {name_of(value.func): given}
    if isinstance(value, type) or inspect.isroutine(value):
        return name_of(value)
    if hasattr(value, "get_config"):
        return {name_of(type(value)): described(value.get_config())}
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def name_of(thing: Any) -> str:
    """Of a class or function, with its module.

    Not where in Keras it is, nor which module runs as `__main__`: both may
    change from one call to the next.
    """
    module = re.sub(r"^keras\.src\..*", "keras", thing.__module__)
    prefix = "" if module == "__main__" else f"{module}."
    return f"{prefix}{thing.__qualname__}"
