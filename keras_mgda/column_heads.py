"""Where the columns of an output come from: its last layer, a `Dense(m)`."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.descent.forward import ColumnHead, ForwardPass
from keras_mgda.functional.graph import Call, Graph
from keras_mgda.internals import Functional
from keras_mgda.layers import SharedRepresentation


class LastLayer(NamedTuple):
    """The layer that makes the columns of an output.

    Attributes:
        layer: the layer.
        of_z: the mark that it reads; `None` if other layers stand between.
    """

    layer: keras.layers.Dense
    of_z: SharedRepresentation | None


def find_last_layers(
    model: keras.Model, num_columns: Mapping[str, int]
) -> dict[str, LastLayer]:
    """`{output: its last layer}` of the outputs whose columns are tasks.

    Args:
        model: a functional model.
        num_columns: `{output: m}`.

    Raises:
        ValueError: if an output does not end in a layer of which each column
            of the output has a column of its own.
    """
    if not num_columns:
        return {}
    if not isinstance(model, Functional):
        raise ValueError(
            "With `PerColumn`, the model must be functional: its graph tells "
            "which layer makes the columns. Received: a "
            f"{type(model).__name__} with a `call` of its own. Make it by "
            "`MGDAModel(inputs, outputs)`, or give each task an output."
        )
    graph = Graph(model)
    makers: dict[Any, Any] = {
        tensor: call for call in graph.calls for tensor in call.outputs
    }
    found = {}
    for output, m in num_columns.items():
        call: Any = makers.get(graph.tasks.get(output))
        layers = _layers(call)
        while layers and _is_elementwise_layer(layers[-1]):
            layers.pop()
            if not layers:
                call = makers.get(call.inputs[0])
                layers = _layers(call)
        last = layers.pop() if layers else None
        _check_last(output, last, graph, m)
        mark = None if layers else _mark_of(makers.get(call.inputs[0]))
        found[output] = LastLayer(last, mark)
    return found


def _layers(call: Call | None) -> list[Any]:
    """The layer that is called, or those of a `Sequential`, in order."""

    def flat(layer: Any) -> list[Any]:
        if not isinstance(layer, keras.Sequential):
            return [layer]
        return [one for part in layer.layers for one in flat(part)]

    return [] if call is None else flat(call.operation)


def _check_last(
    output: str, layer: Any, graph: Graph, num_columns: int
) -> None:
    if (
        not isinstance(layer, keras.layers.Dense)
        or type(layer).call is not keras.layers.Dense.call
        or getattr(layer, "lora_enabled", False)
        or getattr(layer, "quantization_mode", None)
        or layer.units != num_columns
    ):
        name = getattr(layer, "name", None)
        raise ValueError(
            "An output whose columns are tasks must end in a "
            f"`Dense({num_columns})`, of which each task has a column, with an "
            "activation or `Activation` layers behind it. Received: the "
            f"output '{output}', which ends in '{name}', a "
            f"{type(layer).__name__}. Other layers may stand before the "
            "`Dense`."
        )
    if not _is_elementwise(layer.activation):
        raise ValueError(
            "The activation of an output whose columns are tasks must be one "
            "of single values, such as 'sigmoid'. Received: "
            f"{layer.activation!r} of '{layer.name}', which mixes columns. "
            "Classes that exclude each other are one task, with an output of "
            "its own."
        )
    if sum(layer in _layers(call) for call in graph.calls) > 1:
        raise ValueError(
            "The last layer of an output whose columns are tasks must be "
            f"called once. Received: '{layer.name}' of output '{output}', "
            "which is called more often. Give each output a layer of its own."
        )


def _mark_of(call: Call | None) -> SharedRepresentation | None:
    mark = call and call.operation
    if isinstance(mark, SharedRepresentation) and not mark.inside:
        return mark
    return None


def _is_elementwise_layer(operation: Any) -> bool:
    return type(operation) is keras.layers.Activation and _is_elementwise(
        operation.activation
    )


def _is_elementwise(activation: Any) -> bool:
    """Whether a value depends on its own logit alone, by the derivatives."""
    if activation is None:
        return True
    x = tf.constant([[-0.7, 0.2, 0.9], [0.4, -0.1, 0.6]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.convert_to_tensor(activation(x))
    if y.shape != x.shape:
        return False
    jacobian = np.reshape(tape.jacobian(y, x), [6, 6])
    return not (jacobian - np.diag(np.diag(jacobian))).any()


@contextlib.contextmanager
def noted_logits(
    forward: ForwardPass, last_layers: Mapping[str, LastLayer]
) -> Iterator[None]:
    """Notes in the forward pass what these layers compute in this block.

    A layer hands its logits to its activation, which is the place to see them.
    """
    activations = {o: last.layer.activation for o, last in last_layers.items()}

    def noting(output: str, last: LastLayer) -> Any:
        layer, activation = last.layer, activations[output]
        variables = [v for v in (layer.kernel, layer.bias) if v is not None]

        def note(logits: tf.Tensor) -> Any:
            # Read here, once, as a tensor: within the layer's own call, which
            # decides on the precision. A `tf.Variable` that is handed on is
            # read anew by each product, and in a graph, now and then, after
            # the optimizer has moved it.
            kernel = tf.convert_to_tensor(layer.kernel.value)
            head = ColumnHead(logits, kernel, variables, last.of_z)
            forward.mark_logits(output, head)
            return activation(logits)

        return note

    try:
        for output, last in last_layers.items():
            last.layer.activation = noting(output, last)
        yield
    finally:
        for output, last in last_layers.items():
            last.layer.activation = activations[output]
