"""A traced model is cut into functions that each task needs, and no others."""

import functools
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import keras_mgda
from keras_mgda.serving import artifact, task_graph
from keras_mgda.serving.graph_def import by_name, called_functions
from keras_mgda.serving.operations import reached
from tests.support.serving.refusals import refused
from tests.support.serving.served_models import PARAMETERS, ask

# What a block may copy, and what stands for its inputs.
FREE = ("Const", "Placeholder")


@st.composite
def graphs(draw):
    """Sources of each operation, and the operations that each task reads.

    Operations 0 and 1 are the inputs; the others add two earlier ones.
    """
    size = draw(st.integers(3, 20))
    sources = [
        draw(st.tuples(*[st.integers(0, node - 1)] * 2))
        for node in range(2, size)
    ]
    tasks = draw(
        st.dictionaries(
            st.sampled_from("abcde"),
            st.lists(st.integers(0, size - 1), min_size=1, max_size=2),
            min_size=1,
        )
    )
    return sources, tasks


def build(sources, tasks, inputs):
    nodes = [*inputs]
    for number, (left, right) in enumerate(sources, start=2):
        # A constant of its own, and one that all share.
        nodes.append(nodes[left] + 2.0 * nodes[right] + float(number))
    return {
        task: {
            f"{task}{i}": tf.identity(nodes[n]) for i, n in enumerate(chosen)
        }
        for task, chosen in tasks.items()
    }


@settings(max_examples=25, deadline=None)
@given(graphs(), st.data())
def test_some_blocks_give_what_the_whole_graph_gives(graph, data):
    sources, tasks = graph
    spec = tf.TensorSpec([None], tf.float32)
    traced = tf.function(
        lambda x, y: build(sources, tasks, (x, y)), autograph=False
    ).get_concrete_function(spec, spec)
    outputs = traced.structured_outputs
    blocks = task_graph.split_by_tasks(
        traced, {task: list(named.values()) for task, named in outputs.items()}
    )
    some = data.draw(st.sets(st.sampled_from(sorted(tasks)), min_size=1))
    inputs = (tf.constant([1.0, 2.0]), tf.constant([3.0, -1.0]))
    names = [tensor.name for tensor in traced.inputs]
    known = task_graph.run(blocks, some, dict(zip(names, inputs, strict=True)))
    expected = build(sources, tasks, inputs)
    for task in some:
        for key, tensor in outputs[task].items():
            np.testing.assert_array_equal(
                known[tensor.name], expected[task][key]
            )
    # Each set of tasks has one block, and each operation is in one block.
    assert len({block.tasks for block in blocks}) == len(blocks)
    placed = Counter(
        operation for block in blocks for operation in operations_of(block)
    )
    assert set(placed.values()) <= {1}
    # A task's blocks hold what its outputs depend on, and nothing else.
    for task, named in outputs.items():
        held = {
            operation
            for block in task_graph.needed(blocks, [task])
            for operation in operations_of(block)
        }
        assert held == ancestors(named.values())


def operations_of(block):
    """Names in the traced graph of a block's operations."""
    prefix = f"{task_graph._name(block.tasks)}/"
    graph = block.function.graph
    return [
        operation.name.removeprefix(prefix)
        for operation in graph.get_operations()
        if operation.name.startswith(prefix) and operation.type not in FREE
    ]


def ancestors(tensors):
    """Names of the operations that tensors depend on."""
    found, pending = {}, [tensor.op for tensor in tensors]
    while pending:
        operation = pending.pop()
        if operation.name not in found:
            found[operation.name] = operation.type
            pending += [tensor.op for tensor in operation.inputs]
            pending += operation.control_inputs
    return {name for name, kind in found.items() if kind not in FREE}


def functions_of(written):
    """`{signature: its functions by name}` of an artifact."""
    graph = written.meta_graph.graph_def
    library = by_name(graph.library.function)
    nodes = {node.name: node for node in graph.node}
    return {
        signature: called_functions(
            [
                nodes[spec.name.split(":")[0]]
                for spec in declared.outputs.values()
            ],
            library,
        )
        for signature, declared in written.signatures.items()
    }


def of_blocks(functions):
    """The names of the blocks among functions."""
    return {
        name.removeprefix("__inference_").rpartition("_")[0]
        for name in functions
        if "head_" in name or "encoder_of" in name
    }


def test_tasks_that_share_more_have_an_encoder_of_their_own(published):
    called = functions_of(published("tree")[-1])
    encoder = "encoder_of_3_tasks"
    assert {name: of_blocks(found) for name, found in called.items()} == {
        "predict_far": {encoder, "head_far"},
        "predict_near_1": {encoder, "encoder_of_2_tasks", "head_near_1"},
        "predict_near_2": {encoder, "encoder_of_2_tasks", "head_near_2"},
        "serving_default": {
            encoder,
            "encoder_of_2_tasks",
            "head_far",
            "head_near_1",
            "head_near_2",
        },
    }


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.sample(3)
def test_signatures_call_one_and_the_same_encoder(name, published):
    called = functions_of(published(name)[-1])
    encoders = [
        {key for key in found if "encoder" in key or "head_only" in key}
        for found in called.values()
    ]
    assert all(len(found) >= 1 for found in encoders)
    assert len(set.intersection(*encoders)) == 1
    # Each operation of the model is in the artifact once.
    every = {key: f for found in called.values() for key, f in found.items()}
    reads = Counter(
        node.name
        for function in every.values()
        for node in function.node_def
        if node.op == "ReadVariableOp"
    )
    assert max(reads.values()) == 1


@pytest.mark.parametrize("name", ["mlp", "subclassed", "convolutional"])
def test_predict_runs_its_own_head_only(name, published):
    called = functions_of(published(name)[-1])
    heads = {
        task: {
            key for key in called[f"predict_{task}"] if f"head_{task}" in key
        }
        for task in (
            k.removeprefix("predict_") for k in called if "_d" not in k
        )
    }
    assert len(heads) == 2
    for task, own in heads.items():
        assert own
        for other, theirs in heads.items():
            if other != task:
                assert not theirs & called[f"predict_{task}"].keys()


def trace(function, *specs):
    traced = tf.function(function, autograph=False).get_concrete_function(
        *specs
    )
    outputs = traced.structured_outputs
    return traced, task_graph.split_by_tasks(
        traced, {task: [tensor] for task, tensor in outputs.items()}
    )


VECTOR = tf.TensorSpec([None, 2], tf.float32)


def nodes_of(blocks):
    for block in blocks:
        definition = block.function.graph.as_graph_def()
        yield from definition.node
        for function in definition.library.function:
            yield from function.node_def


class Checked(layers.Layer):
    """Refuses rows, by an assertion whose result nothing reads."""

    def __init__(self, check):
        super().__init__()
        self.check = check

    def call(self, *tensors):
        self.check(*tensors)
        return tensors[0]

    def compute_output_spec(self, x, *_):
        return keras.KerasTensor(x.shape, x.dtype)


def below(limit):
    def check(x):
        tf.debugging.assert_less(x, float(limit))

    return check


def in_a_condition(x):
    def check():
        below(4)(x)
        return 1

    tf.cond(tf.reduce_any(x > 0.0), check, lambda: 0)


def in_a_loop(x):
    def check(row):
        below(4)(row)
        return row

    tf.map_fn(check, x)


CHECKS = {
    "assert_less": below(4),
    "Assert": lambda x: tf.debugging.Assert(tf.reduce_all(x < 4.0), [x]),
    "check_numerics": lambda x: tf.debugging.check_numerics(
        tf.where(x < 4.0, x, np.inf), "too large"
    ),
    "in a function": tf.function(below(4)),
    "in a condition": in_a_condition,
    "in a loop": in_a_loop,
    "after a print": lambda x: (tf.print("seen", x), below(4)(x)),
    "after a change": lambda x: (COUNT.assign_add(1.0), below(4)(x)),
    "after a draw": lambda x: (tf.random.normal([]), below(4)(x)),
    "of a variable": lambda x: tf.debugging.assert_less(x, LIMIT),
}
COUNT, LIMIT = tf.Variable(0.0), tf.Variable(4.0)


def refusals(model, directory, values, **options):
    """`{signature: those of the values that it refuses}`, checked by Keras."""
    published = keras_mgda.export_saved_model(model, directory, **options)
    rows = {v: np.full((1, 2), v, "float32") for v in values}
    found = {}
    with artifact.loaded(published) as answer:
        for name in published.signatures:
            refuses = functools.partial(fails, answer, name)
            found[name] = {v for v in values if refuses({"x": rows[v]})}
    predicted = {v for v in values if fails(model, rows[v])}
    if "tasks" not in options:
        assert found["serving_default"] == predicted
    return found, reached(published)[0]


def fails(function, *arguments):
    try:
        function(*arguments)
    except tf.errors.InvalidArgumentError:
        return True
    return False


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.sample(4)
def test_what_the_model_refuses_every_signature_refuses(check, tmp_path):
    x = keras.Input((2,), name="x")
    z = Checked(CHECKS[check])(x)
    model = keras.Model(x, {"a": z * 2.0, "b": z + 1.0})
    found, nodes = refusals(model, tmp_path, (1.0, 5.0))
    assert list(found.values()) == [{5.0}] * 3
    other = {"PrintV2", "AssignAddVariableOp", "RandomStandardNormal"}
    assert not other & {node.op for node in nodes}


def test_an_assertion_guards_the_tasks_that_need_what_it_looks_at(tmp_path):
    """In an encoder, in heads, and between a head and the encoder."""
    x = keras.Input((2,), name="x")
    z = Checked(below(50))(x)
    a = Checked(below(40))(z * 1.0)
    b = Checked(below(30))(z * 1.0)
    c = z * 1.0
    c = Checked(lambda c, z: tf.debugging.assert_less(c + z, 40.0))(c, z)
    model = keras.Model(x, {"a": a, "b": b, "c": c})
    values = (15.0, 25.0, 35.0, 45.0, 55.0)
    found, _ = refusals(model, tmp_path, values, groups={"ab": ["a", "b"]})
    assert found == {
        "serving_default": {25.0, 35.0, 45.0, 55.0},
        "predict_a": {45.0, 55.0},
        "predict_b": {35.0, 45.0, 55.0},
        "predict_c": {25.0, 35.0, 45.0, 55.0},
        "ab": {35.0, 45.0, 55.0},
    }
    found, nodes = refusals(model, tmp_path, values, tasks=["a"])
    assert found["serving_default"] == found["predict_a"] == {45.0, 55.0}
    functions = [node.op for node in nodes].count("If")
    assert functions == 2, "what guards heads that are left out goes with them"


def test_an_assertion_on_two_heads_guards_both(tmp_path):
    x = keras.Input((2,), name="x")
    a, b, c = x * 2.0, x + 3.0, x - 1.0
    a = Checked(lambda *ab: tf.debugging.assert_less(*ab))(a, b)
    model = keras.Model(x, {"a": a, "b": b, "c": c})
    found, _ = refusals(model, tmp_path, (1.0, 5.0))
    assert found == {
        "serving_default": {5.0},
        "predict_a": {5.0},
        "predict_b": {5.0},
        "predict_c": set(),
    }


def test_an_assertion_on_an_input_that_no_task_reads_guards_all(tmp_path):
    x, y = keras.Input((2,), name="x"), keras.Input((2,), name="y")
    z = Checked(lambda x, y: below(4)(y))(x, y)
    model = keras.Model([x, y], {"a": z * 2.0, "b": z + 1.0})
    published = keras_mgda.export_saved_model(model, tmp_path)
    for name, signature in published.signatures.items():
        assert set(signature.inputs) == {"x", "y"}
        rows = np.full((1, 2), 5.0, "float32")
        with pytest.raises(tf.errors.InvalidArgumentError):
            ask(published, name, {"x": rows, "y": rows})


def test_a_python_function_that_may_guard_is_refused(tmp_path):
    x = keras.Input((2,), name="x")
    z = Checked(lambda x: tf.numpy_function(abs, [x], tf.float32))(x)
    refused("has no Python", keras.Model(x, {"a": z * 2.0}), tmp_path)


def test_what_no_task_needs_is_dropped():
    state = tf.Variable(0.0)

    def function(x):
        tf.print("side effect")
        state.assign_add(1.0)
        unused = tf.linalg.matmul(x, x, transpose_b=True)
        del unused
        return {"a": x * 2.0, "b": x + 1.0}

    _, blocks = trace(function, VECTOR)
    operations = {node.op for node in nodes_of(blocks)}
    assert operations >= {"Mul", "AddV2"}
    assert not operations & {"PrintV2", "AssignAddVariableOp", "MatMul"}


def test_devices_and_gradients_are_forgotten():
    @tf.custom_gradient
    def forked(x):
        return (x, x + 0.0), lambda *upstream: tf.add_n(upstream)

    @tf.function
    def nested(x):
        with tf.device("/GPU:0"):
            return forked(x * 2.0)[1]

    def function(x):
        with tf.device("/job:localhost/replica:0/task:0/device:CPU:0"):
            left, right = forked(x)
            return {"a": left * 2.0, "b": nested(right)}

    traced, blocks = trace(function, VECTOR)
    whole = traced.graph.as_graph_def()
    assert any(node.device for node in whole.node)
    assert any("_gradient_op_type" in node.attr for node in whole.node)
    for node in nodes_of(blocks):
        assert not node.device
        assert "_gradient_op_type" not in node.attr


def test_shapes_that_only_the_model_knew_are_kept():
    def function(x):
        z = tf.io.decode_raw(tf.strings.as_string(x), tf.uint8)
        z.set_shape([None, 2, 7])
        return {"a": z + tf.constant(1, tf.uint8), "b": z}

    _, blocks = trace(function, VECTOR)
    shapes = [
        tensor.shape.as_list()
        for block in blocks
        for tensor in block.function.outputs
    ]
    assert shapes == [[None, 2, 7]] * len(shapes)


def marked(features):
    z = keras_mgda.SharedRepresentation()(layers.Dense(3)(features))
    return keras_mgda.MGDAModel(features, heads_on(z, z))


def forked(features):
    z = keras_mgda.GradientFork(2)(layers.Dense(3)(features))
    return keras.Model(features, heads_on(*z))


def plain(features):
    z = layers.Dense(3)(features)
    return keras.Model(features, heads_on(z, z))


def heads_on(first, second):
    return {"a": layers.Dense(1)(first), "b": layers.Dense(2)(second)}


@pytest.mark.parametrize("build", [marked, forked])
def test_training_leaves_nothing_in_the_graph(build, tmp_path):
    """What is served is what a plain model of these layers would serve."""

    def operations(build, fit):
        model = build(keras.Input((4,), name="features"))
        if fit:
            model.compile("adam", loss="mse", run_eagerly=True)
            x = np.ones((8, 4), "float32")
            y = {"a": np.ones((8, 1)), "b": np.ones((8, 2))}
            model.fit(x, y, verbose=0)
        published = keras_mgda.export_saved_model(model, tmp_path)
        nodes, _ = reached(published)
        kinds = Counter(node.op for node in nodes)
        # The marks are the identity, and as such in the graph.
        del kinds["Identity"], kinds["IdentityN"], kinds["NoOp"]
        return kinds, published.weights_bytes

    assert operations(build, fit=True) == operations(plain, fit=False)
