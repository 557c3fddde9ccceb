"""The layer that marks where the tasks part."""

from typing import Any

import keras

from keras_mgda.descent.forward import mark_representation


@keras.saving.register_keras_serializable(package="keras_mgda")
class SharedRepresentation(keras.layers.Layer):
    """Marks `Z`, the representation that an encoder hands to several heads.

    The identity, with masks passed on. In a training step of an `MGDAModel` it
    is the place where the task gradients `dL_t/dZ` are taken: everything
    before it is the encoder, and what a single task reads after it is a head.
    A model may hold several: `Z` is then the set of all marked tensors.

    Args:
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: a float tensor `[b, ...]`, or a structure of them.

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

    def __init__(self, **kwargs: Any) -> None:
        # The identity in every precision.
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return keras.tree.map_structure(mark_representation, inputs)

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.tree.map_structure(keras.ops.copy, inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape
