"""What would go wrong with an exported model in TensorFlow Serving.

Each check reads the files of the artifact and yields a sentence for what it
finds: what must hold, what was found, how to mend it.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

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
    artifact: Artifact, requests: Sequence[warmup.Request] | None = None
) -> list[str]:
    """What is wrong with an exported model.

    Args:
        artifact: The exported model.
        requests: What to ask it, and what the Keras model answers. `None` takes
            the stored warm-up requests, and repeats the row of a signature
            that is asked for one row only.

    Returns:
        A sentence for each problem, empty if it passes. The requests are run
        only if the signatures and the graph are in order.
    """
    # Signatures share tensors: what is wrong with one is told once.
    found = list(
        dict.fromkeys([*_signatures(artifact), *operations.problems(artifact)])
    )
    if found:
        return found
    if requests is None:
        try:
            stored = warmup.read(artifact.path / warmup.PATH)
        except ValueError as error:
            return [f"{error} Publish it with keras_mgda.export_saved_model."]
        requests = [*stored, *_repeated(stored)]
    return list(_answers(artifact, requests))


def _repeated(requests: Sequence[warmup.Request]) -> Iterator[warmup.Request]:
    """Requests of three rows for what is asked at one batch size only.

    What the model answers to them is not known.
    """
    asked = {request.signature: request for request in requests}
    sizes = {(request.signature, request.num_rows) for request in requests}
    for name, size in sorted(sizes):
        if size and sum(name == other for other, _ in sizes) == 1:
            rows = [0, 0, 0] if size == 1 else [0]
            yield dataclasses.replace(
                asked[name],
                inputs={n: a[rows] for n, a in asked[name].inputs.items()},
                answer={},
            )


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
    artifact: Artifact, requests: Sequence[warmup.Request]
) -> Iterator[str]:
    allowed = tolerance(artifact)
    wrong: set[str] = set()
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(loaded(artifact))
        except tf.errors.OpError as error:
            yield f"It must load. Found: {error}. Publish it again."
            return
        for request in requests:
            asked = f"{request.signature} at batch size {request.num_rows}"
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
                for problem in _answer(name, found[name], request, allowed):
                    wrong.add(name)  # Each is told once.
                    yield f"output {name!r} of {asked}: {problem}"
    unasked = artifact.signatures.keys() - {r.signature for r in requests}
    if unasked:
        yield f"Every signature must be run. Found: none for {sorted(unasked)}."


def _answer(
    name: str, found: np.ndarray, request: warmup.Request, allowed: float
) -> Iterator[str]:
    expected = request.answer.get(name)
    if found.ndim == 0 or len(found) != request.num_rows:
        yield (
            "it must have a row for each row of the request. Found: shape "
            f"{found.shape}. Keep the batch as the first dimension."
        )
    elif has_nan(found):
        row = int(np.flatnonzero([has_nan(answer) for answer in found])[0])
        shown = {n: _short(a[row]) for n, a in request.inputs.items()}
        if expected is None:
            whose = "Look at the weights"
        elif has_nan(expected):
            whose = "Keras answers NaN to it too: look at the weights"
        else:
            whose = (
                "Keras answers a number: look for layers that are in training "
                "mode whatever `training` says"
            )
        yield (
            f"it must be a number. Found: NaN for the row {shown}. {whose}, or "
            "give rows of real data as `warmup`."
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


def has_nan(array: np.ndarray) -> bool:
    """Whether some value is no number."""
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def _short(value: Any) -> str:
    """A value of one row, with the first and last ones of many."""
    return np.array2string(np.asarray(value), threshold=6, edgeitems=2)


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
