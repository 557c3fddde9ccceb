"""Weightings: from the Gram matrix of the task gradients to task weights.

The encoder moves by `sum_t w_t g_t`. A weighting chooses `w [m]` from the Gram
matrix `G [m, m]`, `G_ts = <g_t, g_s>`, and, where it says so, from the task
losses `L [m]`. All of them run eagerly, in a graph and under XLA.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_mgda.min_norm import min_norm_point

Normalization = Literal["none", "l2", "loss", "loss+"]
_NORMALIZATIONS = ("none", "l2", "loss", "loss+")


class Weighting(abc.ABC):
    """A map from the Gram matrix of the task gradients to the task weights.

    Attributes:
        uses_gram: whether the weights depend on the Gram matrix. If not, only
            its shape is looked at.
        uses_losses: whether they depend on the task losses.
    """

    uses_gram = True
    uses_losses = False

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
            The task weights `[m]`, float32.
        """

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Weighting":
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_mgda")
class MGDA(Weighting):
    """The min-norm point in the convex hull of the task gradients.

    Solves `min_a || sum_t a_t g_t / n_t ||^2` over the simplex `a >= 0`,
    `sum(a) = 1` and returns `w_t = total * a_t / n_t`, so that the direction
    `sum_t w_t g_t` is a positive multiple of the min-norm point itself and has
    no negative inner product with any task gradient that `G` was made of. (The
    authors' released code multiplies the raw gradients by `a_t` instead, which
    loses this.) Tasks whose gradient is exactly zero, those without labels
    among them, leave the simplex and get the weight zero; otherwise they alone
    would make the min-norm point zero and stop the encoder.

    Args:
        normalization: `n_t`; `"none"`: 1, `"l2"`: `||g_t||`, `"loss"`:
            `|L_t|`, `"loss+"`: `|L_t| ||g_t||`.
        total: what the `a_t` sum to: a number, or `"tasks"` for the number of
            tasks. With 1, as in the paper, the encoder's step is about `1/m` of
            that of the plain sum at the same learning rate; `"tasks"` brings
            it back to that scale.

    Raises:
        ValueError: for another normalization or total, and when called without
            task losses under `"loss"` or `"loss+"`.

    Example:

    >>> import tensorflow as tf
    >>> from keras_mgda import weightings
    >>> weightings.MGDA()(tf.constant([[4.0, 0.0], [0.0, 1.0]])).numpy()
    array([0.2, 0.8], dtype=float32)

    References:
        Sener & Koltun, 2018, equation 3. https://arxiv.org/abs/1810.04650
    """

    def __init__(
        self,
        normalization: Normalization = "none",
        total: float | Literal["tasks"] = 1.0,
    ) -> None:
        if normalization not in _NORMALIZATIONS:
            raise ValueError(
                f"`normalization` must be one of {_NORMALIZATIONS}. "
                f"Received: {normalization!r}."
            )
        if total != "tasks" and not (
            isinstance(total, (int, float)) and 0 < total < float("inf")
        ):
            raise ValueError(
                "`total` must be a positive number or 'tasks'. "
                f"Received: {total!r}."
            )
        self.normalization = normalization
        self.total = total
        self.uses_losses = normalization in ("loss", "loss+")

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        gram = tf.convert_to_tensor(gram, tf.float32)
        squared_norms = tf.linalg.diag_part(gram)
        active = squared_norms != 0.0  # True for NaN, which has to be seen
        scale = tf.where(active, self._scale(squared_norms, task_losses), 1.0)
        normalized = gram / scale[:, None] / scale[None, :]
        point = min_norm_point(normalized, active=active)
        total = gram.shape[0] if self.total == "tasks" else self.total
        return total * point.task_weights / scale

    def _scale(
        self, squared_norms: tf.Tensor, task_losses: tf.Tensor | None
    ) -> tf.Tensor:
        """`n_t`. Any positive one keeps the direction's promise."""
        scale = tf.ones_like(squared_norms)
        if self.normalization in ("l2", "loss+"):
            scale *= tf.sqrt(squared_norms)
        if self.uses_losses:
            if task_losses is None:
                raise ValueError(
                    f"`normalization='{self.normalization}'` needs the task "
                    "losses. Received: task_losses=None. Call the weighting "
                    "as `weighting(gram, task_losses)`."
                )
            task_losses = tf.cast(task_losses, tf.float32)
            scale *= tf.maximum(tf.abs(task_losses), 1e-12)
        # Divided by infinity, a task that diverged would look like a zero.
        return tf.where(tf.math.is_finite(scale), scale, float("nan"))

    def get_config(self) -> dict[str, Any]:
        return {"normalization": self.normalization, "total": self.total}


@keras.saving.register_keras_serializable(package="keras_mgda")
class Uniform(Weighting):
    """All task weights 1: the plain sum of the task losses, as stock Keras."""

    uses_gram = False

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        return tf.ones(gram.shape[0], tf.float32)


@keras.saving.register_keras_serializable(package="keras_mgda")
class Fixed(Weighting):
    """Task weights that are given and stay.

    They scale what the encoder gets from each task; the heads keep their plain
    gradients. (Keras's own `loss_weights` scale both.)

    Args:
        task_weights: `{task: number}`, or `m` numbers in the order of the
            tasks. Finite and not negative.

    Raises:
        ValueError: for other numbers, and when they do not fit the tasks.

    Example:

    >>> from keras_mgda import weightings
    >>> weighting = weightings.Fixed({"left": 0.3, "right": 0.7})
    """

    uses_gram = False

    def __init__(
        self, task_weights: Mapping[str, float] | Sequence[float]
    ) -> None:
        self._in_order: list[float] | None = None
        if isinstance(task_weights, Mapping):
            self.task_weights: Any = dict(task_weights)
            values = list(task_weights.values())
        else:
            self.task_weights = values = self._in_order = list(task_weights)
        if not all(0 <= value < float("inf") for value in values):
            raise ValueError(
                "Fixed task weights must be finite and not negative. "
                f"Received: {task_weights}."
            )

    def build(self, task_names: Sequence[str]) -> None:
        if isinstance(self.task_weights, Mapping):
            if set(self.task_weights) != set(task_names):
                raise ValueError(
                    "Fixed task weights must name the tasks. Received: "
                    f"{self.task_weights} for the tasks {list(task_names)}."
                )
            self._in_order = [self.task_weights[task] for task in task_names]
        elif len(self.task_weights) != len(task_names):
            raise ValueError(
                "Fixed task weights must be as many as the tasks. Received: "
                f"{self.task_weights} for the tasks {list(task_names)}."
            )

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        if self._in_order is None or len(self._in_order) != gram.shape[0]:
            raise ValueError(
                "Fixed task weights must fit the Gram matrix. Received: "
                f"{self.task_weights} for shape {tuple(gram.shape)}. "
                "Named ones need `build(task_names)` first."
            )
        return tf.constant(self._in_order, tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {"task_weights": self.task_weights}


_BY_NAME = {"mgda": MGDA, "uniform": Uniform}


def get(identifier: Any) -> Weighting:
    """The weighting that `compile(weighting=identifier)` means.

    Args:
        identifier: a `Weighting`; one of the names `"mgda"`, `"uniform"`; the
            config of a weighting; or fixed task weights, as `Fixed` takes them.

    Raises:
        ValueError: if it is none of these.

    Example:

    >>> from keras_mgda import weightings
    >>> weightings.get("mgda").get_config()
    {'normalization': 'none', 'total': 1.0}
    >>> weightings.get({"left": 0.3, "right": 0.7}).get_config()
    {'task_weights': {'left': 0.3, 'right': 0.7}}
    """
    if isinstance(identifier, Weighting):
        return identifier
    if isinstance(identifier, str) and identifier in _BY_NAME:
        return _BY_NAME[identifier]()
    if isinstance(identifier, Mapping) and "class_name" in identifier:
        weighting = keras.saving.deserialize_keras_object(dict(identifier))
        if isinstance(weighting, Weighting):
            return weighting
    elif isinstance(identifier, (Mapping, list, tuple)) and identifier:
        return Fixed(identifier)
    raise ValueError(
        f"`weighting` must be one of {sorted(_BY_NAME)}, fixed task weights, "
        f"a `Weighting` or its config. Received: {identifier!r}."
    )
