"""The tasks of a model: the outputs that `loss` names, or their columns."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_mgda.losses import PerColumn
from keras_mgda.training.task_losses import TaskLoss


def flatten(structure: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": x, "g": {"b": y}}` as `{"a": x, "g/b": y}`, in that order."""
    if not isinstance(structure, Mapping):
        return {prefix: structure}
    flat: dict[str, Any] = {}
    for name, value in structure.items():
        flat |= flatten(value, f"{prefix}/{name}" if prefix else str(name))
    return flat


def task_losses(loss: Any, outputs: Any) -> Mapping[str, Any]:
    """The `loss` of `compile`, as one loss for each output.

    Args:
        loss: a dict, nested as the outputs are, of what Keras takes as the loss
            of one output; `None` for an output that is no task. Something else
            than a dict is the loss of every output.
        outputs: the outputs of the model; `None` if they are not known yet.

    Raises:
        ValueError: if `loss` does not fit the outputs or names no task.
    """
    if outputs is not None and not isinstance(loss, (Mapping, list, tuple)):
        loss = map_named(lambda *_: loss, outputs)
    if not isinstance(loss, Mapping):
        raise ValueError(
            "`loss` must be a dict that gives each task its loss. "
            f"Received: loss={loss!r}."
        )
    if outputs is not None:
        check_names(loss, outputs)
    flat = flatten(loss)
    for output, of_output in flat.items():
        if isinstance(of_output, (list, tuple)):
            raise ValueError(
                f"A task must have one loss. Received: {of_output!r} for task "
                f"'{output}'. Add them up in one function, or give the model "
                "an output for each."
            )
    if not of_loss(loss):
        raise ValueError(
            f"`loss` must name at least one task. Received: loss={loss!r}."
        )
    sizes = {
        name: output.shape[-1] if output.shape else None
        for name, output in flatten(outputs).items()
        if outputs is not None
    }
    named = map_named(
        lambda name, of_output: (
            of_output.of_output(name, sizes.get(name))
            if isinstance(of_output, PerColumn)
            else of_output
        ),
        loss,
    )
    names(named)
    return named


def names(loss: Mapping[str, Any]) -> list[str]:
    """Of all tasks: of the outputs, or of the columns where these are tasks.

    Raises:
        ValueError: if two have the same name.
    """
    found: list[str] = []
    outputs = []  # which are no tasks: their columns are
    for output, of_output in of_loss(loss).items():
        if isinstance(of_output, PerColumn):
            found += of_output.known_names
            outputs.append(output)
        else:
            found.append(output)
    number = collections.Counter(found + outputs)
    twice = sorted(name for name in number if number[name] > 1)
    if twice:
        raise ValueError(
            "Tasks and outputs must have different names, columns included. "
            f"Received: {twice} more than once. Rename them in `task_names`."
        )
    return found


def columns(loss: Mapping[str, Any]) -> dict[str, PerColumn]:
    """`{output: its loss}` of the outputs whose columns are tasks."""
    return {
        output: of_output
        for output, of_output in of_loss(loss).items()
        if isinstance(of_output, PerColumn)
    }


def of_loss(loss: Any) -> dict[str, Any]:
    """`{output: its loss}`, without the outputs that are no task."""
    return {
        output: of_output
        for output, of_output in flatten(loss).items()
        if of_output is not None
    }


def with_notes(
    loss: Mapping[str, Any], partly_labelled: bool = False
) -> dict[str, Any]:
    """The same losses, each telling the training step its value."""
    return map_named(
        lambda output, of_output: (
            of_output and TaskLoss(output, of_output, partly_labelled)
        ),
        loss,
    )


def check_names(loss: Any, outputs: Any) -> None:
    """Raises a `ValueError` unless `loss` names just the outputs."""
    received, expected = flatten(loss), flatten(outputs)
    if not isinstance(outputs, Mapping):
        raise ValueError(
            "The model must return a dict, `{task: tensor}`. "
            f"Received: {type(outputs).__name__}. Name each task, as in "
            "`dict(zip(task_names, outputs))`, or `{name: output}` of one."
        )
    if set(received) != set(expected):
        raise ValueError(
            "`loss` must name every output of the model, and nothing else. "
            f"Received: {list(received)} for the outputs {list(expected)}. "
            "Give an output that is no task the loss `None`."
        )


def listed(names: Sequence[str], at_most: int = 5) -> str:
    """`task 'a'`, or `the tasks 'a', 'b' and 3 more`, for a message."""
    quoted = ", ".join(f"'{name}'" for name in names[:at_most])
    if len(names) > at_most:
        quoted = f"{quoted} and {len(names) - at_most} more"
    return f"task {quoted}" if len(names) == 1 else f"the tasks {quoted}"


def map_named(
    function: Callable[[str, Any], Any], structure: Any, prefix: str = ""
) -> Any:
    """The same structure of `function(name, leaf)`, named as by `flatten`."""
    if not isinstance(structure, Mapping):
        return function(prefix, structure)
    return {
        name: map_named(
            function, value, f"{prefix}/{name}" if prefix else str(name)
        )
        for name, value in structure.items()
    }
