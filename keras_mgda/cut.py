"""Finds where the tasks of a functional model part, and marks it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from keras_mgda.internals import Functional
from keras_mgda.layers import SharedRepresentation
from keras_mgda.training import tasks


class Call(NamedTuple):
    """One call of an operation in the graph of a functional model."""

    operation: Any
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]


Place = tuple[int, int]  # the number of the call, the number of its output


def mark(
    model: keras.Model, shared: str | Sequence[str] | None = None
) -> tuple[keras.Model, list[str]]:
    """A model of the same layers, with its shared representations marked.

    Args:
        model: a functional model whose outputs are a dict, `{task: tensor}`.
        shared: the name of the layer whose output is the shared representation,
            or several names. `None` finds the tensors in which the part of the
            graph that serves all tasks, and holds variables to train, ends.

    Returns:
        The marked model, and a description of each place.

    Raises:
        ValueError: if the model is not functional, its outputs have no names,
            or there is no such layer or tensor.
    """
    if not isinstance(model, Functional):
        raise ValueError(
            "`from_model` takes a functional model. Received: "
            f"{type(model).__name__}. In a subclassed one, derive from "
            "`MGDAModel` and call a `SharedRepresentation` in `call`."
        )
    if not isinstance(model.output, Mapping):
        raise ValueError(
            "The outputs of the model must be a dict, `{task: tensor}`. "
            f"Received: {type(model.output).__name__}. Name each task: "
            "`keras.Model(model.inputs, dict(zip(task_names, "
            "model.outputs)))`."
        )
    calls, outputs = _read_graph(model)
    if shared is None:
        places = _where_tasks_part(calls, outputs)
    else:
        places = _after_layers(
            calls, [shared] if isinstance(shared, str) else list(shared)
        )
    marked = _clone(model, _marker(places))
    found = [
        f"'{calls[c].operation.name}' {tuple(calls[c].outputs[k].shape)}"
        for c, k in places
    ]
    return marked, found


def _where_tasks_part(
    calls: Sequence[Call], outputs: Mapping[str, keras.KerasTensor]
) -> list[Place]:
    # A call is shared if it leads to all tasks. Its output is a shared
    # representation if something that is not shared reads it.
    shared, leading = _lead_to_all(calls, outputs)
    trainable = _trainable(calls)
    ends = set(map(id, outputs.values()))
    for c, call in enumerate(calls):
        if c not in shared:
            ends.update(map(id, call.inputs))
    places = [
        (c, k)
        for c in sorted(shared)
        for k, tensor in enumerate(calls[c].outputs)
        if id(tensor) in ends & trainable & leading
    ]
    if not places:
        raise ValueError(
            "A shared representation must exist: a tensor that comes from "
            "trainable layers and leads to every task. Received: a model whose "
            f"tasks {list(outputs)} have none. If the layers that they share "
            "are frozen for now, name the last one by `shared=`. What some of "
            "them share mark with a `SharedRepresentation` when building it."
        )
    return places


def _lead_to_all(
    calls: Sequence[Call], outputs: Mapping[str, keras.KerasTensor]
) -> tuple[set[int], set[int]]:
    """What every task depends on: the numbers of calls, the ids of tensors."""
    leads_to: dict[int, set[str]] = {}  # by tensor
    for task, tensor in outputs.items():
        leads_to.setdefault(id(tensor), set()).add(task)
    shared = set()
    for c, call in reversed(list(enumerate(calls))):
        found = [leads_to.get(id(tensor), set()) for tensor in call.outputs]
        names = set().union(*found)
        if len(names) == len(outputs):
            shared.add(c)
        for tensor in call.inputs:
            leads_to.setdefault(id(tensor), set()).update(names)
    # Not each output of such a call has to lead to all of them.
    tensors = {i for i, names in leads_to.items() if len(names) == len(outputs)}
    return shared, tensors


def _trainable(calls: Sequence[Call]) -> set[int]:
    """The tensors that depend on variables which are trained, by their id."""
    trainable: set[int] = set()
    for call in calls:
        own = getattr(call.operation, "trainable_variables", ())
        if own or any(id(tensor) in trainable for tensor in call.inputs):
            trainable.update(map(id, call.outputs))
    return trainable


def _after_layers(calls: Sequence[Call], names: Sequence[str]) -> list[Place]:
    known = [call.operation.name for call in calls]
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise ValueError(
            "`shared` must name layers of the model's own graph. "
            f"Received: {list(names)}, of which {missing} are not among "
            f"{known}. Layers inside a nested model cannot be named: mark them "
            "with a `SharedRepresentation` when building it."
        )
    return [
        (c, k)
        for c, call in enumerate(calls)
        for k in range(len(call.outputs))
        if call.operation.name in names
    ]


def _read_graph(
    model: keras.Model,
) -> tuple[list[Call], dict[str, keras.KerasTensor]]:
    """The calls of a functional model in order, and its named outputs."""
    calls: list[Call] = []

    def note(operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = operation(*args, **kwargs)
        calls.append(
            Call(
                operation, _tensors((args, kwargs)), keras.tree.flatten(outputs)
            )
        )
        return outputs

    copy = _clone(model, note)
    return calls, tasks.flatten(copy.output)


def _marker(places: Sequence[Place]) -> Callable[..., Any]:
    """A call function that puts a marker at each of the places."""
    call_number = -1

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal call_number
        call_number += 1
        outputs = operation(*args, **kwargs)
        flat = keras.tree.flatten(outputs)
        for c, k in places:
            if c == call_number:
                flat[k] = SharedRepresentation()(flat[k])
        return keras.tree.pack_sequence_as(outputs, flat)

    return call


def _clone(
    model: keras.Model, call_function: Callable[..., Any]
) -> keras.Model:
    """Calls the model's own layers anew, each through `call_function`."""
    return keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=call_function
    )


def _tensors(structure: Any) -> list[keras.KerasTensor]:
    return [
        leaf
        for leaf in keras.tree.flatten(structure)
        if isinstance(leaf, keras.KerasTensor)
    ]
