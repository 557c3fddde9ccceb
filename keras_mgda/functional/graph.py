"""The calls of a functional model, the tensors, and the tasks that read them.

Whatever is inside of nested functional models is seen as part of the graph.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras

from keras_mgda.internals import (
    ExchangingFunctional,
    Functional,
    nodes,
    variables_unfrozen,
)
from keras_mgda.layers import SharedRepresentation
from keras_mgda.training import tasks


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
        return name_of(self.scope, self.node)


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
        return name_of(self.scope, self.node)

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
                inner = node.operation
                if isinstance(model, ExchangingFunctional):
                    inner = model.in_training(inner)
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

    def readers(self, tensor: Tensor) -> list[Call]:
        """The calls that read a tensor for some task."""
        return [call for call in tensor.readers if self.reads_call[call]]

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


def _inputs_of_nested(node: Any) -> list[Any] | None:
    """What a nested model is called on, in the order of its own inputs.

    `None` if this is no call of a functional model whose graph is all of it.
    """
    model, args = node.operation, node.arguments.args
    if not is_its_graph(model) or len(args) != 1:
        return None
    (given,) = args
    if isinstance(given, Mapping) and not isinstance(model.input, Mapping):
        given = [given.get(symbol.name) for symbol in model.inputs]
    flat = keras.tree.flatten(given)
    return flat if len(flat) == len(model.inputs) else None


def is_its_graph(model: Any) -> bool:
    return isinstance(model, Functional) and type(model).call is Functional.call


def name_of(scope: Iterable[Any], node: Any) -> str:
    return "/".join(n.operation.name for n in (*scope, node))


def union(sets: Iterable[Iterable[str]]) -> set[str]:
    return set().union(*sets)
