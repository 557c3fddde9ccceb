import numpy as np
import pytest
import tensorflow as tf

from keras_mgda.linalg.gram import gram_matrix, jacobian_gram

SHAPES = {"kernel": (4, 3), "bias": (3,), "scale": ()}


def task_gradients(m, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {k: rng.normal(size=shape).astype(dtype) for k, shape in SHAPES.items()}
        for _ in range(m)
    ]


def flat(gradients):
    """`[m, n]` in float64."""
    return np.stack(
        [
            np.concatenate([np.ravel(np.float64(g[k])) for k in sorted(g)])
            for g in gradients
        ]
    )


@pytest.mark.parametrize("m", [1, 2, 7])
def test_is_jacobian_times_its_transpose(m):
    gradients = task_gradients(m)
    gram = gram_matrix(gradients)
    J = flat(gradients)
    assert gram.dtype == tf.float32
    assert gram.shape == (m, m)
    np.testing.assert_allclose(gram, J @ J.T, rtol=1e-5, atol=1e-5)


def test_structures_may_be_nested_and_dict_order_is_free():
    a, b = tf.constant([1.0, 2.0]), tf.constant([[3.0]])
    gram = gram_matrix([{"x": a, "y": [b, (a,)]}, {"y": [b, (a,)], "x": -a}])
    np.testing.assert_array_equal(gram, [[19.0, 9.0], [9.0, 19.0]])


def test_a_gradient_may_be_a_single_tensor():
    gram = gram_matrix([tf.constant([1.0, 2.0]), tf.constant([3.0, -1.0])])
    np.testing.assert_array_equal(gram, [[5.0, 1.0], [1.0, 10.0]])


def test_the_batch_axis_is_not_summed():
    # Sums over the batch would be equal; the gradients are opposite.
    left = tf.constant([[1.0], [-1.0]])
    np.testing.assert_array_equal(
        gram_matrix([left, -left]), [[2.0, -2.0], [-2.0, 2.0]]
    )


def test_none_is_a_zero_gradient():
    first = {"kernel": tf.ones([2, 2]), "bias": tf.ones([2]), "unused": None}
    second = {"kernel": None, "bias": 2 * tf.ones([2]), "unused": None}
    third = {"kernel": None, "bias": None, "unused": None}
    np.testing.assert_array_equal(
        gram_matrix([first, second, third]),
        [[6.0, 4.0, 0.0], [4.0, 8.0, 0.0], [0.0, 0.0, 0.0]],
    )


def test_no_task_reaches_anything():
    np.testing.assert_array_equal(
        gram_matrix([[None, None], [None, None]]), np.zeros([2, 2])
    )


def test_embedding_gradients_add_rows_that_occur_twice():
    table = tf.Variable(tf.reshape(tf.range(8.0), [4, 2]))
    with tf.GradientTape(persistent=True) as tape:
        losses = [
            tf.reduce_sum(tf.gather(table, [0, 1, 0]) ** 2),
            tf.reduce_sum(tf.gather(table, [1, 1, 3])),
            tf.reduce_sum(table),
        ]
    gradients = [tape.gradient(loss, [table]) for loss in losses]
    assert isinstance(gradients[0][0], tf.IndexedSlices)
    rows = np.zeros([3, 4, 2])
    rows[0, 0], rows[0, 1] = [0.0, 4.0], [4.0, 6.0]
    rows[1, 1], rows[1, 3] = 2.0, 1.0
    rows[2] = 1.0
    J = rows.reshape(3, 8)
    np.testing.assert_array_equal(gram_matrix(gradients), J @ J.T)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_gradients_are_summed_in_float32(dtype):
    # 4096 + 1 + ... + 1 stays 4096 in either type, and 300^2 is over 65504.
    one = tf.cast(tf.concat([[64.0], tf.ones([4096])], 0), dtype)
    large = tf.cast(tf.fill([4097], 300.0), dtype)
    gram = gram_matrix([one, large])
    assert gram.dtype == tf.float32
    large = float(large[0])
    expected = [
        [8192.0, 4160.0 * large],
        [4160.0 * large, 4097.0 * large**2],
    ]
    np.testing.assert_allclose(gram, expected, rtol=1e-6)


def test_float64_gradients_are_summed_in_float64():
    # <a, b> = 1, lost beside 1e12 in float32.
    a = tf.constant([1e6, 1.0, -1e6], tf.float64)
    b = tf.constant([1e6, 1.0, 1e6], tf.float64)
    gram = gram_matrix([a, b])
    assert gram.dtype == tf.float32
    assert gram[0, 1] == 1.0


def test_leaves_may_differ_in_dtype():
    gradient = [tf.ones([3], tf.float16), tf.ones([2], tf.float64)]
    np.testing.assert_array_equal(
        gram_matrix([gradient, gradient]), np.full([2, 2], 5.0)
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_entries_show_in_their_task(bad):
    gradients = [tf.ones([3]), tf.constant([1.0, bad, 1.0]), tf.ones([3])]
    finite = np.isfinite(gram_matrix(gradients).numpy())
    np.testing.assert_array_equal(
        finite, [[True, False, True], [False] * 3, [True, False, True]]
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_graphs_with_any_batch_size(jit_compile):
    signature = [tf.TensorSpec([None, 3]), tf.TensorSpec([None, 3])]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def compute(left, right):
        return gram_matrix([[left, None], [right, tf.reduce_sum(right, 1)]])

    for batch_size in [0, 1, 5]:
        left, right = tf.random.normal([2, batch_size, 3])
        J = np.zeros([2, 4 * batch_size])
        J[0, : 3 * batch_size] = np.ravel(left)
        J[1] = np.r_[np.ravel(right), np.sum(right, 1)]
        np.testing.assert_allclose(
            compute(left, right), J @ J.T, rtol=1e-5, atol=1e-5
        )
    assert compute.experimental_get_tracing_count() == 1


def test_the_graph_does_not_grow_with_the_tasks():
    def num_nodes(m):
        @tf.function
        def compute(x):
            return gram_matrix([[x, None, x] for _ in range(m)])

        graph = compute.get_concrete_function(tf.TensorSpec([2])).graph
        return len(graph.get_operations())

    # One product for each leaf, so that 500 tasks trace as fast as two.
    assert num_nodes(500) == num_nodes(2)


def test_a_stacked_jacobian_gives_the_same():
    gradients = task_gradients(5)
    jacobian = tf.nest.map_structure(lambda *rows: np.stack(rows), *gradients)
    np.testing.assert_array_equal(
        jacobian_gram(jacobian), gram_matrix(gradients)
    )
    jacobian["unused"] = None
    np.testing.assert_array_equal(
        jacobian_gram(jacobian), gram_matrix(gradients)
    )


@pytest.mark.parametrize(
    "gradients",
    [[], {}, None, {"left": [1.0]}, tf.ones([2, 3])],
    ids=["empty", "empty_dict", "none", "dict", "tensor"],
)
def test_not_a_list_of_tasks(gradients):
    with pytest.raises(ValueError, match=r"one for each task\. Received: "):
        gram_matrix(gradients)


@pytest.mark.parametrize(
    "other",
    [[tf.ones([2]), tf.ones([2])], {"x": tf.ones([2])}, tf.ones([2])],
    ids=["longer", "dict", "tensor"],
)
def test_structures_differ(other):
    with pytest.raises(
        ValueError, match=r"same structure\. Received: .* for task 2\."
    ):
        gram_matrix([[tf.ones([2])], [tf.ones([2])], other])


@pytest.mark.parametrize(
    "other", [tf.ones([3]), tf.ones([2, 1]), tf.ones([2], tf.float16)]
)
def test_shapes_or_dtypes_differ(other):
    with pytest.raises(
        ValueError, match=r"same shape and dtype .* Received: \['float32 \(2,\)"
    ):
        gram_matrix([[None, tf.ones([2])], [None, other]])


@pytest.mark.parametrize(
    "jacobian",
    [[], [None], [tf.ones([2, 3]), tf.ones([3, 3])], [tf.constant(1.0)]],
    ids=["empty", "none", "differ", "scalar"],
)
def test_not_a_jacobian(jacobian):
    with pytest.raises(
        ValueError, match=r"tasks as their first axis, .* Received: shapes"
    ):
        jacobian_gram(jacobian)
