"""Requests and their answers, as TensorFlow Serving's warm-up file holds them.

The server sends every record of `assets.extra/tf_serving_warmup_requests`
through the model before it takes requests, and refuses a version one of whose
records fails. A record is a `tensorflow.serving.PredictionLog`:

    PredictionLog    predict_log: PredictLog = 6
    PredictLog       request: PredictRequest = 1, response: PredictResponse = 2
    PredictRequest   model_spec: ModelSpec = 1, inputs: map = 2
    PredictResponse  outputs: map = 1
    ModelSpec        name: string = 1, signature_name: string = 3

These five are written and read here, field by field, since the package that
defines them drags in a TensorFlow of its own. The server ignores the response;
here it holds what the Keras model answered, which the artifact must answer too.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2

PATH = Path("assets.extra", "tf_serving_warmup_requests")

# TensorFlow Serving refuses a version with more.
MAX_RECORDS = 1000

# Larger answers are not stored: the server reads the whole file at each load.
LARGEST_ANSWER = 2**16


@dataclasses.dataclass(frozen=True)
class Request:
    """One request and its answer.

    Attributes:
        signature: The name of the signature that is asked.
        inputs: `{input: array}`, batch first.
        answer: `{output: array}`. Empty where it is not known.
    """

    signature: str
    inputs: dict[str, np.ndarray]
    answer: dict[str, np.ndarray]

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.inputs.values()), ()))


def write(path: Path, model_name: str, requests: Iterable[Request]) -> None:
    """Writes a warm-up file."""
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            writer.write(encode(model_name, request))


def read(path: Path) -> list[Request]:
    """Reads a warm-up file.

    Raises:
        ValueError: It is not there, or TensorFlow Serving would refuse it.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} must hold requests to predict. Received: no such file."
        )
    try:
        records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
        requests = [decode(record) for record in records]
    except (tf.errors.OpError, DecodeError, LookupError, ValueError) as error:
        raise ValueError(
            f"{path} must hold requests to predict, as TFRecords of "
            f"PredictionLog. Received: {error}."
        ) from error
    if len(requests) > MAX_RECORDS:
        raise ValueError(
            f"{path} must hold {MAX_RECORDS} requests at most. Received: "
            f"{len(requests)}."
        )
    return requests


def encode(model_name: str, request: Request) -> bytes:
    """A request as a serialized `PredictionLog`."""
    # No version: it is not known before the model is published.
    spec = _field(1, model_name.encode()) + _field(
        3, request.signature.encode()
    )
    predict_request = _field(1, spec) + _tensors(2, request.inputs)
    predict_log = _field(1, predict_request)
    if sum(a.nbytes for a in request.answer.values()) <= LARGEST_ANSWER:
        predict_log += _field(2, _tensors(1, request.answer))
    return _field(6, predict_log)


def decode(record: bytes) -> Request:
    """The request in a serialized `PredictionLog`.

    Raises:
        DecodeError, LookupError, ValueError: It is broken, or another kind.
    """
    predict_log = dict(_fields(dict(_fields(record))[6]))
    request = list(_fields(predict_log[1]))
    spec = dict(_fields(dict(request)[1]))
    return Request(
        signature=spec.get(3, b"serving_default").decode(),
        inputs=_arrays(2, request),
        answer=_arrays(1, _fields(predict_log.get(2, b""))),
    )


def _tensors(number: int, arrays: Mapping[str, np.ndarray]) -> bytes:
    """A `map<string, TensorProto>` field."""
    return b"".join(
        _field(number, _field(1, name.encode()) + _field(2, _tensor(array)))
        for name, array in arrays.items()
    )


def _arrays(
    number: int, fields: Iterable[tuple[int, bytes]]
) -> dict[str, np.ndarray]:
    entries = [dict(_fields(entry)) for n, entry in fields if n == number]
    return {
        entry[1].decode(): tf.make_ndarray(
            tensor_pb2.TensorProto.FromString(entry[2])
        )
        for entry in entries
    }


def _tensor(array: np.ndarray) -> bytes:
    """A serialized `TensorProto`, with equal values at the end stored once."""
    flat = array.ravel()
    varied = np.flatnonzero(flat != flat[-1:])
    stored = 2 + (varied[-1] if varied.size else -1)
    if 2 * stored < flat.size:
        proto = tf.make_tensor_proto(flat[:stored], shape=array.shape)
    else:
        proto = tf.make_tensor_proto(array)
    return proto.SerializeToString()


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field: its key, its length, its bytes."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, the high bit on all but the last."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message; others are passed over."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte <= 0x7F:
                return value
            shift += 7

    while position < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        if kind == 2:
            yield number, message[position : position + size]
        position += size
    if position != len(message):
        raise ValueError(
            "A warm-up record must be whole. Received: one that is cut short."
        )
