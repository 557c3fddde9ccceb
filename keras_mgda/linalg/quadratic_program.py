"""Quadratic programs in non-negative unknowns, by pivoting.

They are small, `m` unknowns for `m` tasks, and solved in float64 within one
program for XLA. Never write `M[k]` with a traced `k` here: TensorFlow would
take `M` for a compile-time constant and compile anew for every matrix.
`tf.gather` and comparisons with `tf.range` are free of that.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

# Some 50 float64 ulps of the diagonal of about one that the pivots start from.
_SMALLEST_PIVOT = 1e-14


def non_negative_minimum(
    M: tf.Tensor,
    c: tf.Tensor,
    enters: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    max_steps: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Lawson & Hanson's method for a non-negative quadratic program.

    Solves `min_u u'Mu / 2 - c'u` subject to `u >= 0`. At the solution the
    residuals `r = c - Mu` are zero on the support of `u` and nowhere positive.

    The unknown `t` of largest residual enters: `u_t` grows, and on the support
    `u` follows so that the residuals there stay zero. Either `r_t` comes to
    zero first and `t` joins the support, or some `u_k` does and `k` leaves,
    and `t` goes on. `u` is feasible throughout, and every step improves it.

    The tableau is `[M | c]`, swept (Gauss-Jordan) on the support. Its last
    column has `u` on the support and `r` elsewhere, each for `u_t = 0`; its
    column `t` has the rates at which these and `r_t` fall as `u_t` grows.

    Args:
        M: `[m, m]`, float64, symmetric, of diagonal near one; the program must
            be bounded. Positive semidefinite, but for rounding.
        c: `[m]`, float64.
        enters: from `r [m]` and `u [m]` to which unknowns `[m]` outside of the
            support may enter, bool. None: `u` is accepted.
        max_steps: limit on the pivots, `O(m^2)` each; about `m` are usual.

    Returns:
        `u` and the number of pivots, int32.

    References:
        Lawson & Hanson, 1974. Solving Least Squares Problems, chapter 23.
    """
    unknowns = tf.range(M.shape[0])

    def next_to_enter(r: Any, support: Any, u: Any) -> tf.Tensor:
        may_enter = ~support & enters(r, u)
        t = tf.argmax(tf.where(may_enter, r, 0), output_type=tf.int32)
        return tf.where(tf.reduce_any(may_enter), t, -1)

    def body(step: Any, tableau: Any, support: Any, t: Any, u: Any) -> Any:
        values, rates = tableau[:, -1], tf.gather(tableau, t)[:-1]
        is_t = unknowns == t
        # Raising a pivot that is rounding, of either sign, changes `M_tt` by
        # no more than that, and lets `u_t` grow until another one leaves.
        rates = tf.where(is_t, tf.maximum(rates, _SMALLEST_PIVOT), rates)

        falls = (support | is_t) & (rates > 0)
        growths = tf.where(falls, values / rates, float("inf"))
        k = tf.argmin(growths, output_type=tf.int32)  # joins if t, else leaves
        u = tf.where(is_t, tf.gather(growths, k), 0)
        u += tf.where(support, values - tf.gather(growths, k) * rates, 0)
        support ^= unknowns == k
        u = tf.where(support | is_t, tf.maximum(u, 0), 0)

        joins = k == t
        pivots = tf.where(joins, rates, tf.linalg.diag_part(tableau[:, :-1]))
        tableau = _sweep(tableau, k, tf.gather(pivots, k))
        t = tf.where(joins, next_to_enter(tableau[:, -1], support, u), t)
        return step + 1, tableau, support, t, u

    support, u = tf.zeros(c.shape, tf.bool), tf.zeros_like(c)
    tableau = tf.concat([M, c[:, None]], axis=1)
    num_steps, _, _, _, u = tf.while_loop(
        lambda step, tableau, support, t, u: (t >= 0) & (step < max_steps),
        body,
        (0, tableau, support, next_to_enter(c, support, u), u),
    )
    return u, num_steps


def solve(M: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
    """`x` with `M x = c`, for a positive definite `M`.

    XLA's own Cholesky decomposition takes several times as long on a CPU.
    """

    def body(k: Any, tableau: Any) -> Any:
        pivot = tf.gather(tf.linalg.diag_part(tableau[:, :-1]), k)
        return k + 1, _sweep(tableau, k, tf.maximum(pivot, _SMALLEST_PIVOT))

    tableau = tf.concat([M, c[:, None]], axis=1)
    _, tableau = tf.while_loop(
        lambda k, tableau: k < M.shape[0], body, (0, tableau)
    )
    return tableau[:, -1]


def _sweep(tableau: tf.Tensor, k: tf.Tensor, pivot: tf.Tensor) -> tf.Tensor:
    """Solves row `k` for unknown `k`; undoes that where `pivot < 0`."""
    row = tf.gather(tableau, k)
    column = row[:-1, None]  # the square part is symmetric
    in_row = (tf.range(tableau.shape[0]) == k)[:, None]
    in_column = tf.range(tableau.shape[1]) == k
    swept = tableau - column * (row / pivot)
    swept = tf.where(in_column, column / tf.abs(pivot), swept)
    swept = tf.where(in_row, row / tf.abs(pivot), swept)
    return tf.where(in_row & in_column, -1 / pivot, swept)
