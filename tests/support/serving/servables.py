"""Versions of a model, loaded and followed as TensorFlow Serving does it."""

import re
import threading
import time
from pathlib import Path

import grpc
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    predict_pb2,
    prediction_log_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from tests.support.serving.c_loader import Model

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
    """Follows a model: its newest version, or those that a config names."""

    def __init__(self, path):
        self.path = path
        self.named = ()
        self.labels = {}
        self.served = {}
        self.failed = {}

    def states(self):
        """`[(version, state, error message)]`."""
        return [
            *((v, STATES.END, text) for v, text in self.failed.items()),
            *((v, STATES.AVAILABLE, "") for v in self.served),
        ]

    def poll(self):
        numbers = {
            int(child.name)
            for child in self.path.iterdir()
            if re.fullmatch(r"[+-]?[0-9]+", child.name)
        }
        wanted = numbers & set(self.named or [max(numbers, default=None)])
        for version in wanted - self.served.keys() - self.failed.keys():
            try:
                loaded = Servable(self.path / str(version), version)
                self.served = {**self.served, version: loaded}
            except Exception as error:
                self.failed[version] = str(error)
        # The old version answers until a new one is there.
        kept = {v: s for v, s in self.served.items() if v in wanted}
        self.served = kept or self.served


class Models:
    """The models of a server, by the names of their folders."""

    def __init__(self, paths, poll_seconds, config=None):
        self.config = config
        self.folders = {path.resolve().name: Folder(path) for path in paths}
        self._poll()
        threading.Thread(
            target=self._follow, args=(poll_seconds,), daemon=True
        ).start()

    def servable(self, name, version=None, label=None):
        folder = self.folders.get(name)
        served = folder.served if folder else {}
        if label:
            if not folder or label not in folder.labels:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"Unrecognized servable version label: {label}",
                )
            version = folder.labels[label]
        elif version is None:
            version = max(served, default=None)
        if version not in served:
            raise RequestError(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: {name} {version or 'latest'}",
            )
        return served[version]

    def _follow(self, poll_seconds):
        while True:
            time.sleep(poll_seconds)
            self._poll()

    def _poll(self):
        if self.config:
            self._read_config()
        for folder in self.folders.values():
            folder.poll()

    def _read_config(self):
        """As `ServerCore::ReloadConfig`, which looks at the labels first.

        A label that is in use moves only to a version that is loaded: else
        nothing of the file is done, and it is read again at the next poll.
        """
        listed = text_format.Parse(
            self.config.read_text(encoding="utf-8"),
            model_server_config_pb2.ModelServerConfig(),
        ).model_config_list.config
        folders = {}
        for model in listed:
            path = self.config.parent / Path(model.base_path).relative_to(
                "/models"
            )
            folder = self.folders.get(model.name) or Folder(path)
            for label, version in model.version_labels.items():
                moves = folder.labels.get(label, version) != version
                if moves and version not in folder.served:
                    return
            folders[model.name] = folder
        for model in listed:
            folder = folders[model.name]
            folder.labels = dict(model.version_labels)
            folder.named = tuple(model.model_version_policy.specific.versions)
        self.folders = folders
