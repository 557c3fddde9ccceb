"""The layer that marks where the tasks part."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_mgda.descent import forward as recording


@keras.saving.register_keras_serializable(package="keras_mgda")
class SharedRepresentation(keras.layers.Layer):
    """Marks `Z`, the representation that an encoder hands to several heads.

    The identity, with masks passed on. In a training step of an `MGDAModel` it
    is the place where the task gradients `dL_t/dZ` are taken: everything
    before it is the encoder, and what a single task reads after it is a head.

    `Z` is all that is marked. What one such layer marks belongs together: the
    tensors that an encoder returns from one call, or from one call for each
    input. Some task may read one of them and not the others. Of what two
    layers mark, each has to serve several tasks.

    Args:
        inside: the names of layers in a nested functional model: where the
            input of this layer is what that model returned, `Z` is their
            output, within the model, and not the input. `"inner/dense"` is a
            layer of the model `inner` that is nested in the nested one. This
            is for an encoder of which the last tensor that all tasks share is
            none of the outputs, in a functional `MGDAModel`.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: a float tensor `[b, ...]`, or a structure of tensors, of which
            one at least is floating point. The others are passed on.

    Returns:
        `inputs`.

    Example:

    >>> import keras, keras_mgda
    >>> inputs = keras.Input((4,))
    >>> z = keras.layers.Dense(3, activation="relu")(inputs)
    >>> z = keras_mgda.SharedRepresentation()(z)
    >>> outputs = {task: keras.layers.Dense(1)(z) for task in ("a", "b")}
    >>> model = keras_mgda.MGDAModel(inputs, outputs)

    References:
        Sener & Koltun, 2018, section 3.3. https://arxiv.org/abs/1810.04650
    """

    def __init__(
        self, inside: str | Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        # The identity in every precision.
        super().__init__(autocast=False, **kwargs)
        if isinstance(inside, str):
            inside = [inside]
        self.inside = tuple(inside or ())
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        step = recording.current()
        if step is None or self.inside:
            return inputs
        marked = step.mark_representations(keras.tree.flatten(inputs), self)
        return keras.tree.pack_sequence_as(inputs, marked)

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.tree.map_structure(_like, inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        inside = {"inside": list(self.inside)} if self.inside else {}
        return {**super().get_config(), **inside}


def _like(tensor: Any) -> Any:
    """A symbolic tensor as this one, which some operation has yet to return."""
    if not isinstance(tensor, keras.KerasTensor):
        return tensor
    ragged = getattr(tensor, "ragged", False)
    return keras.KerasTensor(
        tensor.shape,
        tensor.dtype,
        sparse=tensor.sparse,
        **({"ragged": ragged} if ragged else {}),
    )
