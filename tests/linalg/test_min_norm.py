import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.gram_matrices import (
    gram_of,
    jacobian,
    random,
    squared_norm,
    weights_by_nnls,
)
from keras_mgda.linalg import min_norm, quadratic_program
from keras_mgda.linalg.gram import gram_matrix
from keras_mgda.linalg.min_norm import min_norm_point
from tests.support.gram_tables import KNOWN, LARGE, ROUNDED_AWAY, SMALL

METHODS = ["active_set", "frank_wolfe"]


def best_of_all_supports(gram):
    """The minimum of `w'Gw` on the simplex, from every set of tasks."""
    gram = np.float64(gram)
    m = len(gram)
    best = np.inf
    for size in range(1, m + 1):
        for support in map(list, itertools.combinations(range(m), size)):
            # Stationary on the support: G w = z 1, 1'w = 1.
            system = np.ones([size + 1, size + 1])
            system[:size, :size] = gram[np.ix_(support, support)]
            scale = np.abs(system[:size, :size]).max() or 1.0
            system[:size, :size] /= scale
            system[size, size] = 0.0
            right = np.r_[np.zeros(size), 1.0]
            w = np.linalg.lstsq(system, right, rcond=1e-14)[0][:size]
            w = np.maximum(w, 0.0)
            if w.sum() > 0:
                full = np.zeros(m)
                full[support] = w / w.sum()
                best = min(best, squared_norm(gram, full))
    return best


def best_of_nnls(gram):
    return squared_norm(gram, weights_by_nnls(gram))


def excess(gram, task_weights, optimum):
    """What contract and tolerance are stated in: units of `min_t G_tt`."""
    above = squared_norm(gram, task_weights) - optimum
    return above / np.float64(gram).diagonal().min()


def magnitude(gram, task_weights):
    """Bounds the sums behind `Gw`; an ulp of them is rounding's share."""
    w, norms = np.float64(task_weights), np.sqrt(np.diag(np.float64(gram)))
    return norms.max() * (w @ norms)


def assert_on_simplex(task_weights):
    w = np.asarray(task_weights)
    assert np.all(w >= 0)
    np.testing.assert_allclose(w.sum(dtype=np.float64), 1, rtol=len(w) * 1e-7)


@pytest.mark.parametrize("gram", SMALL + LARGE)
@pytest.mark.sample(70)
def test_every_matrix_is_solved_and_certified(gram):
    """To the optimum of an oracle, and within the default limit of steps."""
    point = min_norm_point(gram)
    w, exact, m = np.float64(point.task_weights), np.float64(gram), len(gram)
    assert_on_simplex(w)
    assert point.num_steps <= 2 * m + 1
    small = m <= 5
    optimum = best_of_all_supports(gram) if small else best_of_nnls(gram)
    above = excess(gram, w, optimum)
    assert above <= 1e-6
    assert above >= -1e-6 or not small  # NNLS may stay above it

    # What the certificate says is that of the returned weights.
    value = w @ exact @ w
    gap = value - (exact @ w).min()
    tolerance = {"rtol": 1e-6, "atol": 1e-14 * magnitude(gram, w)}
    np.testing.assert_allclose(point.squared_norm, max(value, 0), **tolerance)
    np.testing.assert_allclose(point.duality_gap, max(gap, 0), **tolerance)

    # Every task improves: (Gw)_t >= w'Gw, but for the weights' own rounding.
    noise = np.finfo(np.float32).eps * magnitude(gram, w)
    assert point.duality_gap <= 1e-6 * gram.diagonal().min() + noise


@pytest.mark.parametrize("gram", ROUNDED_AWAY)
def test_what_rounding_leaves_is_solved_to_rounding(gram):
    point = min_norm_point(gram)
    assert_on_simplex(point.task_weights)
    assert point.num_steps <= 2 * len(gram)
    w, norms = np.float64(point.task_weights), np.sqrt(gram.diagonal())
    rounding = np.finfo(np.float32).eps * (w @ np.float64(norms)) ** 2
    error = squared_norm(gram, w) - best_of_nnls(gram)
    assert error <= 1e-6 * gram.diagonal().min() + rounding


_compiled_in_blocks = functools.cache(min_norm._compiled.__wrapped__)


@pytest.fixture
def in_blocks(monkeypatch):
    """Solves as for hundreds of tasks, in blocks of few pivots."""
    monkeypatch.setattr(quadratic_program, "_LARGE", 1)
    monkeypatch.setattr(quadratic_program, "_BLOCK", 8)
    monkeypatch.setattr(min_norm, "_compiled", _compiled_in_blocks)
    return min_norm_point


@pytest.mark.parametrize("gram", LARGE + ROUNDED_AWAY)
@pytest.mark.sample(30)
def test_blocks_of_pivots_are_optimal(gram, in_blocks):
    point = in_blocks(gram)
    w = np.float64(point.task_weights)
    assert_on_simplex(w)
    assert point.num_steps <= 2 * len(gram) + 1
    rounding = np.finfo(np.float32).eps * (w @ np.sqrt(gram.diagonal())) ** 2
    error = squared_norm(gram, w) - best_of_nnls(gram)
    assert error <= 1e-6 * gram.diagonal().min() + rounding


@pytest.mark.parametrize("max_steps", [1, 7, 8, 9, 12])
@pytest.mark.sample(2)
def test_blocks_stop_at_the_step_limit(max_steps, in_blocks):
    gram = gram_of(jacobian(random, 40, 2), np.float64)
    point = in_blocks(gram, max_steps=max_steps)
    assert_on_simplex(point.task_weights)
    assert point.num_steps == max_steps


@pytest.mark.parametrize("m", [300])
@pytest.mark.parametrize("spread", [0, 2, 4])
def test_hundreds_of_tasks_are_certified(m, spread):
    gram = gram_of(jacobian(random, m, spread), np.float64)
    point = min_norm_point(gram)
    assert_on_simplex(point.task_weights)
    assert point.num_steps <= 2 * m
    assert point.duality_gap <= 1e-9 * gram.diagonal().min()


def test_tasks_that_leave_together_leave_no_negative_weight():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        J = rng.integers(-1, 2, size=(8, 3)) * 10 ** rng.uniform(0, 3, (8, 1))
        assert_on_simplex(min_norm_point(J @ J.T).task_weights)


def test_a_pair_that_rounding_made_indefinite():
    # -1e8 - 8 is the next float32: this pair has w'Gw = -4.
    gram = np.float32([[1e8, -1e8 - 8, 0], [-1e8 - 8, 1e8, 0], [0, 0, 1]])
    point = min_norm_point(gram)
    np.testing.assert_allclose(point.task_weights, [0.5, 0.5, 0], atol=1e-6)
    assert point.squared_norm == 0


@pytest.mark.parametrize(("gram", "task_weights"), KNOWN)
def test_known_points(gram, task_weights):
    point = min_norm_point(gram)
    np.testing.assert_allclose(point.task_weights, task_weights, rtol=1e-6)
    assert np.all((point.task_weights == 0) == (task_weights == 0))
    assert np.all((point.task_weights == 1) == (task_weights == 1))


@settings(deadline=None, max_examples=200)
@given(data=st.data(), m=st.sampled_from([2, 3, 5]))
def test_any_integers_are_optimal(data, m):
    # Small integers times powers of two: the float32 Gram has no rounding, so
    # that its minimum is exactly what it claims to be.
    shape = (m, data.draw(st.integers(1, 4)))
    J = data.draw(hnp.arrays(int, shape, elements=st.integers(-9, 9)))
    exponents = data.draw(hnp.arrays(int, m, elements=st.integers(0, 13)))
    gram = gram_of(J * 2.0 ** exponents[:, None])
    point = min_norm_point(gram)
    assert_on_simplex(point.task_weights)
    if gram.diagonal().min() == 0:
        assert point.squared_norm == 0
    else:
        w = point.task_weights.numpy()
        assert abs(excess(gram, w, best_of_all_supports(gram))) <= 1e-6


# XLA compiles a program for each size and type: of few sizes here.
@pytest.mark.parametrize("m", [3, 10])
@pytest.mark.parametrize("spread", [0, 4])
def test_float64_is_solved_to_float64(m, spread):
    gram = gram_of(jacobian(random, m, spread), np.float64)
    point = min_norm_point(gram)
    assert point.task_weights.dtype == tf.float64
    smallest = gram.diagonal().min()
    assert point.duality_gap <= 1e-9 * smallest
    optimum = best_of_nnls(gram)
    assert abs(excess(gram, point.task_weights, optimum)) <= 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("max_steps", [1, 3, 7])
@pytest.mark.parametrize("spread", [0, 4])
@pytest.mark.sample(3)
def test_gap_bounds_the_error_of_any_weights(method, max_steps, spread):
    # Also of those on the way: the step limit leaves the simplex never.
    for seed in range(10):
        gram = gram_of(jacobian(random, 5, spread, seed), np.float64)
        point = min_norm_point(gram, method=method, max_steps=max_steps)
        assert_on_simplex(point.task_weights)
        assert point.num_steps <= max_steps
        optimum = best_of_all_supports(gram)
        rounding = 1e-12 * gram.diagonal().min()
        assert point.squared_norm - optimum <= 2 * point.duality_gap + rounding


@pytest.mark.parametrize("gram", SMALL)
@pytest.mark.sample(48)
def test_scale_is_exactly_free(gram):
    for method, scale in itertools.product(METHODS, [2.0**-40, 2.0**40]):
        point = min_norm_point(gram, method=method)
        scaled = min_norm_point(gram * np.float32(scale), method=method)
        np.testing.assert_array_equal(scaled.task_weights, point.task_weights)
        np.testing.assert_array_equal(
            scaled.squared_norm, point.squared_norm * scale
        )
        assert scaled.num_steps == point.num_steps


@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1e5, 1e12])
def test_decimal_scales_are_free_to_rounding(scale):
    gram = gram_of(jacobian(random, 5, 2), np.float64)
    np.testing.assert_allclose(
        min_norm_point(scale * gram).task_weights,
        min_norm_point(gram).task_weights,
        rtol=1e-12,
    )


@pytest.mark.parametrize("m", [2, 3, 10])
@pytest.mark.parametrize("spread", [0, 2])
def test_the_order_of_tasks_is_free(m, spread):
    gram = gram_of(jacobian(random, m, spread), np.float64)
    order = np.random.default_rng(0).permutation(m)[::-1]
    np.testing.assert_allclose(
        min_norm_point(gram[np.ix_(order, order)]).task_weights,
        min_norm_point(gram).task_weights.numpy()[order],
        rtol=1e-9,
    )


@pytest.mark.parametrize("m", [2, 3, 5])
def test_only_the_symmetric_part_counts(m):
    # A product `J J'` need not round alike on both sides of the diagonal.
    gram = gram_of(jacobian(random, m, 0), np.float64)
    skew = np.triu(np.full([m, m], 0.1), 1)
    np.testing.assert_allclose(
        min_norm_point(gram + skew - skew.T).task_weights,
        min_norm_point(gram).task_weights,
        rtol=1e-12,
    )


def test_a_task_that_is_longer_and_acute_changes_nothing():
    gram = gram_of([[3, 0, 0], [0, 2, 0], [5, 4, 1]])
    w = min_norm_point(gram).task_weights.numpy()
    assert w[2] == 0
    np.testing.assert_array_equal(
        w[:2], min_norm_point(gram[:2, :2]).task_weights
    )


@pytest.mark.parametrize("ratio", [1e-4, 0.1, 0.5, 1.0, 2.0, 1e4])
@pytest.mark.parametrize("cosine", [-1.0, -0.9, 0.0, 0.3, 0.5, 0.999, 1.0])
def test_two_tasks_are_closed_form(ratio, cosine):
    gram = np.float32([[1, cosine * ratio], [cosine * ratio, ratio**2]])
    v11, v12, v22 = np.float64(gram)[[0, 0, 1], [0, 1, 1]]
    if v12 >= v11:
        first = 1.0
    elif v12 >= v22:
        first = 0.0
    else:
        first = (v22 - v12) / (v11 + v22 - 2 * v12)
    for method in METHODS:
        point = min_norm_point(gram, method=method)
        np.testing.assert_array_equal(
            point.task_weights, np.float32([first, 1 - first])
        )
        assert point.num_steps == 0


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_zero_rows_take_all_weight(method, m):
    for zeros in [[0], [m - 1], list(range(m))]:
        J = jacobian(random, m, 4)
        J[zeros] = 0
        point = min_norm_point(gram_of(J), method=method)
        assert_on_simplex(point.task_weights)
        np.testing.assert_array_equal(np.delete(point.task_weights, zeros), 0)
        assert point.squared_norm == 0
        assert point.duality_gap == 0


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_equal_rows_are_one_gradient(method, m):
    gram = np.full([m, m], 0.3, np.float32)
    point = min_norm_point(gram, method=method)
    assert_on_simplex(point.task_weights)
    np.testing.assert_allclose(point.squared_norm, 0.3, rtol=1e-6)
    assert point.duality_gap <= 1e-7


@pytest.mark.parametrize("m", [3, 10])
def test_a_dominating_short_gradient_is_an_exact_vertex(m):
    J = 10 + np.random.default_rng(0).uniform(size=[m, m])
    J[1] = 1
    expected = np.eye(m)[1]
    np.testing.assert_array_equal(
        min_norm_point(gram_of(J)).task_weights, expected
    )


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_bad_gram_gives_nan_never_zero(method, m, bad):
    for row, column in [(0, 0), (0, m - 1), (m - 1, m - 1)]:
        gram = gram_of(jacobian(random, m, 0))
        gram[row, column] = gram[column, row] = bad
        point = min_norm_point(gram, method=method)
        assert np.all(np.isnan(point.task_weights))
        assert np.isnan(point.squared_norm)
        assert np.isnan(point.duality_gap)


def test_a_negative_diagonal_is_no_gram():
    for m in [1, 2, 3]:
        point = min_norm_point(-np.eye(m, dtype=np.float32))
        assert np.all(np.isnan(point.task_weights))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_dtype_is_kept(dtype):
    point = min_norm_point(tf.cast([[2, 0, 0], [0, 4, 0], [0, 0, 4]], dtype))
    for value in point[:3]:
        assert value.dtype == dtype
    assert point.num_steps.dtype == tf.int32
    np.testing.assert_array_equal(
        tf.cast(point.task_weights, tf.float32), [0.5, 0.25, 0.25]
    )


def test_integers_are_float32():
    point = min_norm_point([[1, 0], [0, 3]])
    assert point.task_weights.dtype == tf.float32
    np.testing.assert_array_equal(point.task_weights, [0.75, 0.25])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("m", [2, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_active_tasks_are_solved_alone(method, m):
    gram = gram_of(jacobian(random, m, 2), np.float64)
    for active in itertools.product([False, True], repeat=m):
        if not any(active):
            continue
        kept = np.flatnonzero(active)
        masked = gram.copy()
        masked[~np.array(active)] = np.nan  # not looked at
        masked[:, ~np.array(active)] = np.nan
        point = min_norm_point(masked, active=active, method=method)
        alone = min_norm_point(gram[np.ix_(kept, kept)], method=method)
        np.testing.assert_array_equal(np.delete(point.task_weights, kept), 0)
        noise = 1e-9 * gram.diagonal()[kept].min()
        np.testing.assert_allclose(
            point.squared_norm,
            alone.squared_norm,
            atol=2 * float(point.duality_gap) + noise,
        )
        if method == "active_set":
            assert point.duality_gap <= noise
            np.testing.assert_allclose(
                tf.gather(point.task_weights, kept),
                alone.task_weights,
                atol=1e-9,
            )


def test_an_inactive_zero_row_does_not_stop_the_encoder():
    gram = np.diag(np.float32([0, 1, 3]))
    point = min_norm_point(gram, active=[False, True, True])
    np.testing.assert_array_equal(point.task_weights, [0, 0.75, 0.25])
    np.testing.assert_allclose(point.squared_norm, 0.75)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_no_task_is_active(method, m):
    gram = gram_of(jacobian(random, m, 0), np.float64)
    point = min_norm_point(gram, active=[False] * m, method=method)
    uniform = np.full(m, 1 / m)
    np.testing.assert_array_equal(point.task_weights, uniform)
    np.testing.assert_allclose(point.squared_norm, uniform @ gram @ uniform)


def test_active_may_be_a_tensor_of_the_step():
    @tf.function
    def solve(gram, num_labels):
        return min_norm_point(gram, active=num_labels > 0).task_weights

    gram = tf.linalg.diag([1.0, 1.0, 2.0])
    np.testing.assert_allclose(
        solve(gram, tf.constant([5, 0, 3])), [2 / 3, 0, 1 / 3], rtol=1e-6
    )
    np.testing.assert_array_equal(
        solve(gram, tf.constant([0, 0, 3])), [0.0, 0.0, 1.0]
    )


def algorithm_2(gram, num_steps):
    """The paper's Algorithm 2, in NumPy."""
    w = np.full(len(gram), 1 / len(gram))
    for _ in range(num_steps):
        t = np.argmin(gram @ w)
        v11, v12, v22 = gram[t, t], gram[t] @ w, w @ gram @ w
        if v12 >= v11:
            gamma = 1.0
        elif v12 >= v22:
            gamma = 0.0
        else:
            gamma = (v22 - v12) / (v11 + v22 - 2 * v12)
        w = (1 - gamma) * w + gamma * np.eye(len(gram))[t]
    return w


@pytest.mark.parametrize("max_steps", [1, 3, 10])
def test_frank_wolfe_is_algorithm_2_step_by_step(max_steps):
    for spread in [0, 2]:
        gram = gram_of(jacobian(random, 5, spread), np.float64)
        point = min_norm_point(gram, method="frank_wolfe", max_steps=max_steps)
        assert point.num_steps == max_steps
        np.testing.assert_allclose(
            point.task_weights, algorithm_2(gram, max_steps), rtol=1e-9
        )


@pytest.mark.parametrize("gram", SMALL)
def test_frank_wolfe_agrees_to_its_gap(gram):
    slow = min_norm_point(gram, method="frank_wolfe")
    fast = min_norm_point(gram)
    assert slow.num_steps <= 250
    assert_on_simplex(slow.task_weights)
    above = np.float64(slow.squared_norm) - np.float64(fast.squared_norm)
    noise = 1e-6 * gram.diagonal().min()
    assert -noise <= above <= 2 * np.float64(slow.duality_gap) + noise


def test_frank_wolfe_stops_at_its_tolerance():
    gram = gram_of(jacobian(random, 5, 0), np.float64)
    loose, tight = (
        min_norm_point(gram, method="frank_wolfe", tolerance=tolerance)
        for tolerance in (1e-1, 1e-2)
    )
    smallest = gram.diagonal().min()
    assert loose.num_steps < tight.num_steps < 250
    assert loose.duality_gap <= 1e-1 * smallest
    assert tight.duality_gap <= 1e-2 * smallest < loose.duality_gap


def test_frank_wolfe_stops_at_stationarity_before_its_gap_closes():
    gram = gram_of([[1, 0.1], [-1, 1], [-1, -1]])
    point = min_norm_point(gram, method="frank_wolfe", tolerance=1e-3)
    assert point.num_steps < 250
    assert point.squared_norm <= 1e-3 < point.duality_gap


def test_frank_wolfe_stops_at_a_vertex():
    point = min_norm_point(np.diag([0.0, 1.0, 2.0]), method="frank_wolfe")
    assert point.num_steps == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.sample(2)
def test_eager_graph_and_xla_agree(method, m):
    gram = tf.constant(gram_of(jacobian(random, m, 2)))
    alone = min_norm_point(gram, method=method)
    results = [
        tf.function(min_norm_point, jit_compile=jit)(gram, method=method)
        for jit in (False, True)
    ]
    tf.config.run_functions_eagerly(True)
    try:
        results.append(min_norm_point(gram, method=method))
    finally:
        tf.config.run_functions_eagerly(False)
    for result in results:
        assert isinstance(result, min_norm.MinNormPoint)
        for value, expected in zip(result, alone, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("m", [2, 3])
def test_inside_a_compiled_step(m):
    x = np.random.default_rng(0).normal(size=[4, m]).astype(np.float32)
    variable = tf.Variable(tf.ones([m]))

    @tf.function(jit_compile=True)
    def step(x):
        with tf.GradientTape(persistent=True) as tape:
            losses = [
                tf.reduce_mean((x @ variable[:, None] - t) ** 2)
                for t in range(m)
            ]
        gradients = [tape.gradient(loss, variable) for loss in losses]
        w = min_norm_point(gram_matrix(gradients)).task_weights
        direction = tf.linalg.matvec(tf.stack(gradients), w, transpose_a=True)
        variable.assign_sub(0.01 * direction)
        return direction, gradients

    direction, gradients = step(x)
    improvements = np.stack(gradients) @ np.asarray(direction)
    norm = np.sum(np.square(direction))
    assert np.all(improvements >= norm - 1e-5 * np.sum(np.square(gradients)))
    np.testing.assert_allclose(variable, 1 - 0.01 * direction, rtol=1e-6)


def test_weights_are_constants_to_a_tape():
    J = tf.Variable(tf.random.normal([3, 4]))
    with tf.GradientTape() as tape:
        point = min_norm_point(J @ tf.transpose(J))
        total = tf.reduce_sum(point.task_weights[:, None] * J)
    gradient = tape.gradient(total, J)
    np.testing.assert_allclose(
        gradient, tf.tile(point.task_weights[:, None], [1, 4])
    )


def test_traced_once_for_all_matrices_of_a_size():
    @tf.function
    def solve(gram):
        return min_norm_point(gram)

    for m in [2, 3, 3, 2, 3]:
        for seed in range(3):
            solve(tf.constant(gram_of(jacobian(random, m, 2, seed))))
    assert solve.experimental_get_tracing_count() == 2

    compiled = min_norm._compiled("active_set", 30, 1e-7)
    for seed in range(5):
        gram = tf.constant(gram_of(jacobian(random, 3, 2, seed)))
        min_norm_point(gram, max_steps=30, tolerance=1e-7)
    assert compiled.experimental_get_tracing_count() == 1


PROGRAM = """
import numpy as np
import tensorflow as tf
from keras_mgda.linalg.min_norm import min_norm_point

def active_set(gram):
    return min_norm_point(gram)

def frank_wolfe(gram):
    return min_norm_point(gram, method="frank_wolfe")

def masked(gram):
    return min_norm_point(gram, active=tf.linalg.diag_part(gram) > 1)

in_a_graph = tf.function(min_norm_point)
in_a_compiled_graph = tf.function(min_norm_point, jit_compile=True)

@tf.function(jit_compile=True, autograph=False)
def indexed_by_a_traced_task(gram):
    def body(step, w):
        t = tf.argmin(tf.linalg.matvec(gram, w))
        return step + 1, w - 0.1 * gram[t]
    return tf.while_loop(lambda step, w: step < 3, body, (0, tf.ones([3])))

for seed in range(5):
    J = np.random.default_rng(seed).normal(size=[3, 4]).astype("float32")
    for solve in {functions}:
        solve(tf.constant(J @ J.T))
"""


@pytest.mark.slow
def test_new_values_compile_nothing(count_compilations):
    functions = (
        "[active_set, frank_wolfe, masked, in_a_graph, in_a_compiled_graph]"
    )
    script = PROGRAM.replace("{functions}", functions)
    assert count_compilations(script) == 5


@pytest.mark.slow
def test_the_count_sees_a_recompilation(count_compilations):
    script = PROGRAM.replace("{functions}", "[indexed_by_a_traced_task]")
    assert count_compilations(script) == 5


@pytest.mark.parametrize(
    "gram",
    [1.0, [1.0], [[1.0, 0.0]], np.zeros([0, 0]), np.zeros([2, 2, 2])],
    ids=["scalar", "vector", "wide", "empty", "batch"],
)
def test_not_a_square_matrix(gram):
    with pytest.raises(ValueError, match=r"square matrix .* Received: shape"):
        min_norm_point(gram)


def test_size_unknown_in_a_graph():
    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def solve(gram):
        return min_norm_point(gram)

    with pytest.raises(
        ValueError, match=r"known when it is traced\. Received: shape \(None"
    ):
        solve(tf.eye(2))


def test_unknown_method():
    with pytest.raises(ValueError, match=r"'active_set', .*Received: 'newton'"):
        min_norm_point(tf.eye(2), method="newton")


@pytest.mark.parametrize("max_steps", [0, -1])
def test_no_steps(max_steps):
    with pytest.raises(
        ValueError, match=rf"at least 1\. Received: {max_steps}"
    ):
        min_norm_point(tf.eye(3), max_steps=max_steps)


@pytest.mark.parametrize("active", [True, [True], [[True, True, True]]])
def test_active_of_another_shape(active):
    with pytest.raises(
        ValueError, match=r"one boolean for each task\. Received: shape"
    ):
        min_norm_point(tf.eye(3), active=active)
