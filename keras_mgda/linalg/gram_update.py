"""What products with a Gram matrix tell of it.

`G` is the true Gram matrix of the task gradients, of which only products
`p = G w` are known; `A` is a guess at it. All in float64.
"""

import tensorflow as tf


def cosines(
    gram: tf.Tensor, task_weights: tf.Tensor, derivatives: tf.Tensor
) -> tf.Tensor:
    """`p_t / (||g_t|| ||d||)`.

    One for a task without gradient, such as one without labels: no direction
    conflicts with it. Zero for the others if the direction is zero.

    Args:
        gram: `[m, m]`, float64, that knows `||g_t||`.
        task_weights: `[m]`, float64, `w`.
        derivatives: `[m]`, float64, `p = G w`.
    """
    squared_norm = tf.tensordot(task_weights, derivatives, 1)
    norm = tf.sqrt(tf.maximum(squared_norm, 0.0))  # rounded to less at zero
    # No smaller than what the derivative tells of it.
    least = tf.math.divide_no_nan(tf.abs(derivatives), norm)
    norms = tf.maximum(tf.sqrt(tf.linalg.diag_part(gram)), least)
    of_tasks = _over(derivatives, norms * norm)
    return tf.where(norms == 0.0, tf.ones_like(of_tasks), of_tasks)


def scaled(
    gram: tf.Tensor, task_weights: tf.Tensor, derivatives: tf.Tensor
) -> tf.Tensor:
    """A multiple of `gram` that gives the direction its true norm."""
    seen = tf.tensordot(task_weights, tf.linalg.matvec(gram, task_weights), 1)
    true = tf.tensordot(task_weights, derivatives, 1)
    return gram * _over(true, seen)


def corrected(
    gram: tf.Tensor, task_weights: tf.Tensor, derivatives: tf.Tensor
) -> tf.Tensor:
    """The Gram matrix closest to `gram` that knows the product `G w = p`.

    By the update of Broyden, Fletcher, Goldfarb and Shanno: with `A = gram`,

        A - (A w)(A w)' / (w' A w) + p p' / (w' p),

    which is positive semidefinite if `A` is.
    """
    seen = tf.linalg.matvec(gram, task_weights)
    w_seen = tf.tensordot(task_weights, seen, 1)
    w_true = tf.tensordot(task_weights, derivatives, 1)
    return (
        gram
        - _over(seen[:, None] * seen, w_seen)
        + _over(derivatives[:, None] * derivatives, w_true)
    )


def smallest(of_tasks: tf.Tensor) -> tf.Tensor:
    """The minimum, which is NaN if one of them is."""
    return tf.reduce_min(of_tasks) + 0.0 * tf.reduce_sum(of_tasks)


def conjugate(
    task_weights: tf.Tensor,
    derivatives: tf.Tensor,
    conjugates: tf.Tensor,
    products: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The part of `w` that was not tried before, `u`, and `G u`.

    A correction by it leaves what was learnt from earlier products as it is:
    after `m` independent ones the Gram matrix is the true one.

    Returns:
        `u` and `G u`, `[m]`; zero if `w` had nothing new.
    """
    seen = tf.linalg.matvec(products, task_weights)
    share = _over(seen, tf.reduce_sum(conjugates * products, axis=1))
    u = task_weights - tf.linalg.matvec(conjugates, share, transpose_a=True)
    Gu = derivatives - tf.linalg.matvec(products, share, transpose_a=True)
    # Less is the rounding of the products, which are made in float32.
    least = 1e-6 * tf.tensordot(task_weights, derivatives, 1)
    is_new = tf.cast(tf.tensordot(u, Gu, 1) > least, tf.float64)
    return is_new * u, is_new * Gu


def _over(dividend: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """Zero if divided by zero, where both are; NaN stays NaN."""
    is_zero = divisor == 0.0
    quotient = dividend / tf.where(is_zero, tf.ones_like(divisor), divisor)
    return tf.where(is_zero, tf.zeros_like(quotient), quotient)
