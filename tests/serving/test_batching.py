"""The file that tells TensorFlow Serving how to batch."""

import numpy as np
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)

from keras_mgda import serving

# `tensorflow/serving/.../session_bundle_config.proto`, as far as it is written;
# its module is in no package. The wrappers are google.protobuf's own.
SCHEMA = """
name: "batching.proto"
package: "test"
message_type {
  name: "Wrapped" field { name: "value" number: 1 type: TYPE_INT64 }
}
message_type {
  name: "BatchingParameters"
  field { name: "max_batch_size" number: 1 %s }
  field { name: "batch_timeout_micros" number: 2 %s }
  field { name: "max_enqueued_batches" number: 3 %s }
  field { name: "num_batch_threads" number: 4 %s }
  field {
    name: "allowed_batch_sizes" number: 6 type: TYPE_INT64
    label: LABEL_REPEATED
  }
  field { name: "pad_variable_length_inputs" number: 7 type: TYPE_BOOL }
}
""" % ((' type: TYPE_MESSAGE type_name: ".test.Wrapped"',) * 4)


def parse_batching(text):
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto()))
    message = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("test.BatchingParameters")
    )()
    return text_format.Parse(text, message)


def test_batching_parameters_are_parsed():
    found = parse_batching(
        serving.batching_parameters(
            {
                "max_batch_size": 64,
                "batch_timeout_micros": 0,
                "max_enqueued_batches": 100,
                "num_batch_threads": 2,
                "allowed_batch_sizes": [1, 8, 64],
                "pad_variable_length_inputs": True,
            }
        )
    )
    assert found.max_batch_size.value == 64
    assert found.HasField("batch_timeout_micros")
    assert found.max_enqueued_batches.value == 100
    assert found.num_batch_threads.value == 2
    assert list(found.allowed_batch_sizes) == [1, 8, 64]
    assert found.pad_variable_length_inputs


def test_integers_of_numpy_are_integers():
    numbers = {"max_batch_size": 8, "allowed_batch_sizes": [1, 8]}
    written = serving.batching_parameters(numbers)
    assert written == serving.batching_parameters(
        {"max_batch_size": np.int64(8), "allowed_batch_sizes": np.array([1, 8])}
    )


def test_what_is_left_out_is_the_servers_default():
    assert serving.batching_parameters({}) == ""
    found = parse_batching(serving.batching_parameters({"max_batch_size": 4}))
    assert [field.name for field, _ in found.ListFields()] == ["max_batch_size"]


@pytest.mark.parametrize(
    "batching",
    [
        {"batch_size": 4},
        {"max_batch_size": 0},
        {"max_batch_size": 4.0},
        {"batch_timeout_micros": -1},
        {"num_batch_threads": "2"},
        {"max_batch_size": True},
        {"max_batch_size": 8, "allowed_batch_sizes": [1, 8.0]},
        {"max_batch_size": 1, "allowed_batch_sizes": [True]},
        {"max_batch_size": 8, "allowed_batch_sizes": None},
        {"max_batch_size": 8, "allowed_batch_sizes": 8},
        {"pad_variable_length_inputs": "false"},
        {"pad_variable_length_inputs": 1},
    ],
)
def test_batching_that_the_server_refuses_is_refused(batching):
    with pytest.raises(ValueError, match=r"`batching` takes .* Received: "):
        serving.batching_parameters(batching)


@pytest.mark.parametrize(
    "batching",
    [
        {"allowed_batch_sizes": [1, 8]},
        {"max_batch_size": 16, "allowed_batch_sizes": [1, 8]},
        {"max_batch_size": 8, "allowed_batch_sizes": [4, 1, 8]},
        {"max_batch_size": 8, "allowed_batch_sizes": [0, 8]},
        {"max_batch_size": 8, "allowed_batch_sizes": [8, 8]},
    ],
)
def test_allowed_batch_sizes_ascend_to_the_greatest(batching):
    with pytest.raises(ValueError, match="must ascend to `max_batch_size`"):
        serving.batching_parameters(batching)
