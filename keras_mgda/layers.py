"""The layers of this package: where tasks part, in any Keras model."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda import weightings
from keras_mgda.descent.forward import mark_representation
from keras_mgda.descent.task_gradients import combine, dense
from keras_mgda.distribution.replicas import sum_over_replicas
from keras_mgda.internals import is_no_gradient
from keras_mgda.linalg.gram import jacobian_gram


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
        if self.inside:
            return inputs
        marked = mark_representation(keras.tree.flatten(inputs), self)
        return keras.tree.pack_sequence_as(inputs, marked)

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.tree.map_structure(_like, inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        inside = {"inside": list(self.inside)} if self.inside else {}
        return {**super().get_config(), **inside}


@keras.saving.register_keras_serializable(package="keras_mgda")
class GradientFork(keras.layers.Layer):
    """Hands each head its copy of `Z`, and weighs what comes back from them.

    Forward it is the identity, `m` times. Backward, with `g_t = dL/dZ_t` the
    gradient at the copy of head `t`, it gives the encoder

        sum_t w_t g_t   instead of the sum of the g_t,

    where the weighting chooses `w` from their Gram matrix. So any training
    loop that differentiates the sum of the task losses makes the step of
    `MGDAModel` with `gradients="representation"`: the `fit` of a plain
    `keras.Model`, a hand-written one, or that of somebody else's model.

    Each head has to read its own copy. What comes around the fork, as skip
    connections do, is summed as usual and not weighed. Under a loss scale, as
    of float16, the weighting sees the scaled gradients, and so has to be
    scale-invariant there.

    Args:
        num_tasks: `m`, how many copies to hand out.
        weighting: anything that `keras_mgda.weightings.get` takes and that
            chooses by the Gram matrix alone, without state.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: `[b, ...]`, the shared representation.

    Returns:
        A list of `m` tensors like `inputs`.

    Raises:
        ValueError: for fewer than one task; for a weighting that looks at the
            task losses or keeps state; in float16, for one that is not
            scale-invariant.

    Example:

    >>> import keras, keras_mgda
    >>> inputs = keras.Input((4,))
    >>> z = keras.layers.Dense(3, activation="relu")(inputs)
    >>> z_a, z_b = keras_mgda.GradientFork(2)(z)
    >>> outputs = {"a": keras.layers.Dense(1)(z_a)}
    >>> outputs["b"] = keras.layers.Dense(1)(z_b)
    >>> model = keras.Model(inputs, outputs)
    >>> model.compile("sgd", loss={"a": "mse", "b": "mae"})

    References:
        Sener & Koltun, 2018, section 3.3. https://arxiv.org/abs/1810.04650
    """

    def __init__(
        self, num_tasks: int, weighting: Any = "mgda", **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(
                "`num_tasks` must be a positive integer. "
                f"Received: {num_tasks!r}."
            )
        weighting = weightings.get(weighting)
        if weighting.uses_losses or weighting.remembers:
            raise ValueError(
                "The weighting of a `GradientFork` must choose by the Gram "
                "matrix alone: a backward pass knows no losses, and keeps no "
                f"state. Received: {type(weighting).__name__} with "
                f"{weighting.get_config()}. Use `MGDAModel` for this one."
            )
        weighting.build([str(task) for task in range(num_tasks)])
        self.num_tasks = num_tasks
        self.weighting = weighting
        self.supports_masking = True

    def call(self, inputs: Any) -> list[Any]:
        if inputs.dtype == tf.float16 and not self.weighting.scale_invariant:
            raise ValueError(
                "In float16, a `GradientFork` must have a weighting that is "
                "scale-invariant: a backward pass does not know the loss scale "
                "by which its gradients are multiplied. Received: "
                f"{type(self.weighting).__name__} with "
                f"{self.weighting.get_config()}. Use 'mixed_bfloat16', "
                "`MGDAModel`, which divides by the scale, or another weighting."
            )

        # Whether in training or not: who asks for gradients shall get these.
        @tf.custom_gradient
        def fork(z: tf.Tensor) -> tuple[Any, Callable[..., tf.Tensor]]:
            copies = tuple(tf.identity(z) for _ in range(self.num_tasks))
            return copies, self._weighted_sum

        return list(fork(inputs))

    def _weighted_sum(self, *gradients: Any) -> tf.Tensor:
        unread = [k for k, g in enumerate(gradients) if is_no_gradient(g)]
        if unread and len(unread) < self.num_tasks:
            raise ValueError(
                "Each copy of a `GradientFork` must be read by one head, or "
                "its weights are those of other tasks. Received: copies "
                f"{unread} of {self.num_tasks} that no loss depends on. Hand "
                "each head its own copy, and leave out those of outputs "
                "without a loss."
            )
        stacked = tf.stack([dense(gradient) for gradient in gradients])
        gram = sum_over_replicas(jacobian_gram(stacked))
        return combine(self.weighting(gram), stacked)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> list[Any]:
        return [previous_mask] * self.num_tasks

    def compute_output_shape(self, input_shape: Any) -> list[Any]:
        return [input_shape] * self.num_tasks

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "weighting": keras.saving.serialize_keras_object(self.weighting),
        }


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
