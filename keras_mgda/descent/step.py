"""One training step: from its recording to what every variable moves along."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_mgda.descent import encoder_products as encoder
from keras_mgda.descent.directions import (
    Direction,
    Step,
    along_layers,
    along_parameters,
    along_representation,
)
from keras_mgda.descent.forward import Recording
from keras_mgda.descent.kept_weights import Reuse
from keras_mgda.descent.task_gradients import add, of_total, through_heads
from keras_mgda.descent.verified import along_verified, look_at
from keras_mgda.distribution.replicas import replica_shares, sum_over_replicas
from keras_mgda.weightings import Weighting

Gradients = (
    Literal["representation", "parameters", "last", "verified"] | Sequence[Any]
)
Mode = Callable[[Step], Direction]


def direction_of_step(
    recording: Recording,
    variables: Sequence[keras.Variable],
    total_loss: tf.Tensor,
    *,
    loss_scale: tf.Tensor,
    weighting: Weighting,
    mode: Mode,
    verify: bool = False,
    reuse: Reuse | None = None,
) -> Direction:
    """What the variables move along in one training step.

    With labels counted, the loss of a task that has `N` on this replica and
    `N'` on all of the `r` replicas weighs `r N / N'` here, so that the sum over
    replicas is the mean over all labelled examples.

    Args:
        recording: of the forward pass.
        variables: the trainable variables of the model.
        total_loss: `[]`, what `compute_loss` returned: the task losses times
            their loss weights, and what belongs to no task.
        loss_scale: `[]`, what the gradients are to be multiplied by. The
            weighting sees them without.
        weighting: chooses the task weights.
        mode: which task gradients it sees: from `mode`.
        verify: whether to look at all tasks' derivatives along the direction.
        reuse: keeps task weights for several steps.
    """
    seeds, remainder = of_total(recording, variables, total_loss, loss_scale)
    if recording.num_labels:
        shares = replica_shares(list(recording.num_labels.values()))
        seeds = [
            [seed * tf.cast(share, seed.dtype) for seed in of_task]
            for of_task, share in zip(seeds, tf.unstack(shares), strict=True)
        ]
    task_losses = tf.stack(
        [
            tf.add_n(
                [
                    tf.cast(loss, tf.float32) * tf.cast(seed, tf.float32)
                    for loss, seed in zip(losses, of_task, strict=True)
                ]
            )
            / loss_scale
            for losses, of_task in zip(
                recording.task_losses.values(), seeds, strict=True
            )
        ]
    )
    if weighting.uses_losses:
        task_losses = sum_over_replicas(task_losses)

    def weigh(gram: tf.Tensor) -> tf.Tensor:
        return weighting(gram / loss_scale**2, task_losses)

    at_cut, direct = through_heads(recording, variables, seeds)
    step = Step(recording, variables, at_cut, direct, weigh)
    # Weights that do not look at the gradients need none of the encoder's.
    if not weighting.uses_gram:
        mode = along_representation
    found = mode(step) if reuse is None else reuse.along(mode, step)
    if verify and found.verification is None:
        found = look_at(step, found)
    # What belongs to no task enters once, outside the simplex.
    return found._replace(gradients=list(map(add, found.gradients, remainder)))


def mode(
    gradients: Gradients,
    model: keras.Model,
    weighting: Weighting,
    max_corrections: int,
) -> Mode:
    """The function that makes the direction, for what `compile` was given.

    Raises:
        ValueError: if `gradients` is none of the names, nor a list of layers;
            if the weighting cannot be asked again in the same step.
    """
    modes: dict[str, Mode] = {
        "representation": along_representation,
        "parameters": along_parameters,
        "last": functools.partial(along_layers, find=_LastLayers(2)),
        "verified": functools.partial(
            along_verified, max_corrections=max_corrections
        ),
    }
    if gradients == "verified":
        _check_verified(weighting, max_corrections)
    if isinstance(gradients, str) and gradients in modes:
        return modes[gradients]
    if isinstance(gradients, (list, tuple)) and gradients:
        find = functools.partial(_chosen_layers, model, list(gradients))
        return functools.partial(along_layers, find=find)
    raise ValueError(
        f"`gradients` must be one of {sorted(modes)}, or a list of layers of "
        f"the encoder. Received: {gradients!r}."
    )


def _check_verified(weighting: Weighting, max_corrections: int) -> None:
    if not weighting.uses_gram or weighting.remembers:
        raise ValueError(
            "`gradients='verified'` must have a weighting that chooses by the "
            "Gram matrix and keeps no state: a correction weighs again. "
            f"Received: {type(weighting).__name__}. Use another, such as "
            "'mgda', or `verify=True` to look at what this one does."
        )
    if not isinstance(max_corrections, int) or max_corrections < 0:
        raise ValueError(
            "`max_corrections` must be a whole number, not negative. "
            f"Received: {max_corrections!r}."
        )


def layer_names(gradients: Gradients) -> Any:
    """The same without layers, which a configuration cannot hold."""
    if isinstance(gradients, str):
        return gradients
    return [getattr(layer, "name", layer) for layer in gradients]


class _LastLayers:
    """Finds the last layers of an encoder, and says once which these are."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._said = False

    def __call__(self, step: Step) -> list[int]:
        inside = encoder.indices(step.recording, step.variables)
        chosen = encoder.last_layers(step.variables, inside, self._count)
        if not self._said:
            self._said = True
            layers = dict.fromkeys(
                encoder.layer_of(step.variables[i]) for i in chosen
            )
            print(f"Task gradients: those of {', '.join(map(repr, layers))}.")
        return chosen


def _chosen_layers(
    model: keras.Model, layers: Sequence[Any], step: Step
) -> list[int]:
    """The trainable variables of these layers, or names, of the encoder.

    Raises:
        ValueError: if there is no layer of a name, or more than one, or it has
            no trainable variable, or one that is not the encoder's.
    """
    inside = encoder.indices(step.recording, step.variables)
    found: set[int] = set()
    for layer, name in zip(layers, layer_names(layers), strict=True):
        own = set(map(id, _variables_of(model, layer)))
        chosen = [i for i, v in enumerate(step.variables) if id(v) in own]
        if not chosen or not set(chosen) <= set(inside):
            names = dict.fromkeys(
                encoder.layer_of(step.variables[i]) for i in inside
            )
            raise ValueError(
                "`gradients` must name layers of the encoder that have "
                f"trainable variables. Received: {name!r}, which "
                f"{'is in a head' if chosen else 'has none'}. "
                f"The encoder's are {list(names)}."
            )
        found.update(chosen)
    return sorted(found)


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
