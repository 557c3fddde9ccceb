"""What can be known of a training step on a TPU without one.

A TPU runs the whole step as one XLA program. XLA for CPU shares its front end:
what it compiles has a kernel in XLA, static shapes and nothing on the host. The
rest is what TPUs are known not to do in float64, which they emulate.
"""

import collections
import re

import keras
import pytest
import tensorflow as tf

from tests.support import runs
from tests.support.dtype_policy import dtype_policy

# On hosts only, by parts of their names. XLA drops `Assert`.
HOST_OPS = re.compile(
    "PyFunc|Host|Outside|Send|Recv|Infeed|Outfeed|Print|Assert|Summary|"
    "Iterator|Dataset|Lookup|String|File|Unique|Where$"
)
HOST_INSTRUCTIONS = {"custom-call", "infeed", "outfeed", "send", "recv"}
# A custom call that XLA itself expands, on all devices. Whether it does so
# in float64 on a TPU is not known.
EIGENVALUES = 'custom_call_target="Eigh"'
USE_EIGENVALUES = ("aligned_mtl", "config", "imtl_g")
# `instruction = shape opcode(...)`, and a tuple's shape is in parentheses.
INSTRUCTION = re.compile(r"\S+ = (\(.*?\)|\S+) ([\w-]+)\(")
# Reported as "rewriting is not implemented" by users of TPUs, such as in
# tensorflow/probability#1324, jax-ml/jax#21108 and pytorch/xla#7142.
NOT_IN_FLOAT64 = HOST_INSTRUCTIONS | {
    "all-reduce",
    "bitcast-convert",
    "cholesky",
    "rng",
    "sort",
    "triangular-solve",
}


def instructions(step, batch):
    """`(opcode, line)` of the program before XLA optimizes it."""
    program = step.experimental_get_compiler_ir(batch)(stage="hlo")
    for line in program.splitlines():
        line, *_ = line.partition(", metadata=")
        if match := INSTRUCTION.search(line):
            yield "eigh" if EIGENVALUES in line else match[2], line


# Of the others, the weighting differs only.
ALWAYS = (
    (("mgda", "representation"), "float32"),
    (("mgda", "parameters"), "mixed_bfloat16"),
)


@pytest.mark.parametrize(
    ("case", "policy"),
    [
        pytest.param(*each, marks=() if each in ALWAYS else pytest.mark.slow)
        for each in [
            *((case, "float32") for case in runs.CASES),
            *((("mgda", mode), "mixed_bfloat16") for mode in runs.MODES),
        ]
    ],
)
@pytest.mark.sample(1)
def test_step_is_one_static_xla_program(case, policy):
    with dtype_policy(policy):
        step, batch = runs.traced_step(case)
        graph = step.get_concrete_function(batch).graph
        program = list(instructions(step, batch))

    definition = graph.as_graph_def()
    nodes = [*definition.node]
    for function in definition.library.function:
        nodes += function.node_def
    assert not [node.op for node in nodes if HOST_OPS.search(node.op)]
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            assert tensor.shape.is_fully_defined(), operation

    opcodes = collections.Counter(opcode for opcode, _ in program)
    assert opcodes["dot"] > 10  # it is the program of the step
    assert not HOST_INSTRUCTIONS & opcodes.keys()
    assert ("eigh" in opcodes) == (case[0] in USE_EIGENVALUES)
    assert not [line for _, line in program if "<=" in line]  # dynamic sizes
    in_float64 = {opcode for opcode, line in program if "f64[" in line}
    if case[0].startswith("mgda"):
        assert "while" in in_float64  # the solver is in it
    assert not NOT_IN_FLOAT64 & in_float64
    in_bfloat16 = {opcode for opcode, line in program if "bf16[" in line}
    assert ("dot" in in_bfloat16) == (policy == "mixed_bfloat16")


def test_program_of_a_step_with_a_host_callback_is_not_accepted():
    """The tests above can fail."""

    @tf.function(autograph=False)
    def step(batch):
        x, _ = batch
        return tf.py_function(lambda x: x, [x], tf.float32)

    batch = keras.tree.map_structure(tf.constant, runs.data(runs.BATCH_SIZE))
    graph = step.get_concrete_function(batch).graph
    assert any(HOST_OPS.search(op.type) for op in graph.get_operations())
    with pytest.raises(tf.errors.InvalidArgumentError, match="EagerPyFunc"):
        tf.function(step, jit_compile=True)(batch)


@pytest.mark.slow
@pytest.mark.parametrize("gradients", runs.MODES)
def test_compiled_step_in_bfloat16_trains(gradients):
    with dtype_policy("mixed_bfloat16"):
        model = runs.compiled(gradients=gradients, jit_compile=True)
    (loss,) = runs.fit(model, epochs=1).history["loss"]
    in_float32 = runs.of_case_on_one(("mgda", gradients)).history["loss"]
    assert loss == pytest.approx(in_float32[0], rel=0.02)
