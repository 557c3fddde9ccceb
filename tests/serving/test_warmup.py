"""Warm-up records are what TensorFlow Serving's own messages say."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tensorflow_serving.apis import prediction_log_pb2

from keras_mgda.serving import warmup

DTYPES = ("float32", "float64", "int32", "int64", "uint8", "bool", "float16")

names = st.text(min_size=1, max_size=8)
shapes = arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6)
numbers = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(np.dtype(dtype), shapes)
)
strings = shapes.flatmap(
    lambda shape: st.lists(
        st.binary(max_size=20),
        min_size=int(np.prod(shape)),
        max_size=int(np.prod(shape)),
    ).map(lambda values: np.array(values, object).reshape(shape))
)
tensors = st.dictionaries(names, numbers | strings, max_size=4)
requests = st.builds(
    warmup.Request,
    signature=names,
    inputs=tensors,
    answer=tensors,
)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def real(model_name, request):
    """The record, made with the stubs of tensorflow-serving-api."""
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = model_name
    log.predict_log.request.model_spec.signature_name = request.signature
    for name, array in request.inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(
            tf.make_tensor_proto(array)
        )
    log.predict_log.response.SetInParent()
    for name, array in request.answer.items():
        log.predict_log.response.outputs[name].CopyFrom(
            tf.make_tensor_proto(array)
        )
    return log


@settings(max_examples=40, deadline=None)
@given(names, requests)
def test_the_real_messages_parse_what_is_written(model_name, request):
    log = prediction_log_pb2.PredictionLog.FromString(
        warmup.encode(model_name, request)
    )
    assert log.WhichOneof("log_type") == "predict_log"
    spec = log.predict_log.request.model_spec
    assert (spec.name, spec.signature_name) == (model_name, request.signature)
    # The version is not known before the model is published.
    assert not spec.HasField("version")
    for found, expected in (
        (log.predict_log.request.inputs, request.inputs),
        (log.predict_log.response.outputs, request.answer),
    ):
        same({k: tf.make_ndarray(v) for k, v in found.items()}, expected)


@settings(max_examples=40, deadline=None)
@given(names, requests)
def test_what_the_real_messages_write_is_read(model_name, request):
    record = real(model_name, request).SerializeToString()
    found = warmup.decode(record)
    assert found.signature == request.signature
    same(found.inputs, request.inputs)
    same(found.answer, request.answer)


def test_a_record_is_the_real_one_to_the_byte():
    request = warmup.Request(
        signature="predict_left",
        inputs={"image": np.arange(6.0, dtype="float32").reshape(2, 3)},
        answer={"left": np.array([[0.5], [-0.5]], "float32")},
    )
    written = warmup.encode("mtl", request)
    assert written == real("mtl", request).SerializeToString(deterministic=True)


def test_fields_of_other_kinds_are_passed_over():
    request = warmup.Request("", {"x": np.ones((1, 2), "float32")}, {})
    log = real("mtl", request)
    log.log_metadata.sampling_config.sampling_rate = 0.5
    log.predict_log.request.model_spec.version.value = 2**40
    found = warmup.decode(log.SerializeToString())
    same(found.inputs, request.inputs)
    assert found.answer == {}


def test_a_record_without_a_signature_asks_the_default():
    log = real("mtl", warmup.Request("", {}, {}))
    log.predict_log.request.model_spec.ClearField("signature_name")
    found = warmup.decode(log.SerializeToString())
    assert found.signature == "serving_default"


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "object"])
def test_equal_values_at_the_end_are_stored_once(dtype):
    array = np.zeros((8, 100, 100), dtype)
    if dtype == "object":
        array[:] = b"tail"
    array.flat[:5] = [b"a"] * 5 if dtype == "object" else [1, 0, 1, 0, 1]
    request = warmup.Request("s", {"x": array}, {})
    record = warmup.encode("mtl", request)
    assert len(record) < 200
    same(warmup.decode(record).inputs, request.inputs)


def test_a_large_answer_is_left_out():
    inputs = {"x": np.ones((1, 1), "float32")}
    for rows, stored in ((100, True), (100_000, False)):
        answer = {"y": np.random.default_rng(0).normal(size=(rows, 1))}
        record = warmup.encode("mtl", warmup.Request("s", inputs, answer))
        assert bool(warmup.decode(record).answer) == stored


def test_a_file_is_read_as_it_was_written(tmp_path):
    asked = [
        warmup.Request("a", {"x": np.ones((n, 2))}, {"y": np.ones(n)})
        for n in (1, 3)
    ]
    path = tmp_path / warmup.PATH
    warmup.write(path, "mtl", asked)
    for found, expected in zip(warmup.read(path), asked, strict=True):
        assert found.signature == expected.signature
        same(found.inputs, expected.inputs)
        same(found.answer, expected.answer)


def records(path, *contents):
    with tf.io.TFRecordWriter(str(path)) as file:
        for content in contents:
            file.write(content)


RECORD = warmup.encode("mtl", warmup.Request("s", {"x": np.ones(3)}, {}))
CLASSIFY = prediction_log_pb2.PredictionLog()
CLASSIFY.classify_log.SetInParent()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        RECORD[:-4],
        RECORD.replace(b"\x08\x02", b"\xff\xff"),
        CLASSIFY.SerializeToString(),
    ],
    ids=["empty", "garbage", "cut", "broken tensor", "classify"],
)
def test_a_record_that_the_server_refuses_is_refused(content, tmp_path):
    records(tmp_path / "file", RECORD, content)
    with pytest.raises(ValueError, match="must hold requests to predict"):
        warmup.read(tmp_path / "file")


def test_a_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(RECORD)
    with pytest.raises(ValueError, match="must hold requests to predict"):
        warmup.read(tmp_path / "file")
    with pytest.raises(ValueError, match="must hold requests to predict"):
        warmup.read(tmp_path / "none")


def test_more_records_than_the_server_takes_are_refused(tmp_path):
    records(tmp_path / "file", *[RECORD] * 1000)
    assert len(warmup.read(tmp_path / "file")) == 1000
    records(tmp_path / "file", *[RECORD] * 1001)
    with pytest.raises(ValueError, match=r"1000 requests at most.*1001"):
        warmup.read(tmp_path / "file")
