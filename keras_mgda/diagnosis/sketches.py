"""Gradients as rows of numbers: of all entries, or of sketches of them.

A sketch adds up entries with random signs at random places. Inner products of
sketches are right in the mean, and their variance is known (Charikar et al.,
2002), so that gradients of any length fit the memory there is.
"""

import math
from collections.abc import Collection

import numpy as np
import tensorflow as tf

from keras_mgda.descent.task_gradients import Rows, TableRows


def num_entries(all_rows: Collection[Rows]) -> int:
    """How many numbers the gradient of a task has."""
    return sum(math.prod(_shape(rows)) for rows in all_rows)


def exact(all_rows: Collection[Rows]) -> tf.Tensor:
    """`[m, n]`: all entries of the gradients of all tasks."""
    dense = [r.dense() if isinstance(r, TableRows) else r for r in all_rows]
    return tf.concat([_flat(rows) for rows in dense], axis=1)


def sketched(all_rows: Collection[Rows], size: int) -> tf.Tensor:
    """`[m, size]`: sketches of the gradients of all tasks.

    One variable after another is added into the same place, or each would take
    as much memory again.
    """
    (num_tasks,) = {_num_tasks(rows) for rows in all_rows}
    sketch, offset = tf.zeros([size, num_tasks]), 0
    for rows in all_rows:
        places, entries = places_and_entries(rows, offset, size)
        sketch = tf.tensor_scatter_nd_add(sketch, places[:, None], entries)
        offset += math.prod(_shape(rows))
    return tf.transpose(sketch)


# A prime, below which the product of two numbers fits int64.
_PRIME = 2**31 - 1


def places_and_entries(
    rows: Rows, offset: int, size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The places of entries in a sketch, `[n]`, and what to add, `[n, m]`.

    Inner products of such sketches have the right mean and the variance
    `(|x|^2 |y|^2 + <x, y>^2) / size` at most (Charikar et al., 2002): signs and
    places are polynomials of degree 3 of an entry's number, any four of which
    are independent. So nothing has to be stored, and of a table the rows that
    were read alone are looked at.
    """
    if isinstance(rows, TableRows):
        width = math.prod(rows.shape[1:])
        numbers = rows.indices[:, None] * width + tf.range(
            width, dtype=tf.int64
        )
        numbers = tf.reshape(numbers, [-1])
        entries = _flat(rows.values)
    else:
        numbers = tf.range(math.prod(rows.shape[1:]), dtype=tf.int64)
        entries = _flat(rows)
    places = _hash(numbers + offset, 0) % size
    signs = 1 - 2 * (_hash(numbers + offset, 1) % 2)
    return places, tf.transpose(entries * tf.cast(signs, tf.float32))


def _hash(numbers: tf.Tensor, seed: int) -> tf.Tensor:
    coefficients = np.random.default_rng(seed).integers(1, _PRIME, 4)
    value = tf.zeros_like(numbers)
    for c in coefficients:
        value = (value * (numbers % _PRIME) + int(c)) % _PRIME
    return value


def _shape(rows: Rows) -> tuple[int, ...]:
    return tuple(rows.shape if isinstance(rows, TableRows) else rows.shape[1:])


def _num_tasks(rows: Rows) -> int:
    stacked = rows.values if isinstance(rows, TableRows) else rows
    return int(stacked.shape[0])


def _flat(rows: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.reshape(rows, [rows.shape[0], -1]), tf.float32)
