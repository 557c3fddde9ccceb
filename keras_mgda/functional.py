"""Functional models, and where their tasks part.

A functional model is a graph: calls of layers, and the tensors between them.
Whatever is inside of nested functional models is seen as part of it. Symbols: a
task *reads* a tensor if its output depends on it, and a variable if it reads
the output of a call that uses the variable. Of a tensor `z`, and a call `c`,

    R(z), R(c)   the set of tasks that read it,
    T            all tasks,
    V(c)         the variables of the layer that is called, frozen or not.

`Z`, the shared representation, is where what the tasks share ends:

1. each tensor with `R(z) = T` that comes from variables, and that a call with
   `R(output) != T` for one of its outputs reads, or that is an output;
2. where calls that step 1 leaves beside `Z` use variables that several tasks
   read, as those of a layer that is called once for each input, or an encoder
   that returns one tensor for each task: what such calls hand on to others.
"""

import inspect
import itertools
import warnings
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, NamedTuple

import keras

from keras_mgda.descent.forward import current_forward_pass
from keras_mgda.internals import (
    ExchangingFunctional,
    Functional,
    maker,
    nodes,
    variables_unfrozen,
)
from keras_mgda.layers import SharedRepresentation
from keras_mgda.training import tasks


def is_functional(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether these hold `inputs` and `outputs`, as Keras decides it."""
    if len(args) == 2:
        return True
    return "outputs" in kwargs and (len(args) == 1 or "inputs" in kwargs)


class MarkedFunctional(ExchangingFunctional):
    """A functional model that may hold marks, `SharedRepresentation` layers.

    Keras orders the layers of a functional model, and with them its weights
    and what is in its files, by their depth in the graph. A mark adds to the
    depth of all that stands before it, and would change the order where
    branches are of different length. So the layers of this model are in the
    order that they have without the marks, which is that of the plain model.
    It follows from the graph alone, and so holds for copies, too.

    Marks with `inside` are set within the nested models while a training step
    is recorded, and in no other call.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Functional.__init__(self, *args, **kwargs)
        # Functions, for Keras looks for variables in whatever else it finds.
        self._with_marks_inside = _marked_inside(self)

    @property
    def layers(self) -> list[keras.layers.Layer]:
        if "_position" not in self.__dict__:  # while Keras makes the model
            self._position = _positions(self).__getitem__
        layers: list[keras.layers.Layer] = super().layers
        return sorted(layers, key=lambda layer: self._position(layer.name))

    @layers.setter
    def layers(self, layers: Any) -> None:
        Functional.layers.fset(self, layers)  # says that it cannot be set

    def exchanged(self, operation: Any) -> Any:
        if current_forward_pass() is None:
            return operation
        return self._with_marks_inside(operation)


# The graph.


class Tensor:
    """A tensor of a graph, whichever models hand it on.

    Attributes:
        symbol: the symbolic tensor of the call that makes it.
        places: of that call, and of the calls of nested models that return it,
            from the inside to the outside.
        readers: the calls that read it.
    """

    def __init__(self, symbol: keras.KerasTensor) -> None:
        self.symbol = symbol
        self.places: list[Place] = []
        self.readers: list[Call] = []

    @property
    def name(self) -> str:
        """Of the call that makes it, as the outermost model names it."""
        if not self.places:  # an input
            return str(self.symbol.name)
        return min(self.places, key=lambda place: len(place.scope)).name

    @property
    def is_floating(self) -> bool:
        return bool(keras.backend.is_float_dtype(self.symbol.dtype))


class Place(NamedTuple):
    """One output of one call of a layer.

    Attributes:
        scope: the calls of nested models within which this call stands.
        node: the call.
        output: the number of the output.
    """

    scope: tuple[Any, ...]
    node: Any
    output: int

    @property
    def name(self) -> str:
        return _name(self.scope, self.node)


class Call:
    """One call of a layer, or of another operation, which is no nested model.

    Attributes:
        scope: the calls of nested models within which it stands.
        node: what Keras notes of it.
        inputs: what it reads.
        outputs: what it makes.
    """

    def __init__(
        self,
        scope: tuple[Any, ...],
        node: Any,
        inputs: list[Tensor],
        outputs: list[Tensor],
    ) -> None:
        self.scope = scope
        self.node = node
        self.inputs = inputs
        self.outputs = outputs

    @property
    def operation(self) -> Any:
        return self.node.operation

    @property
    def name(self) -> str:
        return _name(self.scope, self.node)

    @property
    def paths(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Which outputs come from which inputs.

        All from all, but of a mark each tensor from itself alone.
        """
        if isinstance(self.operation, SharedRepresentation) and len(
            self.inputs
        ) == len(self.outputs):
            pairs = zip(self.inputs, self.outputs, strict=True)
            return [([read], [made]) for read, made in pairs]
        return [(self.inputs, self.outputs)]

    @property
    def variables(self) -> list[keras.Variable]:
        """What the layer trains, or would if it was not frozen."""
        if not isinstance(self.operation, keras.layers.Layer):
            return []
        return variables_unfrozen(self.operation)


class Graph:
    """The calls of a functional model, and who reads what.

    Attributes:
        calls: of all layers, also of those in nested models, each before the
            calls that read its outputs.
        tasks: the outputs that depend on variables, trained or frozen.
        variables: of each call.
        reads: of each tensor, the tasks that read it.
        reads_call: of each call.
        reads_variable: of each variable, by its id.
        comes_from_variables: the tensors through which a gradient arrives at a
            variable, if that is trained.
    """

    def __init__(self, model: keras.Model) -> None:
        self.calls: list[Call] = []
        inputs = [Tensor(symbol) for symbol in model.inputs]
        known = self._walk(model, inputs, ())
        outputs = {
            name: known[id(symbol)]
            for name, symbol in _named_outputs(model).items()
        }
        self.variables = {call: call.variables for call in self.calls}
        self.comes_from_variables: set[Tensor] = set()
        for call in self.calls:
            for read, made in call.paths:
                if self.variables[call] or any(
                    tensor in self.comes_from_variables for tensor in read
                ):
                    self.comes_from_variables.update(
                        tensor for tensor in made if tensor.is_floating
                    )
            for tensor in call.inputs:
                tensor.readers.append(call)
        self.tasks = {
            name: tensor
            for name, tensor in outputs.items()
            if tensor in self.comes_from_variables
        }
        self.reads: dict[Tensor, set[str]] = {}
        for task, tensor in self.tasks.items():
            self.reads.setdefault(tensor, set()).add(task)
        self.reads_call: dict[Call, set[str]] = {}
        self.reads_variable: dict[int, set[str]] = {}
        for call in reversed(self.calls):
            for read, made in call.paths:
                readers = union(self.reads.get(t, ()) for t in made)
                for tensor in read:
                    if tensor.is_floating:  # no gradient passes the others
                        self.reads.setdefault(tensor, set()).update(readers)
            readers = union(self.reads.get(t, ()) for t in call.outputs)
            self.reads_call[call] = readers
            for variable in self.variables[call]:
                self.reads_variable.setdefault(id(variable), set()).update(
                    readers
                )

    def _walk(
        self, model: keras.Model, inputs: list[Tensor], scope: tuple[Any, ...]
    ) -> dict[int, Tensor]:
        """Notes the calls of a model; returns its tensors, by symbol."""
        known = dict(zip(map(id, model.inputs), inputs, strict=True))
        for node in nodes(model):
            # Where an optional input is missing, so is what follows of it.
            given = [known[id(t)] for t in node.input_tensors if id(t) in known]
            nested = _inputs_of_nested(node)
            if nested is None:
                outputs = [Tensor(symbol) for symbol in node.outputs]
                self.calls.append(Call(scope, node, given, outputs))
            else:
                inner = _as_it_trains(model, node.operation)
                # It may read constants, too.
                read = [
                    known.get(id(t)) or Tensor(symbol)
                    for t, symbol in zip(nested, inner.inputs, strict=True)
                ]
                found = self._walk(inner, read, (*scope, node))
                outputs = [found[id(symbol)] for symbol in inner.outputs]
            for k, symbol in enumerate(node.outputs):
                outputs[k].places.append(Place(scope, node, k))
                known[id(symbol)] = outputs[k]
        return known

    def before(self, ends: Iterable[Tensor]) -> set[Call]:
        """The calls that these tensors come from."""
        wanted, found = set(ends), set()
        for call in reversed(self.calls):
            for read, made in call.paths:
                if any(tensor in wanted for tensor in made):
                    found.add(call)
                    wanted.update(read)
        return found

    def after(self, starts: Iterable[Tensor]) -> set[Call]:
        """The calls that come from these tensors."""
        known, found = set(starts), set()
        for call in self.calls:
            for read, made in call.paths:
                if any(tensor in known for tensor in read):
                    found.add(call)
                    known.update(made)
        return found


def _named_outputs(model: keras.Model) -> dict[str, Any]:
    if isinstance(model.output, Mapping):
        return tasks.flatten(model.output)
    return {str(k): symbol for k, symbol in enumerate(model.outputs)}


def _as_it_trains(model: keras.Model, nested: Any) -> Any:
    """A nested model with the marks that are set in it."""
    if isinstance(model, MarkedFunctional):
        return model._with_marks_inside(nested)
    return nested


def _inputs_of_nested(node: Any) -> list[Any] | None:
    """What a nested model is called on, in the order of its own inputs.

    `None` if this is no call of a functional model whose graph is all of it.
    """
    model, args = node.operation, node.arguments.args
    if not _is_its_graph(model) or len(args) != 1:
        return None
    (given,) = args
    if isinstance(given, Mapping) and not isinstance(model.input, Mapping):
        given = [given.get(symbol.name) for symbol in model.inputs]
    flat = keras.tree.flatten(given)
    return flat if len(flat) == len(model.inputs) else None


def _is_its_graph(model: Any) -> bool:
    return isinstance(model, Functional) and type(model).call is Functional.call


def _name(scope: Iterable[Any], node: Any) -> str:
    return "/".join(n.operation.name for n in (*scope, node))


def union(sets: Iterable[Iterable[str]]) -> set[str]:
    return set().union(*sets)


# The order of the layers.


class _Named(keras.Operation):
    """Stands for a layer, in a graph of the same edges."""

    def call(self, *args: Any) -> None:
        raise NotImplementedError

    def compute_output_spec(self, inputs: list[Any], num_outputs: int) -> Any:
        return [keras.KerasTensor(()) for _ in range(num_outputs)]


def _positions(model: keras.Model) -> dict[str, float]:
    """The place of each layer among those of the plain model, by its name.

    Keras decides it, for a graph of the same edges without the marks.
    """
    inputs = [
        keras.Input((), name=maker(symbol).name) for symbol in model.inputs
    ]
    known = dict(zip(map(id, model.inputs), inputs, strict=True))
    operations: dict[str, _Named] = {}
    marks: dict[str, list[Any]] = {}
    for node in nodes(model):
        name = node.operation.name
        given = [known[id(symbol)] for symbol in node.input_tensors]
        if isinstance(node.operation, SharedRepresentation):
            marks.setdefault(name, []).extend(given)
            outputs = given
        else:
            if name not in operations:
                operations[name] = _Named(name=name)
            outputs = operations[name](given, num_outputs=len(node.outputs))
        known |= dict(zip(map(id, node.outputs), outputs, strict=True))
    plain = keras.Function(inputs, [known[id(t)] for t in model.outputs])
    positions = {op.name: float(k) for k, op in enumerate(plain.operations)}
    for name, marked in marks.items():  # behind the last that it marks
        positions[name] = 0.5 + max(
            positions[maker(tensor).name] for tensor in marked
        )
    return positions


# Where the tasks part.


class Part(NamedTuple):
    """A tensor that belongs to `Z`.

    Attributes:
        name: of the layer whose output it is; `"model/layer"` where that is
            within a nested model.
        shape: of the tensor.
        tasks: those that read it.
    """

    name: str
    shape: tuple[int | None, ...]
    tasks: tuple[str, ...]


class Cut(NamedTuple):
    """Where the tasks of a model part.

    Attributes:
        parts: the tensors of `Z`.
        apart: the pairs of tasks that have variables of the encoder in common,
            but no tensor of `Z`. The Gram matrix at `Z` says nothing of them.
    """

    parts: list[Part]
    apart: list[tuple[str, str]]

    @property
    def is_diagonal(self) -> bool:
        """Whether no two tasks have a tensor of `Z` in common."""
        return bool(self.apart) and all(len(p.tasks) < 2 for p in self.parts)

    @property
    def advice(self) -> str:
        """What to know of tasks that are apart; empty if there are none."""
        if not self.apart:
            return ""
        pairs = " nor ".join(f"both '{a}' and '{b}'" for a, b in self.apart[:3])
        if len(self.apart) > 3:
            pairs += f", nor {len(self.apart) - 3} more pairs"
        return (
            f"No tensor of the shared representation, {self}, is read by "
            f"{'two tasks' if self.is_diagonal else pairs}. Their gradients "
            "there have the product zero: MGDA-UB sees no conflict between "
            "them, though they share layers before. Compile with "
            "`gradients='parameters'` or 'verified', which look at these."
        )

    def __str__(self) -> str:
        """`'layer' (None, 3), 'model/layer' (None, 4)`"""
        return ", ".join(f"'{part.name}' {part.shape}" for part in self.parts)


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
    marked = marks(graph)
    if shared is not None:
        names = [shared] if isinstance(shared, str) else list(shared)
        marked, places = [], _after_layers(graph, names)
    elif not marked:
        places = _places(graph, _where_tasks_part(graph))
    cut = cut_at(
        graph,
        {tensor: tensor.name for tensor in marked}
        | {tensor: found[-1].name for tensor, found in places.items()},
    )
    if cut.apart:
        warnings.warn(cut.advice, stacklevel=3)
    _warn_of_what_is_lost(model)
    outputs = _splice(
        model,
        [place for found in places.values() for place in found],
        keeps_marks=shared is None,
    )
    return Marked(model.input, outputs, cut)


def marks(graph: Graph) -> list[Tensor]:
    """What the model's own marks mark."""
    return [
        tensor
        for call in graph.calls
        if isinstance(call.operation, SharedRepresentation)
        and not call.operation.inside
        for tensor in call.inputs
        if tensor.is_floating
    ]


def _where_tasks_part(graph: Graph) -> list[Tensor]:
    """The tensors of `Z`, by the two steps at the top of this file."""
    found = _read_by_all(graph)
    before = graph.before(found)
    beside = set(graph.calls) - before - graph.after(found)
    sharing = {
        call
        for call in beside
        if any(
            len(graph.reads_variable[id(variable)]) > 1
            for variable in graph.variables[call]
        )
    }
    sharing |= graph.before(t for call in sharing for t in call.inputs)
    encoder = before | sharing
    ends = set(graph.tasks.values())
    found += [
        tensor
        for call in graph.calls
        if call in sharing - before
        for tensor in call.outputs
        if tensor in graph.comes_from_variables
        and graph.reads.get(tensor)
        and (
            tensor in ends or not encoder.issuperset(_of_a_task(graph, tensor))
        )
    ]
    _check_found(graph, found)
    return found


def _read_by_all(graph: Graph) -> list[Tensor]:
    """Step 1: the last tensors from variables that all tasks read."""
    everyone, ends = set(graph.tasks), set(graph.tasks.values())
    parting = {
        call
        for call in graph.calls
        if any(
            graph.reads.get(tensor, everyone) != everyone
            for tensor in call.outputs
        )
    }
    return [
        tensor
        for call in graph.calls
        for tensor in call.outputs
        if graph.reads.get(tensor) == everyone
        and tensor in graph.comes_from_variables
        and (tensor in ends or parting & set(_of_a_task(graph, tensor)))
    ]


def _of_a_task(graph: Graph, tensor: Tensor) -> list[Call]:
    """The calls that read the tensor for some task."""
    return [call for call in tensor.readers if graph.reads_call[call]]


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
        heads = [c for c in _of_a_task(graph, tensor) if c not in encoder]
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


def _after_layers(
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


def cut_at(graph: Graph, names: Mapping[Tensor, str]) -> Cut:
    parts = [
        Part(
            name,
            tuple(tensor.symbol.shape),
            tuple(t for t in graph.tasks if t in graph.reads.get(tensor, ())),
        )
        for tensor, name in names.items()
    ]
    in_common = {
        pair
        for call in graph.before(names)
        for variable in graph.variables[call]
        for pair in _pairs(graph, graph.reads_variable[id(variable)])
    }
    in_common -= {pair for part in parts for pair in _pairs(graph, part.tasks)}
    return Cut(parts, [p for p in _pairs(graph, graph.tasks) if p in in_common])


def _pairs(graph: Graph, names: Collection[str]) -> Iterator[tuple[str, str]]:
    return itertools.combinations(
        [task for task in graph.tasks if task in names], 2
    )


def _check_functional(model: Any) -> None:
    if not isinstance(model, Functional):
        raise ValueError(
            "`from_model` takes a functional model. Received: "
            f"{type(model).__name__}. In a subclassed one, derive from "
            "`MGDAModel` and call a `SharedRepresentation` in `call`."
        )
    if not _is_its_graph(model):
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


def _check_found(graph: Graph, found: Sequence[Tensor]) -> None:
    """One message for each reason why there is no shared representation."""
    must = (
        "A shared representation must exist: a floating point tensor that "
        "comes from variables and leads to several tasks."
    )
    if not graph.tasks:
        raise ValueError(
            f"{must} Received: a model of which no output depends on variables "
            "that could be trained. Add layers that have some."
        )
    groups = _groups(graph)
    if len(groups) == 1 and found:
        return
    integers = dict.fromkeys(
        call.name
        for call in graph.calls
        if any(tensor in graph.comes_from_variables for tensor in call.inputs)
        and not any(tensor.is_floating for tensor in call.outputs)
    )
    if integers:
        raise ValueError(
            f"{must} Received: a model where no gradient passes "
            f"{list(integers)}, whose outputs are not floating point, so that "
            "what stands before learns from no task that reads it there. Let "
            "the tasks read a floating point tensor, such as a softmax instead "
            "of an argmax."
        )
    if all(len(group) == 1 for group in groups):
        raise ValueError(
            f"{must} Received: a model whose tasks {list(graph.tasks)} have no "
            "variables in common, and so no conflict. Train it as it is, by "
            "`keras.Model.compile` and `fit`: MGDA would make the same steps."
        )
    raise ValueError(
        f"{must} Received: a model whose tasks are of groups that have no "
        f"variables in common: {groups}. Make a model of each group: "
        "`MGDAModel.from_model(keras.Model(model.input, {task: "
        "model.output[task] for task in group}))`."
    )


def _groups(graph: Graph) -> list[list[str]]:
    """Tasks are of one group if they share variables, if need be by others."""
    groups: list[set[str]] = [{task} for task in graph.tasks]
    for readers in graph.reads_variable.values():
        joined = [group for group in groups if group & readers]
        groups = [group for group in groups if not group & readers]
        groups += [union(joined)] if joined else []
    ordered = [[t for t in graph.tasks if t in group] for group in groups]
    return sorted(ordered, key=lambda group: list(graph.tasks).index(group[0]))


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


# Marked models.


def _splice(
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
            name = _name(place.scope[1:], place.node)
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


def _marked_inside(model: keras.Model) -> Callable[[Any], Any]:
    """From a nested model to the same with its marks, and else the identity.

    The one with marks has the same layers. It is no layer of the model, which
    so has the variables and files of the plain one.
    """
    inside: dict[Any, dict[str, None]] = {}
    for node in nodes(model):
        if isinstance(node.operation, SharedRepresentation):
            for name in node.operation.inside:
                for symbol in node.input_tensors:
                    nested = maker(symbol)
                    inside.setdefault(nested, {})[name] = None
    twins = {}
    for nested, names in inside.items():
        if not _is_its_graph(nested):
            raise ValueError(
                "The input of a `SharedRepresentation` with `inside` must be "
                "what a nested functional model returned. Received: the output "
                f"of '{nested.name}', a {type(nested).__name__}. Leave "
                "`inside` out, or call the layer within that model."
            )
        found = _after_layers(Graph(nested), list(names))
        places = [place for of_one in found.values() for place in of_one]
        twin = MarkedFunctional(
            nested.input, _splice(nested, places), name=nested.name
        )
        twin.dtype_policy = nested.dtype_policy
        twins[id(nested)] = twin
    return lambda operation: twins.get(id(operation), operation)
