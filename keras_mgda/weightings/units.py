"""Task gradients in units of their norms or losses, for any weighting.

A weighting that is given the Gram matrix of `g_t / n_t`, with `n_t > 0`, finds
weights `v_t` of these; the direction `sum_t v_t g_t / n_t` is that of the task
weights `w_t = v_t / n_t`. With `n_t = L_t` it weighs the logarithms of the task
losses, whose gradients are `g_t / L_t`.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_mgda.linalg import symmetric_gram
from keras_mgda.weightings.normalized_gram import normalized_gram
from keras_mgda.weightings.weighting import Weighting, check_weighting

Normalization = Literal["none", "l2", "loss", "loss+"]
_NORMALIZATIONS = ("none", "l2", "loss", "loss+")


@keras.saving.register_keras_serializable(package="keras_mgda")
class Normalized(Weighting):
    """Any weighting that looks at the Gram matrix, of normalized gradients.

    ```
    v = weighting(G / (n n')),   w_t = v_t / n_t
    ```

    The direction is the one that the other weighting finds for `g_t / n_t`:
    what is non-conflicting for these is so for the `g_t`. By `"loss"` it is
    the direction for the task losses `log L_t`, and by `"l2"` that for task
    gradients of length one. A task whose gradient is zero keeps it.

    Promises of the other weighting that stay: non-conflicting, permutation-
    equivariant; by `"loss"` also scale-invariant. On the simplex are the `v`,
    not the `w`.

    Args:
        weighting: the other one. If it looks at the task losses, it gets them
            as they are.
        normalization: `n_t`; `"none"`: 1, `"l2"`: `||g_t||`, `"loss"`:
            `|L_t|`, `"loss+"`: `|L_t| ||g_t||`. A loss below zero counts by
            its size: the direction keeps its promises, though there is no
            logarithm that it would be for.

    Raises:
        ValueError: for another normalization, for what is no weighting that
            looks at the Gram matrix, and when called without task losses under
            `"loss"` or `"loss+"`.

    Example:

    >>> import tensorflow as tf
    >>> from keras_mgda import weightings
    >>> of_logs = weightings.Normalized(weightings.UPGrad(), "loss")
    >>> of_logs(tf.constant([[4.0, 0.0], [0.0, 1.0]]), [2.0, 0.5]).numpy()
    array([0.25, 1.  ], dtype=float32)

    References:
        Sener & Koltun, 2018, the released code, which has these for MGDA.
        https://arxiv.org/abs/1810.04650
    """

    def __init__(
        self, weighting: Weighting, normalization: Normalization = "l2"
    ) -> None:
        if not check_weighting(weighting).uses_gram:
            raise ValueError(
                "`weighting` must look at the Gram matrix, or there is nothing "
                f"to normalize. Received: {type(weighting).__name__}. Use one "
                "that does, such as `UPGrad()`."
            )
        self.weighting = weighting
        self.normalization = check_normalization(normalization)
        self._in_losses = normalization in ("loss", "loss+")
        self.uses_losses = self._in_losses or weighting.uses_losses

    @property
    def state(self) -> keras.layers.Layer | None:  # type: ignore[override]
        return self.weighting.state

    @property
    def scale_invariant(self) -> bool:
        in_norms = self.normalization in ("l2", "loss+")
        return self.weighting.scale_invariant and not in_norms

    def build(self, task_names: Sequence[str]) -> None:
        # A copy, for `build` must not change that of another model.
        self.weighting = copy.copy(self.weighting)
        self.weighting.build(task_names)

    def admits(self, task_losses: tf.Tensor) -> tf.Tensor:
        return self.weighting.admits(task_losses)

    def losses_error(self, task_losses: Mapping[str, float]) -> ValueError:
        return self.weighting.losses_error(task_losses)

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        gram = tf.cast(symmetric_gram(gram), tf.float64)
        if self.uses_losses:
            task_losses = self.check_losses(task_losses, gram)
        n = units(gram, task_losses, self.normalization)
        v = self.weighting(gram / n[:, None] / n, task_losses)
        return tf.cast(tf.cast(v, n.dtype) / n, tf.float32)

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.weighting)
        return {"weighting": inner, "normalization": self.normalization}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Normalized":
        inner = keras.saving.deserialize_keras_object(config["weighting"])
        return cls(**{**config, "weighting": inner})


@keras.saving.register_keras_serializable(package="keras_mgda")
class DBMTL(Weighting):
    """Dual balancing: the gradients of the log losses, all of one length.

    ```
    u_t = g_t / L_t,   d = sum_t u_t max_s ||u_s|| / ||u_t||,
    w_t = max_s(n_s / L_s) / n_t,   n_t = ||g_t||
    ```

    the largest norm being their length, as in the paper. What the paper has
    besides is a moving average of each `u_t`, with a rate that decays: as much
    memory as `m` encoders, and no function of the Gram matrix. This is the
    method at the authors' `beta = 0`.

    Scale-invariant; permutation-equivariant. Not non-conflicting, not on the
    simplex, not linear under scaling. The losses must be positive; one of zero,
    as without labels, has no part in it, nor has a gradient of zero, and its
    weight is zero.

    References:
        Lin et al., 2023. Dual-Balancing for Multi-Task Learning, equations 1
        to 3. https://arxiv.org/abs/2308.12029
    """

    uses_losses = True
    positive_losses = True
    scale_invariant = True

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        gram = symmetric_gram(gram)
        L = self.check_losses(task_losses, gram)
        n, _, active = normalized = normalized_gram(gram)
        active &= L != 0
        lengths = tf.where(active, tf.math.divide_no_nan(n, L), 0)
        w = tf.where(active, tf.reduce_max(lengths) / n, 0)
        # Without any loss there is no length to bring the gradients to.
        w = tf.where(tf.reduce_any(active), w, tf.ones_like(w) / w.shape[0])
        is_defined = tf.reduce_all(self.admits(L) & tf.math.is_finite(L))
        return tf.where(is_defined, normalized.task_weights(w), float("nan"))


def units(
    gram: tf.Tensor, task_losses: tf.Tensor | None, normalization: str
) -> tf.Tensor:
    """`n_t`, `[m]`, float64; 1 for a zero gradient.

    Any positive units keep the direction's promise not to conflict. NaN for
    those that are not finite: divided by infinity, a task that diverged would
    look like a zero.
    """
    squared_norms = tf.cast(tf.linalg.diag_part(gram), tf.float64)
    n = tf.ones_like(squared_norms)
    if normalization in ("l2", "loss+"):
        n *= tf.sqrt(squared_norms)
    if normalization in ("loss", "loss+"):
        n *= tf.maximum(tf.abs(task_losses), 1e-12)
    n = tf.where(tf.math.is_finite(n), n, float("nan"))
    return tf.where(squared_norms != 0, n, 1)


def check_normalization(normalization: str) -> Any:
    if normalization not in _NORMALIZATIONS:
        raise ValueError(
            f"`normalization` must be one of {_NORMALIZATIONS}. "
            f"Received: {normalization!r}."
        )
    return normalization
