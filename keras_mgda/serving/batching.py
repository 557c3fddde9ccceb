"""How TensorFlow Serving batches the requests to one version of a model."""

import operator
from collections.abc import Collection, Mapping
from typing import Any

PATH = "batching_params.pbtxt"

# The least value of each field of `tensorflow.serving.BatchingParameters`.
_BATCHING_FIELDS = {
    "max_batch_size": 1,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1,
    "num_batch_threads": 1,
}


def batching_parameters(batching: Mapping[str, Any]) -> str:
    """The text of `batching_params.pbtxt`.

    Args:
        batching: Integers for `max_batch_size`, `batch_timeout_micros`,
            `max_enqueued_batches` and `num_batch_threads`; ascending integers
            up to `max_batch_size` for `allowed_batch_sizes`; a bool for
            `pad_variable_length_inputs`. What is left out is the server's
            default.

    Raises:
        ValueError: The server would refuse it.

    Example:

    ```python
    batching_parameters({"max_batch_size": 8, "allowed_batch_sizes": [1, 8]})
    ```
    """
    for name, value in batching.items():
        if not _may_be(name, value):
            raise ValueError(
                f"`batching` takes integers for {', '.join(_BATCHING_FIELDS)}, "
                "a list of them for allowed_batch_sizes, and a bool for "
                f"pad_variable_length_inputs. Received: {name}={value!r}."
            )
    fields = dict(batching)
    sizes = list(fields.pop("allowed_batch_sizes", []))
    pad = fields.pop("pad_variable_length_inputs", None)
    ascending = all(a < b for a, b in zip([0, *sizes], sizes, strict=False))
    if sizes and not (ascending and sizes[-1] == fields.get("max_batch_size")):
        raise ValueError(
            "`allowed_batch_sizes` must ascend to `max_batch_size`. Received: "
            f"{sizes} and {fields.get('max_batch_size')}."
        )
    lines = [f"{name} {{ value: {value} }}" for name, value in fields.items()]
    lines += [f"allowed_batch_sizes: {size}" for size in sizes]
    if pad is not None:
        lines.append(f"pad_variable_length_inputs: {str(pad).lower()}")
    return "".join(f"{line}\n" for line in lines)


def is_integer(value: Any) -> bool:
    """Whether this is an integer of any kind, and no bool."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _may_be(name: str, value: Any) -> bool:
    """Whether a field of `BatchingParameters` can have this value."""
    if name == "pad_variable_length_inputs":
        return isinstance(value, bool)
    if name == "allowed_batch_sizes":
        return isinstance(value, Collection) and all(map(is_integer, value))
    least = _BATCHING_FIELDS.get(name)
    return least is not None and is_integer(value) and value >= least
