"""What would go wrong with an exported model in TensorFlow Serving.

Each check reads the files of the artifact and yields a sentence for what it
finds: what must hold, what was found, how to mend it.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from keras_mgda.serving import operations, warmup
from keras_mgda.serving.artifact import Artifact, loaded
from keras_mgda.serving.inputs import HALF, MADE_UP

# What TensorFlow Serving reads from JSON and writes to it.
_JSON = {
    *(tf.float32, tf.float64, tf.bool, tf.string),
    *(tf.int8, tf.int16, tf.int32, tf.int64),
    *(tf.uint8, tf.uint32, tf.uint64),
}

# How far an answer may be from the model's, relative to the size of the values.
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
    # Signatures share tensors: what is wrong with one is told once.
    found = list(
        dict.fromkeys([*_signatures(artifact), *operations.problems(artifact)])
    )
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
    for name, signature in artifact.signatures.items():
        sides = {"input": signature.inputs, "output": signature.outputs}
        for side, specs in sides.items():
            if not specs:
                yield f"{name}: it must have an {side}. Found: none."
            for key, spec in specs.items():
                for problem in _tensor(key, spec):
                    yield f"{side} {key!r}: {problem}"


def _tensor(name: str, spec: tf.TensorSpec) -> Iterator[str]:
    if not spec.name:  # It is several tensors in the graph.
        yield (
            "it must be dense. Found: a sparse or ragged tensor. Convert it "
            "in the model, as with tf.sparse.to_dense."
        )
        return
    if MADE_UP.fullmatch(name):
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
    if spec.dtype not in _JSON:
        yield (
            "REST must know its dtype. Found: "
            f"{spec.dtype.name}. Cast it, as to float32 or int32."
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
                f"of {error:.1e}, relative to the size of the values. Look for "
                "layers that are in training mode whatever `training` says. If "
                "the answer is zero but for rounding, give rows of real data "
                "as `warmup`."
            )


def tolerance(artifact: Artifact) -> float:
    """The greatest `difference` that rounding explains."""
    half = {dtype.as_datatype_enum for dtype in HALF}
    nodes, _ = operations.reached(artifact)
    types = {a.type for node in nodes for a in node.attr.values()}
    # Graphics cards multiply float32 with the precision of float16.
    if half & types or tf.config.list_physical_devices("GPU"):
        return _HALF_TOLERANCE
    return _TOLERANCE


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """How far `found` is from `expected`, relative to the size of the values.

    The size is the value's own or, since a value that cancels is no measure of
    its own rounding, that of the others if it is greater: the greatest, cut at
    four medians of those that differ, or at 1. So a mask of -1e9, which is
    equal to the last bit, does not hide the rest.

    For what is no number, the part that differs, less the one in a hundred
    that rounding may turn in ties, as in an argmax over pixels.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    differ = found != expected
    if not differ.any():
        return 0.0
    if found.dtype.kind != "f":
        return max(0.0, float(np.mean(differ)) - 0.01)
    size = np.abs(np.where(np.isfinite(expected), expected, 0))
    others = min(np.max(size), max(1, 4 * np.median(size[differ])))
    # Nothing but zeros may be expected, and anything found.
    with np.errstate(all="ignore"):
        distance = np.abs(found[differ] - expected[differ])
        return float(np.max(distance / np.maximum(size[differ], others)))
