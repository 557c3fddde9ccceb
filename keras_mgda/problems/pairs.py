"""The loss of pairs of texts that mean the same."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_mgda")
class PairLoss(keras.losses.Loss):
    """Finds each text's partner among the partners in the batch.

    With `u_i` and `v_i` the embeddings of the two texts of pair `i`, of length
    one, and `s` the temperature,

        l_i = -log( exp(u_i'v_i / s) / sum_j exp(u_i'v_j / s) ).

    The sum runs over the pairs of the batch only: a row without a pair, where
    `y_true` is 0, is no partner. Under several replicas it runs over those of
    one.

    Args:
        temperature: `s`.
        name: of the loss.
        **kwargs: those of `keras.losses.Loss`.

    Call arguments:
        y_true: `[b, 1]` or `[b]`, 1 where there is a pair, else 0.
        y_pred: `[b, 2 d]`, `u` and `v` one after the other.

    Example:

    >>> import keras
    >>> from keras_mgda import problems
    >>> u_and_v = keras.ops.convert_to_tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    >>> loss = problems.PairLoss(temperature=1.0)
    >>> round(float(loss([1.0, 1.0], u_and_v)), 4)  # log(1 + exp(-1))
    0.3133

    References:
        van den Oord et al., 2018. Equation 4. https://arxiv.org/abs/1807.03748
        Gao et al., 2021. SimCSE. Equation 1. https://arxiv.org/abs/2104.08821
    """

    def __init__(
        self, temperature: float = 0.05, name: str = "pair_loss", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.temperature = temperature

    def call(self, y_true: Any, y_pred: Any) -> Any:
        u, v = (
            tf.math.l2_normalize(half, axis=-1)
            for half in tf.split(tf.cast(y_pred, tf.float32), 2, axis=-1)
        )
        is_pair = tf.reshape(y_true, [-1]) > 0
        similarity = tf.matmul(u, v, transpose_b=True) / self.temperature
        similarity = tf.where(is_pair[None, :], similarity, -1e9)
        # A row without a pair has no loss, and no gradient.
        own = tf.where(is_pair, tf.linalg.diag_part(similarity), 0.0)
        among = tf.where(is_pair, tf.reduce_logsumexp(similarity, axis=1), 0.0)
        return among - own

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}
