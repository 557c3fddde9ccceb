"""A functional model with marks, and the files and layers of the plain one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_mgda.descent.forward import current_forward_pass
from keras_mgda.functional.graph import Graph, is_its_graph
from keras_mgda.functional.marks import after_layers, spliced
from keras_mgda.internals import (
    ExchangingFunctional,
    Functional,
    maker,
    nodes,
)
from keras_mgda.layers import SharedRepresentation


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
        return self.in_training(operation)

    def in_training(self, operation: Any) -> Any:
        return self._with_marks_inside(operation)


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
        if not is_its_graph(nested):
            raise ValueError(
                "The input of a `SharedRepresentation` with `inside` must be "
                "what a nested functional model returned. Received: the output "
                f"of '{nested.name}', a {type(nested).__name__}. Leave "
                "`inside` out, or call the layer within that model."
            )
        found = after_layers(Graph(nested), list(names))
        places = [place for of_one in found.values() for place in of_one]
        twin = MarkedFunctional(
            nested.input, spliced(nested, places), name=nested.name
        )
        twin.dtype_policy = nested.dtype_policy
        twins[id(nested)] = twin
    return lambda operation: twins.get(id(operation), operation)
