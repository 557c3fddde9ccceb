"""The files around a model are what TensorFlow Serving's messages parse."""

import shlex

import numpy as np
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)
from tensorflow_serving.config import model_server_config_pb2

import keras_mgda
from keras_mgda import serving
from keras_mgda.serving import config
from tests.support.serving.served_models import convolutional, mlp

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


def parse_models(path):
    return text_format.Parse(
        path.read_text(encoding="utf-8"),
        model_server_config_pb2.ModelServerConfig(),
    ).model_config_list.config


def test_models_config_is_parsed_with_its_labels(tmp_path):
    path = tmp_path / "models.config"
    serving.write_models_config(
        path,
        [
            serving.ServedModel(
                "mtl", "/models/mtl", labels={"stable": 1, "canary": 2}
            ),
            serving.ServedModel('"odd" \\ näme', "/models/odd", versions=(7,)),
            serving.ServedModel("newest", "/models/newest"),
        ],
    )
    labelled, odd, newest = parse_models(path)
    assert (labelled.name, labelled.base_path) == ("mtl", "/models/mtl")
    assert labelled.model_platform == "tensorflow"
    policy = labelled.model_version_policy
    assert list(policy.specific.versions) == [1, 2]
    assert labelled.version_labels == {"stable": 1, "canary": 2}
    assert odd.name == '"odd" \\ näme'
    assert list(odd.model_version_policy.specific.versions) == [7]
    assert not newest.HasField("model_version_policy")
    assert [child.name for child in tmp_path.iterdir()] == ["models.config"]


def test_rolling_back_is_moving_a_label(tmp_path):
    path = tmp_path / "models.config"
    for stable in (2, 1):
        model = serving.ServedModel(
            "mtl", "/models/mtl", versions=(1, 2), labels={"stable": stable}
        )
        serving.write_models_config(path, [model])
        (found,) = parse_models(path)
        assert found.version_labels == {"stable": stable}
        assert list(found.model_version_policy.specific.versions) == [1, 2]


def test_a_label_of_a_version_that_is_not_served_is_refused(tmp_path):
    model = serving.ServedModel("a", "/a", versions=(1,), labels={"new": 2})
    path = tmp_path / "models.config"
    with pytest.raises(ValueError, match=r"version that is served.*'new': 2"):
        serving.write_models_config(path, [model])
    assert not path.exists()


def test_two_models_of_one_name_are_refused(tmp_path):
    models = [serving.ServedModel("a", "/a"), serving.ServedModel("a", "/b")]
    with pytest.raises(ValueError, match="must differ in name"):
        serving.write_models_config(tmp_path / "models.config", models)


def test_the_docker_command_serves_the_folder(tmp_path):
    folder = tmp_path / "multi mnist"
    published = keras_mgda.export_saved_model(mlp()[0], folder)
    words = shlex.split(serving.docker_command(published))
    assert words[:2] == ["docker", "run"]
    assert f"type=bind,source={folder},target=/models/multi mnist" in words
    assert "MODEL_NAME=multi mnist" in words
    assert words[-1].startswith("tensorflow/serving:")


def test_clients_know_a_model_by_its_folder_and_not_by_its_links(tmp_path):
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path / "store")
    (tmp_path / "mtl").mkdir()
    (tmp_path / "mtl" / "1").symlink_to(published.path)
    (tmp_path / "link").symlink_to(tmp_path / "mtl")
    for name in ("mtl", "link"):
        linked = serving.read(tmp_path / name / "1")
        command = serving.docker_command(linked)
        assert f"source={tmp_path}/mtl,target=/models/{name} " in command
        assert f"MODEL_NAME={name} " in command
        assert f"/v1/models/{name}:predict" in serving.curl_command(linked)


def test_the_docker_command_serves_what_the_config_names(tmp_path):
    """`base_path` is a folder that the server sees, and labels may be given."""
    published = keras_mgda.export_saved_model(
        mlp()[0], tmp_path / "my models" / "mtl", batching={"max_batch_size": 4}
    )
    path = tmp_path / "my models" / "served.config"
    words = shlex.split(serving.docker_command(published, path))
    assert f"type=bind,source={path.parent},target=/models" in words
    options = words[words.index("tensorflow/serving:2.20.0") + 1 :]
    assert options == [
        "--model_config_file=/models/served.config",
        "--model_config_file_poll_wait_seconds=5",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching",
        "--enable_per_model_batching_parameters",
    ]
    assert not any(word.startswith("MODEL_NAME") for word in words)


def test_the_docker_command_turns_batching_on(tmp_path):
    published = keras_mgda.export_saved_model(
        mlp()[0], tmp_path / "mtl", batching={"max_batch_size": 4}
    )
    words = shlex.split(serving.docker_command(published))
    assert words[-2:] == [
        "--enable_batching",
        "--enable_per_model_batching_parameters",
    ]


def test_the_curl_command_is_short_for_large_rows(tmp_path):
    model, rows = convolutional()
    published = keras_mgda.export_saved_model(
        model, tmp_path / "my mtl", warmup=rows
    )
    command = serving.curl_command(published)
    assert len(command) < 300
    assert "[[[" in command
    assert command.endswith("http://localhost:8501/v1/models/my%20mtl:predict")


def test_a_long_file_is_named_and_not_shown():
    assert config._repeated(b"x" * 10_000) == (
        '{"b64": base64.b64encode(open("FILE", "rb").read()).decode()}'
    )


def test_a_command_for_a_signature_that_is_not_there_is_refused(tmp_path):
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path / "mtl")
    with pytest.raises(ValueError, match="predict_none"):
        serving.curl_command(published, "predict_none")
