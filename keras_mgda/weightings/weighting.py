"""What all weightings have in common."""

import abc
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# How far a Gram matrix may be from symmetric, in units of `||g_t|| ||g_s||`.
ASYMMETRY = 1e-3


class Weighting(abc.ABC):
    """A map from the Gram matrix of the task gradients to the task weights.

    Attributes:
        uses_gram: whether the weights depend on the Gram matrix. If not, only
            its shape is looked at.
        uses_losses: whether they depend on the task losses.
        state: the layer that holds what the weighting remembers from step to
            step; `None` if it is a function of its arguments alone.
    """

    uses_gram = True
    uses_losses = False
    state: keras.layers.Layer | None = None

    def build(self, task_names: Sequence[str]) -> None:  # noqa: B027
        """Told once, before the first call, which tasks there are.

        Raises:
            ValueError: if this weighting cannot weigh these tasks.
        """

    @abc.abstractmethod
    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Weighs the tasks.

        Args:
            gram: `[m, m]`, the Gram matrix of the task gradients.
            task_losses: `[m]`, for the weightings that look at them.

        Returns:
            The task weights `[m]`, float32. NaN if what they depend on is not
            finite.

        Raises:
            ValueError: if `gram` is not a square matrix of known size, or is
                seen not to be symmetric; if the losses are missing or do not
                fit.
        """

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Weighting":
        return cls(**config)


class GramWeighting(Weighting):
    """A weighting that is a function of the Gram matrix alone.

    Tasks whose gradient is exactly zero, those without labels among them, get
    the weight zero, and the others the weights they would have without them.
    If all are zero, all weights are `1 / m`.
    """

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        return self.weigh(check_gram(gram))

    @abc.abstractmethod
    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        """The task weights `[m]`, float32, of a checked Gram matrix."""


@tf.autograph.experimental.do_not_convert
def check_gram(gram: Any) -> tf.Tensor:
    """`[m, m]`, floating, a constant to a `tf.GradientTape`."""
    gram = tf.convert_to_tensor(gram)
    shape = gram.shape
    if shape.rank != 2 or None in shape or shape[0] != shape[1] or not shape[0]:
        raise ValueError(
            "`gram` must be a square matrix with one row for each task, their "
            f"number known when it is traced. Received: shape {shape}. Set a "
            "lost shape with `tf.ensure_shape`."
        )
    value = tf.get_static_value(gram)  # `None` inside of a graph
    if value is not None and not _nearly_symmetric(value):
        raise ValueError(
            "`gram` must be symmetric: `gram[t, s] = <g_t, g_s>`. "
            f"Received: {value}. Is it `jacobian @ jacobian.T`?"
        )
    gram = gram if gram.dtype.is_floating else tf.cast(gram, tf.float32)
    # Nobody differentiates the weights, and XLA could not reverse the loops.
    return tf.stop_gradient(gram)


def _nearly_symmetric(gram: Any) -> bool:
    gram = np.asarray(gram, np.float64)
    if not np.isfinite(gram).all():
        return True  # has to show in the task weights
    norms = np.sqrt(np.abs(np.diag(gram)))
    allowed = ASYMMETRY * norms[:, None] * norms
    return bool((np.abs(gram - gram.T) <= allowed).all())


@tf.autograph.experimental.do_not_convert
def check_losses(task_losses: Any, gram: tf.Tensor, who: str) -> tf.Tensor:
    """The task losses `[m]`, float64, constants to a `tf.GradientTape`."""
    if task_losses is None:
        raise ValueError(
            f"{who} needs the task losses. Received: task_losses=None. Call "
            "the weighting as `weighting(gram, task_losses)`."
        )
    task_losses = tf.cast(tf.convert_to_tensor(task_losses), tf.float64)
    if task_losses.shape != gram.shape[:1]:
        raise ValueError(
            "There must be one task loss for each row of `gram`. Received: "
            f"shapes {task_losses.shape} and {gram.shape}."
        )
    return tf.stop_gradient(task_losses)


def check_positive(value: float, name: str, or_zero: bool = False) -> float:
    if not (0 < value < float("inf") or (or_zero and value == 0)):
        raise ValueError(
            f"`{name}` must be positive{' or zero' if or_zero else ''}. "
            f"Received: {value!r}."
        )
    return value
