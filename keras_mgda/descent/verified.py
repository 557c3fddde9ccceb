"""A direction against the true gradient of every task, without these gradients.

With `g_t` the gradients of the shared variables, `G` their Gram matrix and
`d = sum_t w_t g_t`, the derivatives of all tasks along `d` are one product,

    p_t = <g_t, d> = (G w)_t.

Task `t` is in conflict with `d` if `p_t` is negative: a small step along `-d`
raises its loss. `G` itself would take a backward pass for each task; `p` takes
one and its derivative, whatever `m` is.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from keras_mgda.descent.columns import RowBlocks
from keras_mgda.descent.directions import (
    Direction,
    Verification,
    Weigh,
    gram_of_layers,
    gram_of_representation,
    shared_gradients,
    with_heads,
)
from keras_mgda.descent.encoder_layers import encoder_variables, last_layers
from keras_mgda.descent.encoder_products import push_forward
from keras_mgda.descent.task_gradients import (
    Gradient,
    TableRows,
    TaskGradients,
    check_representation,
    dense,
)
from keras_mgda.distribution.replicas import (
    num_replicas,
    sum_over_replicas,
    without_collectives,
)
from keras_mgda.linalg.gram_update import (
    conjugate,
    corrected,
    cosines,
    scaled,
    smallest,
)

# Smaller angles beyond a right one are rounding. (In units of the cosine.)
TOLERANCE = 1e-4


def verify(
    gradients: TaskGradients,
    direction: Direction,
    due: tf.Tensor | None = None,
) -> Direction:
    """The same direction, and how all tasks do along it.

    Args:
        gradients: the task gradients.
        direction: along which the tasks go.
        due: `[]`, bool: whether to look at all. `None`: look.
    """
    shared = {
        i: gradient
        for i, gradient in enumerate(direction.gradients)
        if gradient is not None and gradients.readers.is_shared(i)
    }

    def look(due: tf.Tensor | None = None) -> Verification:
        w = tf.cast(direction.task_weights, tf.float64)
        p = derivatives(gradients, shared, due)
        gram = direction.gram
        if gram is None:
            gram = gram_of_representation(gradients)
        of_tasks = cosines(scaled(tf.cast(gram, tf.float64), w, p), w, p)
        return Verification(
            tf.reduce_sum(tf.cast(of_tasks < -TOLERANCE, tf.int32)),
            tf.constant(0),
            smallest(of_tasks),
        )

    if due is None or num_replicas() > 1:
        found = look(due)
    else:
        nothing = Verification(
            tf.constant(0), tf.constant(0), tf.constant(0.0, tf.float64)
        )
        found = tf.cond(due, look, lambda: nothing)
    return direction._replace(verification=found, looked=due)


def along_verified(
    gradients: TaskGradients, weigh: Weigh, max_corrections: int
) -> Direction:
    """A direction that no task's true gradient was found in conflict with.

    Starts from the Gram matrices of `Z` and of the encoder's last layer
    together. As long as some task conflicts with the direction
    `sum_t w_t g_t`, the matrix is corrected by what its derivatives `p = G w`
    tell of the true one, and weighed again. A product costs a backward pass and
    its derivative. If conflicts are left after `max_corrections`, the direction
    with the smallest worst angle is taken.

    On several replicas, where no sum over them may depend on values, all
    `max_corrections + 1` products are made in every step.
    """
    check_representation(gradients)
    inside = encoder_variables(gradients)
    shared = sorted({*inside, *gradients.past_z})
    at_z = gram_of_representation(gradients)
    last = gram_of_layers(gradients, last_layers(gradients, 1))

    def advance(found: _Search) -> _Search:
        task_weights = weigh(tf.cast(found.gram, tf.float32))
        pulled = shared_gradients(gradients, task_weights)
        direction = [dense(pulled[i]) for i in shared]
        p = derivatives(gradients, dict(zip(shared, direction, strict=True)))
        return found.after(task_weights, direction, p)

    found = _repeat(
        lambda found: found.wants_more(max_corrections),
        advance,
        _Search.start(
            _together(at_z, last),
            [gradients.variables[i].value for i in shared],
            max_corrections + 1,
        ),
        max_corrections + 1,
    )
    direction = with_heads(
        gradients,
        dict(zip(shared, found.direction, strict=True)),
        found.task_weights,
        at_z,
    )
    return direction._replace(verification=found.verification())


def _together(at_z: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """The mean of both Gram matrices, of the trace of the first, float64.

    Which is nearer to the true one depends on the network: with a dense layer
    at the end the last layer's is, behind global pooling, or if some tasks do
    not pass that layer, that of `Z`. The mean was never far from the better.
    """
    at_z, last = tf.cast(at_z, tf.float64), tf.cast(last, tf.float64)
    scale = tf.math.divide_no_nan(tf.linalg.trace(at_z), tf.linalg.trace(last))
    return (at_z + scale * last) / 2


class _Search(NamedTuple):
    """The state of `along_verified`: what is known, and the best so far.

    Attributes:
        gram: `[m, m]`, float64, knows all products that were made.
        conjugates: `[k, m]`, the combinations of task weights that were tried
            which are independent: `u_i' G u_j = 0`. Zero if not yet made.
        products: `[k, m]`, `G u_i`.
    """

    num_products: tf.Tensor
    gram: tf.Tensor
    conjugates: tf.Tensor
    products: tf.Tensor
    task_weights: tf.Tensor
    direction: list[tf.Tensor]
    min_cosine: tf.Tensor
    num_conflicts: tf.Tensor

    @classmethod
    def start(
        cls, gram: tf.Tensor, shared: list[tf.Variable], at_most: int
    ) -> "_Search":
        nothing = tf.zeros([at_most, gram.shape[0]], tf.float64)
        return cls(
            num_products=tf.constant(0),
            gram=gram,
            conjugates=nothing,
            products=nothing,
            task_weights=tf.zeros(gram.shape[:1]),
            direction=[tf.zeros(v.shape, v.dtype) for v in shared],
            min_cosine=tf.constant(-float("inf"), tf.float64),
            num_conflicts=tf.constant(0),
        )

    def wants_more(self, max_corrections: int) -> tf.Tensor:
        # Not with NaN, which is no conflict that could be mended.
        return (self.num_products <= max_corrections) & (
            self.min_cosine < -TOLERANCE
        )

    def after(
        self,
        task_weights: tf.Tensor,
        direction: list[tf.Tensor],
        p: tf.Tensor,
    ) -> "_Search":
        """One product later."""
        w = tf.cast(task_weights, tf.float64)
        first = self.num_products == 0
        # Only now it is known how long the direction is.
        gram = tf.where(first, scaled(self.gram, w, p), self.gram)
        of_tasks = cosines(gram, w, p)
        min_cosine = smallest(of_tasks)
        # NaN is taken, and seen.
        better = tf.math.is_nan(min_cosine) | (min_cosine > self.min_cosine)
        conflicts = tf.reduce_sum(tf.cast(of_tasks < -TOLERANCE, tf.int32))
        u, Gu = conjugate(w, p, self.conjugates, self.products)
        here = tf.one_hot(
            self.num_products, self.products.shape[0], dtype=tf.float64
        )
        return _Search(
            num_products=self.num_products + 1,
            gram=corrected(gram, u, Gu),
            conjugates=self.conjugates + here[:, None] * u,
            products=self.products + here[:, None] * Gu,
            task_weights=tf.where(better, task_weights, self.task_weights),
            direction=[
                tf.where(better, new, old)
                for new, old in zip(direction, self.direction, strict=True)
            ],
            min_cosine=tf.where(better, min_cosine, self.min_cosine),
            num_conflicts=tf.where(first, conflicts, self.num_conflicts),
        )

    def verification(self) -> Verification:
        return Verification(
            self.num_conflicts, self.num_products - 1, self.min_cosine
        )


def _repeat(
    condition: Callable[[_Search], tf.Tensor],
    advance: Callable[[_Search], _Search],
    state: _Search,
    at_most: int,
) -> _Search:
    """`while condition(state): state = advance(state)`, but once at least."""
    # Mostly the first direction will do, and a loop costs half a step more.
    state = advance(state)
    if num_replicas() == 1:
        (state,) = tf.while_loop(
            condition, lambda state: (advance(state),), (state,)
        )
        return state
    # Sums over replicas cannot stand in a loop of the graph.
    for _ in range(at_most - 1):
        goes_on, after = condition(state), advance(state)
        state = tf.nest.map_structure(
            functools.partial(tf.where, goes_on), after, state
        )
    return state


def derivatives(
    gradients: TaskGradients,
    direction: Mapping[int, Gradient],
    due: tf.Tensor | None = None,
) -> tf.Tensor:
    """`p_t = <g_t, d>` of every task, `[m]`, float64.

    Args:
        gradients: the task gradients.
        direction: `{variable index: gradient}` of all shared variables, this
            replica's summand of them.
        due: `[]`, bool: whether to make the products, but for the sums over
            replicas, which every step makes. `None`: they are made.
    """
    m = gradients.num_tasks
    total = sum_over_replicas([dense(g) for g in direction.values()])
    # Of unit length, or half precision overflows.
    norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in total])
    divisor = tf.where(norm == 0.0, 1.0, norm)
    unit = {
        i: tf.cast(tf.cast(g, tf.float32) / divisor, g.dtype)
        for i, g in zip(direction, total, strict=True)
    }

    def products() -> tf.Tensor:
        along_z = push_forward(
            gradients.forward,
            [gradients.variables[i].value for i in unit],
            list(unit.values()),
        )
        pairs = list(zip(gradients.at_z, along_z, strict=True)) + [
            (rows.values, tf.gather(unit[i], rows.indices))
            if isinstance(rows, TableRows)
            else (rows, unit[i])
            for i, rows in gradients.past_z.items()
            if i in unit
        ]
        return tf.add_n(
            [
                rows.along(vector)
                if isinstance(rows, RowBlocks)
                else tf.linalg.matvec(
                    tf.cast(tf.reshape(rows, [m, -1]), tf.float32),
                    tf.cast(tf.reshape(vector, [-1]), tf.float32),
                )
                for rows, vector in pairs
            ]
        )

    if due is None:
        p = products()
    else:
        with without_collectives(
            "the encoder", "or look at every step, `verify_every=1`"
        ):
            p = tf.cond(due, products, lambda: tf.zeros([m]))
    p = sum_over_replicas(p)
    return tf.cast(p, tf.float64) * tf.cast(norm, tf.float64)
