"""What can be known of a training step on a TPU without one.

A TPU runs the whole step as one XLA program. XLA for CPU shares its front end:
what it compiles has a kernel in XLA, static shapes and nothing on the host. The
rest is what TPUs are known not to do in float64, which they emulate.
"""

import collections
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.support import processes, runs

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


def traced_step(case, **compile_args):
    """The whole step for a batch of known size, as `jit_compile` runs it."""
    weighting, gradients = case
    model = runs.compiled(
        of_encoder=(layers.BatchNormalization, lambda: layers.Dropout(0.3)),
        weighting=runs.WEIGHTINGS[weighting],
        gradients=gradients,
        metrics={"a": "accuracy"},
        **compile_args,
    )
    batch = keras.tree.map_structure(tf.constant, runs.data(runs.BATCH_SIZE))
    model.train_on_batch(*batch)  # makes all variables
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    return step, batch


def instructions(step, batch):
    """`(opcode, line)` of the program before XLA optimizes it."""
    program = step.experimental_get_compiler_ir(batch)(stage="hlo")
    for line in program.splitlines():
        line, *_ = line.partition(", metadata=")
        if match := INSTRUCTION.search(line):
            yield "eigh" if EIGENVALUES in line else match[2], line


# A third of the weightings always, each in one mode.
ALWAYS = {("mgda", mode) for mode in runs.MODES}
ALWAYS |= {
    (weighting, runs.MODES[i % 2])
    for i, weighting in enumerate([*runs.WEIGHTINGS][::3])
}


@pytest.mark.parametrize(
    ("case", "policy"),
    [
        pytest.param(
            case, "float32", marks=() if case in ALWAYS else pytest.mark.slow
        )
        for case in runs.CASES
    ]
    + [(("mgda", mode), "mixed_bfloat16") for mode in runs.MODES],
)
def test_step_is_one_static_xla_program(case, policy):
    keras.config.set_dtype_policy(policy)
    try:
        step, batch = traced_step(case)
        graph = step.get_concrete_function(batch).graph
        program = list(instructions(step, batch))
    finally:
        keras.config.set_dtype_policy("float32")

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


@pytest.mark.parametrize(
    "gradients",
    ["representation", pytest.param("parameters", marks=pytest.mark.slow)],
)
def test_compiled_step_in_bfloat16_trains(gradients):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = runs.compiled(gradients=gradients, jit_compile=True)
    finally:
        keras.config.set_dtype_policy("float32")
    (loss,) = runs.fit(model, epochs=1).history["loss"]
    in_float32 = runs.of_case_on_one(("mgda", gradients)).history["loss"]
    assert loss == pytest.approx(in_float32[0], rel=0.02)


EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "tpu.py"
FEW = ("--epochs", 3, "--images", 256)


@pytest.fixture(scope="module")
def printed_on_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    ended = processes.alone(
        *("--batch-size", 64, "--saved-models", folder, *FEW), script=EXAMPLE
    )
    return numbers_of(ended, replicas=1)


def numbers_of(ended, replicas):
    """Test loss, task weights and percentages that the example printed."""
    assert ended.code == 0, ended.output
    (found,) = re.findall(
        rf"(?s)^{replicas} replicas, (.*?)^(?:Published|\Z)", ended.output, re.M
    )
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", found)]
    assert len(numbers) == 5
    return numbers


@pytest.mark.parametrize(
    ("strategy", "replicas"),
    [
        ("mirrored", 2),
        pytest.param("mirrored", 4, marks=pytest.mark.slow),
        ("multiworker", 2),
    ],
)
def test_example_trains_on_replicas_as_on_one(
    tmp_path, printed_on_one, strategy, replicas
):
    """The same global batch; one of the workers writes."""
    start = processes.workers if strategy == "multiworker" else processes.alone
    ended = start(
        *("--strategy", strategy, "--devices", replicas),
        *("--batch-size", 64 // replicas, "--saved-models", tmp_path),
        *("--backup", tmp_path / "backup", *FEW),
        script=EXAMPLE,
    )
    ended = ended if strategy == "multiworker" else [ended]
    for worker in ended:
        assert numbers_of(worker, replicas) == pytest.approx(
            printed_on_one, rel=1e-5
        )
    published = ["Published:" in worker.output for worker in ended]
    assert published == [True, False][: len(ended)]
    folder = tmp_path / "tpu"
    assert {path.name for path in folder.iterdir()} == {"1", "model.keras"}
    assert not (tmp_path / "backup").exists()  # it is of no use any more

    x = np.random.default_rng(0).random((3, 28, 28, 1), "float32")
    expected = keras.saving.load_model(folder / "model.keras")(x)
    served = tf.saved_model.load(str(folder / "1")).signatures
    for task, logits in served["serving_default"](image=x).items():
        np.testing.assert_allclose(logits, expected[task], atol=1e-6)


def test_example_with_what_a_tpu_is_given(tmp_path, printed_on_one):
    """In bfloat16, and with all steps of an epoch in one call."""
    ended = processes.alone(
        *("--batch-size", 64, "--saved-models", tmp_path, *FEW),
        *("--mixed-bfloat16", "--steps-per-execution", 4),
        script=EXAMPLE,
    )
    loss, *_ = numbers_of(ended, replicas=1)
    assert loss == pytest.approx(printed_on_one[0], rel=0.01)
    assert loss != printed_on_one[0]


def test_example_with_a_batch_of_more_images_than_there_are(tmp_path):
    ended = processes.alone(
        "--images", 8, "--saved-models", tmp_path, script=EXAMPLE
    )
    assert ended.code == 1
    assert "32 images in a batch are more than there are." in ended.output


def test_example_says_that_it_was_not_run_on_a_tpu():
    assert "IT WAS NOT RUN ON A TPU" in EXAMPLE.read_text()[:200]
