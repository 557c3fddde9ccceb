"""What all weightings have in common: how a step asks one, what it promises."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.linalg import symmetric_gram


class Weighting(abc.ABC):
    """A map from the Gram matrix of the task gradients to the task weights.

    Attributes:
        uses_gram: whether the weights depend on the Gram matrix. If not, only
            its shape is looked at.
        uses_losses: whether they depend on the task losses.
        positive_losses: whether the task losses have to be positive.
        state: the layer that holds what the weighting keeps between steps;
            `None` if it is a function of its arguments alone.
    """

    uses_gram = True
    uses_losses = False
    positive_losses = False
    state: keras.layers.Layer | None = None

    @property
    def scale_invariant(self) -> bool:
        """Whether `c G` gives the same task weights as `G`, for any `c > 0`.

        What is not must see the gradients without a loss scale. Of a weighting
        that looks at the Gram matrix nothing is taken for granted: it says so
        itself, by `scale_invariant = True`.
        """
        return not self.uses_gram

    @property
    def remembers(self) -> bool:
        """Whether earlier calls have a part in the weights of this one."""
        return self.state is not None

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
            finite, or if `admits` is not true of all of the task losses.

        Raises:
            ValueError: if `gram` is not a square matrix of known size, or is
                seen not to be symmetric; if the losses are missing, do not
                fit, or are seen to be ones that `admits` is not true of. What
                is in a graph is not seen.
        """

    def admits(self, task_losses: tf.Tensor) -> tf.Tensor:
        """Whether the weighting is defined for these task losses.

        A graph cannot raise under XLA: the task weights are NaN there. Whoever
        runs a graph returns this beside them, leaves the variables as they are
        where it is not true of all, and raises `losses_error`.

        Args:
            task_losses: `[m]`. Of NaN, and of zero, which is the loss of a task
                without labels, the answer is yes.

        Returns:
            `[m]`, bool.
        """
        if not self.positive_losses:
            return tf.ones_like(task_losses, tf.bool)
        return ~(task_losses < 0)

    def losses_error(self, task_losses: Mapping[str, float]) -> ValueError:
        """The error to raise where `admits` is not true of all task losses."""
        return ValueError(
            f"`{type(self).__name__}` must have positive task losses. "
            f"Received: {dict(task_losses)}. Use losses that are bounded below "
            "by zero, `FAMO(min_losses=...)`, or a weighting that takes any "
            "loss, such as 'mgda'."
        )

    @tf.autograph.experimental.do_not_convert
    def check_losses(self, task_losses: Any, gram: tf.Tensor) -> tf.Tensor:
        """The task losses `[m]`, float64, constants to a `tf.GradientTape`.

        Raises:
            ValueError: as in `__call__`.
        """
        if task_losses is None:
            raise ValueError(
                f"{type(self).__name__} needs the task losses. Received: "
                "task_losses=None. Call the weighting as "
                "`weighting(gram, task_losses)`."
            )
        task_losses = tf.cast(tf.convert_to_tensor(task_losses), tf.float64)
        if task_losses.shape != gram.shape[:1]:
            raise ValueError(
                "There must be one task loss for each row of `gram`. Received: "
                f"shapes {task_losses.shape} and {gram.shape}."
            )
        values = tf.get_static_value(task_losses)  # `None` inside of a graph
        if (
            values is not None
            and np.isfinite(values).all()
            and not np.all(self.admits(task_losses))
        ):
            names = map(str, range(len(values)))
            raise self.losses_error(
                dict(zip(names, values.tolist(), strict=True))
            )
        return tf.stop_gradient(task_losses)

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
        return self.weigh(symmetric_gram(gram))

    @abc.abstractmethod
    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        """The task weights `[m]`, float32, of a checked Gram matrix."""


def check_positive(value: float, name: str, or_zero: bool = False) -> float:
    if not (0 < value < float("inf") or (or_zero and value == 0)):
        raise ValueError(
            f"`{name}` must be positive{' or zero' if or_zero else ''}. "
            f"Received: {value!r}."
        )
    return value


def check_weighting(weighting: Any) -> Weighting:
    if not isinstance(weighting, Weighting):
        raise ValueError(
            "`weighting` must be a `Weighting`. Received: "
            f"{weighting!r}. Pass `weightings.get(...)` of a name."
        )
    return weighting


def check_fraction(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be from 0 to 1. Received: {value!r}.")
    return value
