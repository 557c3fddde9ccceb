"""Published models behind a server, asked over gRPC and REST."""

import concurrent.futures
import json
import shutil
import threading
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

import keras_mgda
from examples import serve
from keras_mgda import serving
from keras_mgda.serving import warmup
from tests.support.serving.request_bodies import bodies
from tests.support.serving.running import model_server, wait_until
from tests.support.serving.served_models import answers_of, mlp, randomized

pytestmark = pytest.mark.slow

NAMES = ("mlp", "convolutional", "lookups", "two_inputs")


@pytest.fixture(scope="module")
def server(published):
    folders = [published(name)[-1].path.parent for name in NAMES]
    with model_server(*folders) as ports:
        yield ports


def predict(ports, name, inputs, signature="serving_default", **options):
    """Asks over gRPC; returns the version and `{output: array}`."""
    request = predict_pb2.PredictRequest(**options)
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, array in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
    with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Predict(request, 10.0)
    outputs = {k: tf.make_ndarray(v) for k, v in response.outputs.items()}
    return response.model_spec.version.value, outputs


@pytest.mark.parametrize("name", NAMES)
def test_grpc_answers_as_keras(name, server, published):
    model, rows, written = published(name)
    expected = answers_of(model, rows)
    for signature, declared in written.signatures.items():
        inputs = {key: rows[key] for key in declared.inputs}
        version, found = predict(server, name, inputs, signature)
        assert version == 1
        assert found.keys() == declared.outputs.keys()
        for key, array in found.items():
            np.testing.assert_allclose(array, expected[key], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_rest_answers_every_warm_up_request(name, server, published):
    url = f"http://127.0.0.1:{server['rest']}/v1/models/{name}:predict"
    written = published(name)[-1]
    requests = warmup.read(written.path / warmup.PATH)
    for body, request in zip(bodies(written.path), requests, strict=True):
        with urllib.request.urlopen(url, json.dumps(body).encode()) as found:
            outputs = json.load(found)["outputs"]
        if len(request.answer) == 1:  # TensorFlow Serving drops its name.
            outputs = {next(iter(request.answer)): outputs}
        assert outputs.keys() == request.answer.keys()
        for key, expected in request.answer.items():
            np.testing.assert_allclose(outputs[key], expected, atol=1e-5)


def test_a_signature_can_be_filtered_by_outputs(server):
    _, rows = mlp()
    _, found = predict(server, "mlp", rows, output_filter=["left"])
    assert found.keys() == {"left"}


def test_the_server_knows_the_signatures(server, published):
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        metadata_field=["signature_def"]
    )
    request.model_spec.name = "two_inputs"
    with grpc.insecure_channel(f"127.0.0.1:{server['grpc']}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.GetModelMetadata(request, 10.0)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    declared = published("two_inputs")[-1].signatures
    assert found.signature_def.keys() >= declared.keys()
    for name, signature in declared.items():
        assert (
            found.signature_def[name].inputs.keys() == signature.inputs.keys()
        )


@pytest.mark.parametrize(
    ("signature", "inputs", "code"),
    [
        ("predict_nothing", {}, grpc.StatusCode.FAILED_PRECONDITION),
        ("predict_left", {"image": [1.0]}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_wrong_request_is_told_so(signature, inputs, code, server):
    with pytest.raises(grpc.RpcError) as error:
        predict(server, "mlp", inputs, signature)
    assert error.value.code() == code


def test_versions_change_under_load_without_a_failed_request(tmp_path):
    rows = mlp()[1]
    versions = [randomized(mlp()[0], seed=seed) for seed in range(4)]
    expected = [answers_of(model, rows)["left"] for model in versions]
    folder = tmp_path / "mtl"
    keras_mgda.export_saved_model(versions[0], folder)
    done = threading.Event()
    seen = []

    def ask_on():
        while not done.is_set():
            version, found = predict(ports, "mtl", rows)  # Raises if it fails.
            np.testing.assert_allclose(
                found["left"], expected[version - 1], atol=1e-6
            )
            seen.append(version)

    with (
        model_server(folder) as ports,
        concurrent.futures.ThreadPoolExecutor(2) as clients,
    ):
        asking = [clients.submit(ask_on) for _ in range(2)]
        for number, model in enumerate(versions[1:], start=2):
            keras_mgda.export_saved_model(model, folder, keep=2)
            wait_for(ports, number)
            wait_until(lambda wanted=number: wanted in seen or failed(asking))
        # Roll back: the newest goes, the one before it is loaded again.
        shutil.move(folder / "4", tmp_path / "withdrawn")
        wait_for(ports, 3)
        done.set()
        for client in asking:
            client.result()
    assert set(seen) == {1, 2, 3, 4}
    assert set(serving.list_versions(folder)) == {3}


def failed(clients):
    return any(client.done() for client in clients)


def wait_for(ports, version):
    """Waits until the server answers with a version, and some more answers."""
    rows = mlp()[1]
    wait_until(lambda: predict(ports, "mtl", rows)[0] == version)


def test_a_version_with_a_bad_warm_up_record_is_not_served(tmp_path):
    """What the checks before publishing are for."""
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path / "mtl")
    with tf.io.TFRecordWriter(
        str(published.path / "assets.extra" / "tf_serving_warmup_requests")
    ) as file:
        file.write(b"")
    with model_server(tmp_path / "mtl") as ports:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "mtl"
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            (status,) = stub.GetModelStatus(request, 10.0).model_version_status
    assert status.state == status.END
    assert "log_type" in status.status.error_message
    assert serving.problems(serving.read(published.path))


def test_a_label_moves_to_a_loaded_version_only(tmp_path):
    """So a new version is listed first, and gets its label later."""
    models = [randomized(mlp()[0], seed=seed) for seed in range(2)]
    for model in models:
        keras_mgda.export_saved_model(model, tmp_path / "mtl")
    config = tmp_path / "models.config"

    def write(stable, *versions):
        serve.write_config(config, "mtl", versions, {"stable": stable})

    def stable():
        return ask_label(ports, "stable")

    write(1, 1)
    with model_server("--model-config-file", config) as ports:
        assert stable() == 1
        write(2, 1, 2)  # Refused, and so version 2 is not loaded either.
        for _ in range(100):
            assert stable() == 1
            assert predict(ports, "mtl", mlp()[1])[0] == 1
        with pytest.raises(grpc.RpcError) as error:
            ask_label(ports, "canary")
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        write(1, 1, 2)
        wait_for(ports, 2)  # Without a label, the greatest answers.
        assert stable() == 1
        for version in (2, 1):
            write(version, 1, 2)
            wait_until(lambda wanted=version: stable() == wanted)


def ask_label(ports, label):
    """The version that answers to a label."""
    spec = model_pb2.ModelSpec(version_label=label)
    return predict(ports, "mtl", mlp()[1], model_spec=spec)[0]
