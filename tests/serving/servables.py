"""Versions of a model, loaded and followed as TensorFlow Serving does it."""

import re
import threading
import time
from pathlib import Path

import grpc
import tensorflow as tf
from c_loader import Model
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    predict_pb2,
    prediction_log_pb2,
)

STATES = get_model_status_pb2.ModelVersionStatus
WARMUP = Path("assets.extra", "tf_serving_warmup_requests")


class RequestError(Exception):
    """An error with a status code, for the client."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Servable:
    """One loaded version."""

    def __init__(self, path, version):
        self.version = version
        saved = saved_model_pb2.SavedModel.FromString(
            (path / "saved_model.pb").read_bytes()
        )
        self.signatures = saved.meta_graphs[0].signature_def
        self.model = Model(Path(tf.__file__).parent, path)
        if (path / WARMUP).exists():
            self._warm_up(path / WARMUP)

    def predict(self, request):
        """`PredictRequest` to `PredictResponse`."""
        name = request.model_spec.signature_name or "serving_default"
        inputs = {
            key: tf.make_ndarray(proto) for key, proto in request.inputs.items()
        }
        answer = self.answer(name, inputs)
        chosen = list(request.output_filter) or list(answer)
        if unknown := set(chosen) - set(answer):
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {unknown}",
            )
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.signature_name = name
        response.model_spec.version.value = self.version
        for key in chosen:
            proto = tf.make_tensor_proto(answer[key])
            response.outputs[key].CopyFrom(proto)
        return response

    def answer(self, name, inputs):
        declared = self.signature(name).inputs
        if set(inputs) != set(declared):
            extra, missing = (
                set(inputs) - set(declared),
                set(declared) - set(inputs),
            )
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "input size does not match signature: Sent extra: "
                f"{extra or ''}. Missing but required: {missing or ''}.",
            )
        for key, array in inputs.items():
            sent = tf.as_dtype(
                "string" if array.dtype == object else array.dtype
            )
            if sent != tf.as_dtype(declared[key].dtype):
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"input {key!r} has dtype {sent.name}",
                )
        try:
            return self.model.answer(name, inputs)
        except RuntimeError as error:
            raise RequestError(grpc.StatusCode.INTERNAL, str(error)) from error

    def signature(self, name):
        if name not in self.signatures:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{name}" not found.',
            )
        return self.signatures[name]

    def _warm_up(self, file):
        for number, record in enumerate(tf.data.TFRecordDataset(str(file))):
            if number == 1000:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "Number of warmup records exceeds the maximum (1000)",
                )
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            if log.WhichOneof("log_type") != "predict_log":
                raise RequestError(
                    grpc.StatusCode.UNIMPLEMENTED, "Unsupported log_type"
                )
            self.predict(log.predict_log.request)


class Folder:
    """Follows the newest version of a model."""

    def __init__(self, path):
        self.path = path
        self.served = None
        self.failed = {}

    def states(self):
        """`[(version, state, error message)]`."""
        states = [(v, STATES.END, text) for v, text in self.failed.items()]
        if self.served:
            states.append((self.served.version, STATES.AVAILABLE, ""))
        return states

    def poll(self):
        numbers = [
            int(child.name)
            for child in self.path.iterdir()
            if re.fullmatch(r"[+-]?[0-9]+", child.name)
        ]
        newest = max(numbers, default=None)
        current = self.served.version if self.served else None
        if newest == current or newest in self.failed:
            return
        try:
            # The old version answers until the new one is there.
            self.served = Servable(self.path / str(newest), newest)
        except Exception as error:
            self.failed[newest] = str(error)


class Models:
    """The models of a server, by the names of their folders."""

    def __init__(self, paths, poll_seconds):
        self.folders = {path.resolve().name: Folder(path) for path in paths}
        self._poll()
        threading.Thread(
            target=self._follow, args=(poll_seconds,), daemon=True
        ).start()

    def servable(self, name, version=None):
        served = self.folders[name].served if name in self.folders else None
        if not served or version not in (None, served.version):
            raise RequestError(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: {name} {version or 'latest'}",
            )
        return served

    def _follow(self, poll_seconds):
        while True:
            time.sleep(poll_seconds)
            self._poll()

    def _poll(self):
        for folder in self.folders.values():
            folder.poll()
