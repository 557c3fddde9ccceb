"""The encoder's layers: what `gradients="last"`, or a list of layers, means."""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_mgda.descent.forward import values
from keras_mgda.descent.task_gradients import TaskGradients

# From the task gradients at `Z` to the indices of the layers' variables.
FindLayers = Callable[[TaskGradients], list[int]]

_logger = logging.getLogger(__name__)


def encoder_variables(gradients: TaskGradients) -> list[int]:
    """The variables of the encoder, in the order in which Keras has them."""
    candidates = gradients.in_encoder()
    found = gradients.forward.reaching(
        [z.encoded for z in gradients.forward.representations],
        values([gradients.variables[i] for i in candidates]),
    )
    return [i for i, inside in zip(candidates, found, strict=True) if inside]


def last_layers(gradients: TaskGradients, count: int) -> list[int]:
    """The variables of the encoder from the `count`th last kernel on.

    Scales and offsets, as of a normalization, are not layers on their own: the
    task gradients of so few variables tell next to nothing of the others.
    """
    variables = gradients.variables
    # Runs of variables, for layers of two submodels may have the same path.
    runs = itertools.groupby(
        encoder_variables(gradients), key=lambda i: _layer_of(variables[i])
    )
    ordered = [list(of_layer) for _, of_layer in runs]
    kernels = [
        place
        for place, of_layer in enumerate(ordered)
        if any(len(variables[i].shape) > 1 for i in of_layer)
    ] or list(range(len(ordered)))
    first = kernels[-count:][0] if kernels else 0
    return [i for of_layer in ordered[first:] for i in of_layer]


def last_two_layers() -> FindLayers:
    """What `gradients="last"` takes. Logs once which layers these are."""
    logged: list[str] = []

    def find(gradients: TaskGradients) -> list[int]:
        chosen = last_layers(gradients, 2)
        if not logged:
            logged.extend(
                dict.fromkeys(_layer_of(gradients.variables[i]) for i in chosen)
            )
            _logger.info("Task gradients: those of %s.", ", ".join(logged))
        return chosen

    return find


def chosen_layers(model: keras.Model, layers: Sequence[Any]) -> FindLayers:
    """What `gradients=[...]` takes: the layers, or those of these names.

    Raises:
        ValueError: from what is returned, if there is no layer of a name, or
            more than one, or it has no trainable variable, or one that is not
            the encoder's.
    """

    def find(gradients: TaskGradients) -> list[int]:
        variables = gradients.variables
        inside = encoder_variables(gradients)
        found: set[int] = set()
        for layer, name in zip(layers, layer_names(layers), strict=True):
            own = set(map(id, _variables_of(model, layer)))
            chosen = [i for i, v in enumerate(variables) if id(v) in own]
            if not chosen or not set(chosen) <= set(inside):
                names = dict.fromkeys(_layer_of(variables[i]) for i in inside)
                why = "is in a head" if chosen else "has none"
                if not own:
                    why += ", or is no layer of the model"
                elif not chosen:
                    why = "is a layer of another model"
                raise ValueError(
                    "`gradients` must name layers of the encoder that have "
                    f"trainable variables. Received: {name!r}, which {why}. "
                    f"The encoder's are {list(names)}."
                )
            found.update(chosen)
        return sorted(found)

    return find


def layer_names(gradients: Any) -> Any:
    """The same without layers, which a configuration cannot hold."""
    if isinstance(gradients, str):
        return gradients
    return [getattr(layer, "name", layer) for layer in gradients]


def _variables_of(model: keras.Model, layer: Any) -> list[keras.Variable]:
    """The trainable variables of a layer, or of the one with this name."""
    if isinstance(layer, keras.layers.Layer):
        return layer.trainable_variables
    for of_model in model.layers:
        if of_model.name == layer:
            return of_model.trainable_variables
    # One further inside. Submodels may hold layers of the same path.
    found = [v for v in model.trainable_variables if layer in v.path.split("/")]
    if len({v.path for v in found}) < len(found):
        raise ValueError(
            "A name in `gradients` must be that of one layer. Received: "
            f"{layer!r}, of which the model holds several. Pass the layer "
            "itself, or give it another name."
        )
    return found


def _layer_of(variable: keras.Variable) -> str:
    """The path of the layer that holds a variable."""
    return str(variable.path.rpartition("/")[0])
