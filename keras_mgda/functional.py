"""Classes of models that are made from inputs and outputs."""

from collections.abc import Mapping, Sequence
from typing import Any


def is_functional(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether these hold `inputs` and `outputs`, as Keras decides it."""
    if len(args) == 2:
        return True
    return "outputs" in kwargs and (len(args) == 1 or "inputs" in kwargs)
