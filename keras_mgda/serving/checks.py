"""What would go wrong with an exported model in TensorFlow Serving.

Each check reads the files of the artifact and yields a sentence for what it
finds: what must hold, what was found, how to mend it.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mgda.serving import warmup
from keras_mgda.serving.artifact import Artifact, loaded
from keras_mgda.serving.graph_def import by_name, called_functions

_MADE_UP_NAME = re.compile(r"(keras_tensor|input_layer|args|output)(_\d+)*")

_PYTHON = re.compile("PyFunc|PyFuncStateless|EagerPyFunc")
_WRITES = re.compile(
    r"Assign\w*VariableOp|ResourceScatter\w+|LookupTable(Insert|Remove)V2"
)

_FALSE = tf.compat.v1.AttrValue(b=False)

# How far an answer may be from the model's, relative to the greatest value.
# Graph optimizers reorder sums; half precision keeps 8 to 11 bits of a number.
_TOLERANCE = 1e-3
_HALF_TOLERANCE = 3e-2


def problems(
    artifact: Artifact,
    answers: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> list[str]:
    """What is wrong with an exported model.

    Args:
        artifact: The exported model.
        answers: What the Keras model answers to each warm-up request, as
            `{output: array}`. `None` takes what is stored with the requests.

    Returns:
        A sentence for each problem, empty if it passes. The warm-up requests
        are run only if the signatures and the graph are in order.
    """
    found = [*_signatures(artifact), *_operations(artifact)]
    if found:
        return found
    try:
        requests = warmup.read(artifact.path / warmup.PATH)
    except ValueError as error:
        return [f"{error} Publish it with keras_mgda.export_saved_model."]
    if answers is None:
        answers = [request.answer for request in requests]
    return list(_answers(artifact, requests, answers))


def _signatures(artifact: Artifact) -> Iterator[str]:
    if "serving_default" not in artifact.signatures:
        yield (
            "A request without a signature name asks 'serving_default'. "
            f"Found: {list(artifact.signatures)}."
        )
    tensors = {}
    for name, signature in artifact.signatures.items():
        sides = {"input": signature.inputs, "output": signature.outputs}
        for side, specs in sides.items():
            if not specs:
                yield f"{name}: it must have an {side}. Found: none."
            tensors.update({(side, key): specs[key] for key in specs})
    for (side, key), spec in tensors.items():
        for problem in _tensor(key, spec):
            yield f"{side} {key!r}: {problem}"


def _tensor(name: str, spec: tf.TensorSpec) -> Iterator[str]:
    if _MADE_UP_NAME.fullmatch(name):
        yield (
            "it must have a name that says what it is. Found: one that was "
            "made up. Name the inputs and answer a dict of named outputs."
        )
    if spec.shape.rank == 0:
        yield (
            "its first dimension must be the batch. Found: a scalar. Repeat it "
            "for each row, or leave it out."
        )
    elif spec.shape.rank and spec.shape[0] is not None:
        yield (
            "its first dimension must be any batch size. Found: shape "
            f"{spec.shape}, with the batch baked in. Build the model without "
            "`batch_size`, and reshape with -1 in the place of the batch."
        )
    if spec.dtype in (tf.float16, tf.bfloat16):
        yield (
            "REST has no half precision. Found: "
            f"{spec.dtype.name}. Cast it to float32."
        )


def _operations(artifact: Artifact) -> Iterator[str]:
    nodes, functions = _reached(artifact)
    compiled = [node.name for node in nodes if _must_compile(node)]
    compiled += [name for name, f in functions.items() if _must_compile(f)]
    if compiled:
        yield (
            "TensorFlow Serving fails on what only XLA can run, unless it was "
            f"started for it. Found: {_listed(compiled)}, made by "
            "tf.function(jit_compile=True). Drop jit_compile there; "
            "model.compile(jit_compile=True) may stay."
        )
    python = [node.name for node in nodes if _PYTHON.fullmatch(node.op)]
    if python:
        yield (
            f"TensorFlow Serving has no Python. Found: {_listed(python)}, made "
            "by tf.py_function or tf.numpy_function. Replace them by "
            "TensorFlow operations, or do that work in the client."
        )
    writes = [node.name for node in nodes if _WRITES.fullmatch(node.op)]
    if writes:
        yield (
            "An answer must not depend on earlier requests. Found: "
            f"{_listed(writes)}, which change state. Build the model with "
            "layers that keep none, as stateful=False."
        )
    yield from _unread_weights(artifact, {node.name for node in nodes})


def _reached(artifact: Artifact) -> tuple[list[Any], dict[str, Any]]:
    """The nodes and functions on which some signature's answer depends."""
    graph = artifact.meta_graph.graph_def
    nodes = {node.name: node for node in graph.node}
    served: dict[str, Any] = {}
    pending = [
        spec.name
        for signature in artifact.signatures.values()
        for spec in signature.outputs.values()
    ]
    while pending:
        name = pending.pop().lstrip("^").split(":")[0]
        if name not in served:
            served[name] = nodes[name]
            pending.extend(nodes[name].input)
    functions = called_functions(
        served.values(), by_name(graph.library.function)
    )
    inner = (node for f in functions.values() for node in f.node_def)
    return [*served.values(), *inner], functions


def _must_compile(called: Any) -> bool:
    # `attr[...]` would add the attribute.
    return called.attr.get("_XlaMustCompile", _FALSE).b


def _unread_weights(artifact: Artifact, reached: set[str]) -> Iterator[str]:
    stored = artifact.weights_bytes
    read = sum(
        tf.as_dtype(node.attr["dtype"].type).size
        * (tf.TensorShape(node.attr["shape"].shape).num_elements() or 0)
        for node in artifact.meta_graph.graph_def.node
        if node.op == "VarHandleOp" and node.name in reached
    )
    if stored - read > 0.1 * stored:
        yield (
            f"Weights must be stored once. Found: {stored} bytes of weights of "
            f"which the signatures read {read}. model.export() stores each "
            "weight twice, and the server loads both: publish with "
            "keras_mgda.export_saved_model."
        )


def _answers(
    artifact: Artifact,
    requests: Sequence[warmup.Request],
    answers: Sequence[Mapping[str, np.ndarray]],
) -> Iterator[str]:
    allowed = tolerance(artifact)
    sizes = defaultdict(set)
    wrong: set[str] = set()
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(loaded(artifact))
        except tf.errors.OpError as error:
            yield f"It must load. Found: {error}. Publish it again."
            return
        for request, right in zip(requests, answers, strict=True):
            size = len(next(iter(request.inputs.values())))
            sizes[request.signature].add(size)
            asked = f"{request.signature} at batch size {size}"
            try:
                found = answer(request.signature, request.inputs)
            except (
                tf.errors.OpError,
                KeyError,
                TypeError,
                ValueError,
            ) as error:
                yield f"{asked}: it must answer. Found: {error}"
                continue
            for name in sorted(found.keys() - wrong):
                expected = right.get(name)
                for problem in _answer(found[name], expected, size, allowed):
                    wrong.add(name)  # Each is told once.
                    yield f"output {name!r} of {asked}: {problem}"
    for name in artifact.signatures:
        if len(sizes[name]) < 2:
            yield (
                f"{name}: it must be run at two batch sizes. Found: requests "
                f"of batch sizes {sorted(sizes[name])}."
            )


def _answer(
    found: np.ndarray, expected: np.ndarray | None, size: int, allowed: float
) -> Iterator[str]:
    if found.ndim == 0 or len(found) != size:
        yield (
            "it must have a row for each row of the request. Found: shape "
            f"{found.shape}. Keep the batch as the first dimension."
        )
    elif found.dtype.kind == "f" and np.isnan(found).any():
        yield (
            "it must be a number. Found: NaN. Look at the weights, or give "
            "rows of real data as `warmup`."
        )
    elif expected is not None:
        error = difference(found, expected)
        if not error <= allowed:  # NaN is an error.
            yield (
                "it must be what the Keras model answers. Found: a difference "
                f"of {error:.1e}, relative to the greatest value. Look for "
                "layers that draw random numbers, or that are in training "
                "mode whatever `training` says."
            )


def tolerance(artifact: Artifact) -> float:
    """The greatest `difference` that rounding explains."""
    half = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum}
    nodes, _ = _reached(artifact)
    types = {a.type for node in nodes for a in node.attr.values()}
    # Graphics cards multiply float32 with the precision of float16.
    if half & types or tf.config.list_physical_devices("GPU"):
        return _HALF_TOLERANCE
    return _TOLERANCE


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """How far `found` is from `expected`, as a part of the greatest value.

    For what is no number, the part that differs, less the one in a hundred
    that rounding may turn in ties, as in an argmax over pixels.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    if not found.size:
        return 0.0
    if found.dtype.kind not in "fc":
        return max(0.0, float(np.mean(found != expected)) - 0.01)
    same = found == expected  # Infinite logits, that mask a class, too.
    distance = np.where(same, 0.0, np.abs(found - np.where(same, 0, expected)))
    greatest = np.max(np.abs(expected), where=np.isfinite(expected), initial=0)
    # An answer that cancels to nothing is no measure of its own rounding.
    return float(np.max(distance) / (greatest + 1e-3))


def _listed(names: Sequence[str]) -> str:
    """The first names of many."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
