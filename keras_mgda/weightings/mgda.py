"""Weightings by the min-norm point in a convex hull of task gradients."""

from typing import Any, Literal

import keras
import tensorflow as tf

from keras_mgda.linalg import min_norm_point, symmetric_gram
from keras_mgda.weightings.normalized_gram import normalized_gram
from keras_mgda.weightings.units import (
    Normalization,
    check_normalization,
    units,
)
from keras_mgda.weightings.weighting import GramWeighting, Weighting


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

    Non-conflicting; permutation-equivariant; by `"none"` and with `total=1` on
    the simplex, and by `"none"` and `"loss"` scale-invariant. Not linear under
    scaling.

    Args:
        normalization: `n_t`; `"none"`: 1, `"l2"`: `||g_t||`, `"loss"`:
            `|L_t|`, `"loss+"`: `|L_t| ||g_t||`. With `"loss"` it is the
            min-norm point of the gradients of the log losses. A loss below zero
            counts by its size: the direction keeps its promise.
        total: what the `a_t` sum to: a number, or `"tasks"` for the number of
            tasks. With 1, as in the paper, a step of SGD moves the encoder
            about `1/m` as far as under the plain sum at the same learning rate;
            `"tasks"` brings it back to that scale. Adam divides by the length
            of the gradient, and moves it as far with either.

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
        if total != "tasks" and not (
            isinstance(total, (int, float)) and 0 < total < float("inf")
        ):
            raise ValueError(
                "`total` must be a positive number or 'tasks'. "
                f"Received: {total!r}."
            )
        self.normalization = check_normalization(normalization)
        self.total = total
        self.uses_losses = normalization in ("loss", "loss+")

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        gram = tf.cast(symmetric_gram(gram), tf.float64)
        if self.uses_losses:
            task_losses = self.check_losses(task_losses, gram)
        active = tf.linalg.diag_part(gram) != 0  # NaN, too, so that it shows
        n = units(gram, task_losses, self.normalization)
        point = min_norm_point(gram / n[:, None] / n, active=active)
        total = gram.shape[0] if self.total == "tasks" else self.total
        return tf.cast(total * point.task_weights / n, tf.float32)

    @property
    def scale_invariant(self) -> bool:
        return self.normalization in ("none", "loss")

    def get_config(self) -> dict[str, Any]:
        return {"normalization": self.normalization, "total": self.total}


@keras.saving.register_keras_serializable(package="keras_mgda")
class EDM(GramWeighting):
    """The min-norm point of the unit gradients, at the scale of the raw ones.

    ```
    min_a || sum_t a_t g_t / n_t ||^2   over the simplex,   n_t = ||g_t||;
    w_t = (a_t / n_t) / sum_s (a_s / n_s)
    ```

    The direction makes equal angles with the task gradients that it is made of,
    and no larger ones with the others. Two tasks get `w_t ~ 1 / n_t`.

    Non-conflicting; on the simplex; scale-invariant; permutation-equivariant,
    but for the length of the direction where `a` is not unique. Not linear
    under scaling: its line does not depend on the scales of the task losses at
    all. `MGDA("l2")` is the same but for the sum of its weights.

    References:
        Katrutsa et al., 2020. Follow the bisector: a simple method for multi-
        objective optimization. https://arxiv.org/abs/2007.06937
    """

    scale_invariant = True

    def weigh(self, gram: tf.Tensor) -> tf.Tensor:
        return _edm(gram)


@tf.function(jit_compile=True, autograph=False)
def _edm(gram: tf.Tensor) -> tf.Tensor:
    n, K, active = normalized = normalized_gram(gram)
    w = min_norm_point(K, active=active).task_weights / n
    return normalized.task_weights(w / tf.reduce_sum(w))
