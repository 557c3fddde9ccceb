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

# From `_LARGE` unknowns on, a tableau is too large for the caches, and up to
# `_BLOCK` pivots are applied to it at once.
_LARGE = 256
_BLOCK = 64


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

    From `_LARGE` unknowns on the pivots are the same, but as long as unknowns
    join, those of a block reach the tableau together, by a product of matrices.

    Args:
        M: `[m, m]`, float64, symmetric, of diagonal near one; the program must
            be bounded. Positive semidefinite, but for rounding.
        c: `[m]`, float64.
        enters: from `r [m]` and `u [m]` to which unknowns `[m]` outside of the
            support may enter, bool. If none may, `u` is accepted.
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

    def grow(values: Any, rates: Any, support: Any, t: Any, u: Any) -> Any:
        """`u` once `u_t` has grown as far as it may, and what ends that."""
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
        return k, rates, support, tf.where(support | is_t, tf.maximum(u, 0), 0)

    def pivot_once(
        step: Any, tableau: Any, support: Any, t: Any, u: Any
    ) -> Any:
        values, rates = tableau[:, -1], tf.gather(tableau, t)[:-1]
        k, rates, support, u = grow(values, rates, support, t, u)
        joins = k == t
        pivots = tf.where(joins, rates, tf.linalg.diag_part(tableau[:, :-1]))
        tableau = _sweep(tableau, k, tf.gather(pivots, k))
        t = tf.where(joins, next_to_enter(tableau[:, -1], support, u), t)
        return step + 1, tableau, support, t, u

    def pivot_often(
        step: Any, tableau: Any, support: Any, t: Any, u: Any
    ) -> Any:
        """As long as unknowns join, and `_BLOCK` times at most.

        A sweep by `k` of pivot `p > 0` is `T - x x' / p - 2 e_k e_k'`, with
        `x` the row `k` less `e_k`. So the tableau stays, with the rows
        `x / sqrt(p)` beside it, and is brought up to date by one product.
        """
        square = tableau[:, :-1]

        def row(t: Any, rows: Any, swept: Any) -> tf.Tensor:
            beside = tf.gather(rows, t, axis=1)
            update = tf.linalg.matvec(rows, beside, transpose_a=True)
            twice = 2 * tf.cast((unknowns == t) & swept, M.dtype)
            return tf.gather(square, t) - update - twice

        def join(
            n: Any, values: Any, rows: Any, swept: Any, *of: Any
        ) -> tuple[Any, ...]:
            support, t, u, _ = of
            k, rates, grown, new_u = grow(
                values, row(t, rows, swept), support, t, u
            )
            joins = k == t
            pivot = tf.gather(rates, t)
            x = rates - tf.cast(unknowns == t, M.dtype)
            new_values = values - x * (tf.gather(values, t) / pivot)
            is_new = (tf.range(_BLOCK) == n)[:, None] & joins
            rows = tf.where(is_new, x * tf.math.rsqrt(pivot), rows)
            swept |= (unknowns == t) & joins
            values = tf.where(joins, new_values, values)
            support = tf.where(joins, grown, support)
            u = tf.where(joins, new_u, u)
            t = tf.where(joins, next_to_enter(values, support, u), t)
            n += tf.cast(joins, tf.int32)
            return n, values, rows, swept, support, t, u, joins

        def may_join(n: Any, *of: Any) -> tf.Tensor:
            *_, t, _, joined = of
            in_time = step + n < max_steps
            return joined & (n < _BLOCK) & (t >= 0) & in_time

        start = (
            0,
            tableau[:, -1],
            tf.zeros([_BLOCK, M.shape[0]], M.dtype),
            tf.zeros_like(support),
            support,
            t,
            u,
            tf.constant(True),
        )
        n, values, rows, swept, support, t, u, _ = tf.while_loop(
            may_join, join, start
        )
        square -= tf.matmul(rows, rows, transpose_a=True)
        square -= 2 * tf.linalg.diag(tf.cast(swept, M.dtype))
        tableau = tf.concat([square, values[:, None]], axis=1)
        return step + n, tableau, support, t, u

    def proceed(step: Any, tableau: Any, support: Any, t: Any, u: Any) -> Any:
        return (t >= 0) & (step < max_steps)

    def in_blocks(rest: Any, *of: Any) -> Any:
        """A block, and `rest` pivots one by one.

        Where unknowns leave, blocks are short, and not worth their product:
        each that is doubles the rest after it.
        """
        after = pivot_often(*of)
        rest = tf.where(after[0] - of[0] < _BLOCK // 4, 2 * rest, 1)
        end = after[0] + rest
        return rest, *tf.while_loop(
            lambda step, *of: proceed(step, *of) & (step < end),
            pivot_once,
            after,
        )

    support, u = tf.zeros(c.shape, tf.bool), tf.zeros_like(c)
    tableau = tf.concat([M, c[:, None]], axis=1)
    start = (0, tableau, support, next_to_enter(c, support, u), u)
    if M.shape[0] < _LARGE:
        num_steps, _, _, _, u = tf.while_loop(proceed, pivot_once, start)
    else:
        _, num_steps, _, _, _, u = tf.while_loop(
            lambda rest, *of: proceed(*of), in_blocks, (1, *start)
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
