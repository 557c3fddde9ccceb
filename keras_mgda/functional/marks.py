"""Marks, `SharedRepresentation` layers, set where the tasks of a model part."""

import inspect
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras

from keras_mgda.functional.cut import (
    Cut,
    cut_at,
    where_tasks_part,
)
from keras_mgda.functional.graph import (
    Call,
    Graph,
    Place,
    Tensor,
    is_its_graph,
    name_of,
)
from keras_mgda.internals import Functional, nodes
from keras_mgda.layers import SharedRepresentation
from keras_mgda.training import tasks


class Marked(NamedTuple):
    """What a model with its shared representation marked is made from.

    Attributes:
        inputs: those of the plain model.
        outputs: `{task: tensor}`.
        cut: what is marked.
    """

    inputs: Any
    outputs: Any
    cut: Cut


def mark(
    model: keras.Model, shared: str | Sequence[str] | None = None
) -> Marked:
    """Marks where the tasks of a functional model part.

    The marked model consists of the same layers, and of the same calls of them
    up to the marks.

    Args:
        model: a functional model whose outputs are a dict, `{task: tensor}`.
        shared: the name of the layer whose output is the shared representation,
            or several names; `"model/layer"` of one in a nested model. `None`
            finds it; a model with marks then keeps its own.

    Raises:
        ValueError: if the model is not functional, its outputs have no names,
            there is no such layer, or nothing that could be marked.

    Warns:
        UserWarning: if two tasks have nothing of the shared representation in
            common; if methods of the model, or what it was compiled with, stay
            behind.
    """
    _check_functional(model)
    graph = Graph(model)
    places: dict[Tensor, list[Place]] = {}
    marked = own_marks(graph)
    if shared is not None:
        names = [shared] if isinstance(shared, str) else list(shared)
        marked, places = [], after_layers(graph, names)
    elif not marked:
        places = _places(graph, where_tasks_part(graph))
    cut = cut_at(
        graph,
        {tensor: tensor.name for tensor in marked}
        | {tensor: found[-1].name for tensor, found in places.items()},
    )
    if cut.apart:
        warnings.warn(cut.advice, stacklevel=3)
    _warn_of_what_is_lost(model)
    outputs = spliced(
        model,
        [place for found in places.values() for place in found],
        keeps_marks=shared is None,
    )
    return Marked(model.input, outputs, cut)


def own_marks(graph: Graph) -> list[Tensor]:
    """What the model's own marks mark."""
    return [
        tensor
        for call in graph.calls
        if isinstance(call.operation, SharedRepresentation)
        and not call.operation.inside
        for tensor in call.inputs
        if tensor.is_floating
    ]


def _places(
    graph: Graph, shared: Sequence[Tensor]
) -> dict[Tensor, list[Place]]:
    """Where to mark each tensor: as far outside of nested models as possible.

    But no call of a head may read it within the model that returns it. For
    those of the encoder that does not matter: what they make of it is marked.
    """
    encoder = graph.before(shared)
    places = {}
    for tensor in shared:
        heads = [c for c in graph.readers(tensor) if c not in encoder]
        before_heads = itertools.takewhile(
            lambda place, heads=heads: (
                not any(  # type: ignore[misc]
                    _is_within(call, place) for call in heads
                )
            ),
            tensor.places,
        )
        places[tensor] = [min(before_heads, key=lambda p: len(p.scope))]
    return places


def _is_within(call: Call, place: Place) -> bool:
    """Whether a call is part of the call of a nested model at the place."""
    inner = (*place.scope, place.node)
    return call.scope[: len(inner)] == inner


def after_layers(
    graph: Graph, names: Sequence[str]
) -> dict[Tensor, list[Place]]:
    """All outputs of all calls of the layers."""
    known = {
        place.name: place
        for call in graph.calls
        for tensor in call.outputs
        for place in tensor.places
    }
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise ValueError(
            "`shared` must name layers of the model, or, as 'model/layer', of "
            f"a functional model that is nested in it. Received: {list(names)}"
            f", of which {missing} are not among {list(known)}."
        )
    places = {
        tensor: found
        for call in graph.calls
        for tensor in call.outputs
        if tensor.is_floating
        and (found := [p for p in tensor.places if p.name in names])
    }
    if not places:
        raise ValueError(
            "A shared representation must be floating point, or it has no "
            f"gradient. Received: shared={list(names)}, whose outputs are not. "
            "Name a layer that reads them."
        )
    return places


def _check_functional(model: Any) -> None:
    if not isinstance(model, Functional):
        raise ValueError(
            "`from_model` takes a functional model. Received: "
            f"{type(model).__name__}. In a subclassed one, derive from "
            "`MGDAModel` and call a `SharedRepresentation` in `call`."
        )
    if not is_its_graph(model):
        raise ValueError(
            "`from_model` takes a functional model that is what its graph "
            f"says. Received: {type(model).__name__}, which overrides `call`. "
            "Derive it from `MGDAModel`, and call a `SharedRepresentation` in "
            "`call`."
        )
    if not isinstance(model.output, Mapping):
        raise ValueError(
            "The outputs of the model must be a dict, `{task: tensor}`. "
            f"Received: {type(model.output).__name__}. Name each task: "
            "`keras.Model(model.inputs, dict(zip(task_names, "
            "model.outputs)))`."
        )
    for name, output in tasks.flatten(model.output).items():
        if not isinstance(output, keras.KerasTensor):
            raise ValueError(
                "Each output of the model must be one tensor. Received: "
                f"{type(output).__name__} for '{name}'. Name its elements: "
                "`{task: {name: tensor}}`."
            )


def _warn_of_what_is_lost(model: keras.Model) -> None:
    ours = ("keras", "keras_mgda")
    methods = sorted(
        {
            name
            for cls in type(model).__mro__
            if issubclass(cls, keras.Model)
            and cls.__module__.partition(".")[0] not in ours
            for name in vars(cls)
            if not name.startswith("_")
            and callable(getattr(keras.Model, name, None))
        }
        - {"get_config", "from_config"}
    )
    if methods:
        warnings.warn(
            f"What {type(model).__name__} overrides stays behind: {methods}. "
            "The new model has the layers and variables of the model, and the "
            "methods of its own class. If they matter, derive a class from "
            "`MGDAModel` that has them, and call its `from_model`.",
            stacklevel=4,
        )
    if model.compiled:
        defaults = inspect.signature(keras.Model.compile).parameters
        given = [
            f"`{name}`"
            for name, value in (model.get_compile_config() or {}).items()
            if value
            and not (name in defaults and value == defaults[name].default)
        ]
        warnings.warn(
            "What the model was compiled with stays behind. Call `compile` on "
            f"the new one, and pass {', '.join(given) or 'it'} again.",
            stacklevel=4,
        )


def spliced(
    model: keras.Model, places: Sequence[Place], *, keeps_marks: bool = True
) -> Any:
    """The outputs, with one mark at the places: what it marks is one `Z`.

    Args:
        model: a functional model.
        places: where to mark.
        keeps_marks: whether the marks that are there stay.
    """
    taken = {
        operation.name
        for operation in [*model.layers, *(n.operation for n in nodes(model))]
        if keeps_marks or not isinstance(operation, SharedRepresentation)
    }
    mark_of: dict[str, SharedRepresentation] = {}
    here = {
        (id(place.node), place.output) for place in places if not place.scope
    }
    inside: dict[str, dict[str, None]] = {}
    for place in places:
        if place.scope:
            outermost = place.scope[0].operation.name
            name = name_of(place.scope[1:], place.node)
            inside.setdefault(outermost, {})[name] = None

    def marked(tensor: Any, node: Any, output: int) -> Any:
        name = node.operation.name
        if name in inside and keras.backend.is_float_dtype(tensor.dtype):
            if name not in mark_of:
                mark_of[name] = _new_mark(taken, list(inside[name]))
            tensor = mark_of[name](tensor)
        if (id(node), output) in here:
            if "" not in mark_of:
                mark_of[""] = _new_mark(taken)
            tensor = mark_of[""](tensor)
        return tensor

    known: dict[int, Any] = {}

    def now(symbol: Any) -> Any:
        return known.get(id(symbol), symbol)

    for node in nodes(model):
        outputs = node.outputs
        is_mark = isinstance(node.operation, SharedRepresentation)
        if is_mark and not keeps_marks:
            outputs = [now(symbol) for symbol in node.input_tensors]
        elif any(id(symbol) in known for symbol in node.input_tensors):
            args, kwargs = keras.tree.map_structure(
                now, (node.arguments.args, node.arguments.kwargs)
            )
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
        for k, (symbol, tensor) in enumerate(
            zip(node.outputs, outputs, strict=True)
        ):
            tensor = marked(tensor, node, k)
            if tensor is not symbol:
                known[id(symbol)] = tensor
    return keras.tree.map_structure(now, model.output)


def _new_mark(
    taken: set[str], inside: Sequence[str] | None = None
) -> SharedRepresentation:
    """A mark whose name no layer of the model has."""
    mark = SharedRepresentation(inside=inside)
    # Keras counts names in a process, and the model may come from another.
    numbers = itertools.count(1)
    name = mark.name
    while name in taken:
        name = f"{mark.name}_{next(numbers)}"
    taken.add(name)
    if name == mark.name:
        return mark
    return SharedRepresentation(inside=inside, name=name)
