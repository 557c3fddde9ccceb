"""A stand-in for TensorFlow Serving, by the rules in its source.

    python -m tests.support.serving.model_server saved_models/mtl
    python -m tests.support.serving.model_server --model-config-file FILE

Prints `{"grpc": port, "rest": port}` and serves each folder's newest version,
or those that the file names, on 127.0.0.1 until its standard input closes. The
messages and stubs are the real ones of tensorflow-serving-api, the model is
loaded by TensorFlow's C library with XLA off. Written after TensorFlow Serving
2.20:

- a child of the folder whose name is a number is a version, complete or not;
- a new version is loaded beside the old one, which goes once the new one is
  there, so that requests never fail in between;
- the records of the warm-up file are run first: more than 1000, one of another
  kind than predict, or one that fails, and the version is not served;
- the file with the models is read again at each poll, and a label that is in
  use moves only to a version that is loaded. Its `/models` is its own folder;
- REST as in its `json_tensor.cc`, for what these tests send.

What it does not have: batching, Classify, Regress and MultiInference.
"""

import argparse
import concurrent.futures
import http.server
import json
import sys
import threading
from pathlib import Path

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from tests.support.serving.rest import Rest
from tests.support.serving.servables import Models, RequestError


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models):
        self.models = models

    def Predict(self, request, context):  # noqa: N802
        def answer():
            return self._servable(request).predict(request)

        return _answered(answer, context)

    def GetModelMetadata(self, request, context):  # noqa: N802
        def answer():
            servable = self._servable(request)
            signatures = get_model_metadata_pb2.SignatureDefMap(
                signature_def=servable.signatures
            )
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = request.model_spec.name
            response.model_spec.version.value = servable.version
            response.metadata["signature_def"].Pack(signatures)
            return response

        return _answered(answer, context)

    def _servable(self, request):
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        return self.models.servable(spec.name, version, spec.version_label)


class Status(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models):
        self.models = models

    def GetModelStatus(self, request, context):  # noqa: N802
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, state, message in self.models.folders[
            request.model_spec.name
        ].states():
            status = response.model_version_status.add()
            status.version, status.state = version, state
            status.status.error_message = message
        return response


def _answered(answer, context):
    try:
        return answer()
    except RequestError as error:
        context.abort(error.code, str(error))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--model-config-file", type=Path)
    parser.add_argument("--poll-seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    models = Models(
        arguments.folders, arguments.poll_seconds, arguments.model_config_file
    )
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Prediction(models), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        Status(models), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    Rest.models = models
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rest)
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    print(json.dumps({"grpc": port, "rest": rest.server_port}), flush=True)
    sys.stdin.read()
    rest.shutdown()
    server.stop(None)


if __name__ == "__main__":
    main()
