"""The REST interface of the stand-in for TensorFlow Serving."""

import base64
import http.server
import json
import re

import grpc
import numpy as np
import tensorflow as tf

from tests.support.serving.servables import STATES, RequestError


class Rest(http.server.BaseHTTPRequestHandler):
    """`POST /v1/models/NAME[/versions/N|/labels/L]:predict`, and `GET`."""

    protocol_version = "HTTP/1.1"
    models = None
    path_of_model = re.compile(
        r"/v1/models/([^/:]+)(?:/versions/([0-9]+)|/labels/([^/:]+))?"
        r"(:predict|/metadata)?"
    )

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._respond(lambda *asked: self._predict(json.loads(body), *asked))

    def do_GET(self):
        self._respond(self._states)

    def log_message(self, *_):
        pass

    def _respond(self, answer):
        match = self.path_of_model.fullmatch(self.path)
        try:
            if not match:
                raise RequestError(None, f"Malformed request: {self.path}")
            name, version, label, _ = match.groups()
            status = 200
            content = answer(name, int(version) if version else None, label)
        except RequestError as error:
            status = 404 if error.code is grpc.StatusCode.NOT_FOUND else 400
            content = {"error": str(error)}
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _states(self, name, version, label):
        self.models.servable(name, version, label)
        return {
            "model_version_status": [
                {"version": str(v), "state": STATES.State.Name(state)}
                for v, state, _ in self.models.folders[name].states()
            ]
        }

    def _predict(self, body, name, version, label):
        servable = self.models.servable(name, version, label)
        signature = body.get("signature_name", "serving_default")
        declared = servable.signature(signature).inputs
        rows = "instances" in body
        if rows:
            columns = _columns(body["instances"], list(declared))
        else:
            inputs = body["inputs"]
            named = isinstance(inputs, dict) and "b64" not in inputs
            columns = inputs if named else {only(declared): inputs}
        answer = servable.answer(
            signature,
            {
                key: _array(value, declared[key].dtype)
                if key in declared
                else np.array(value)
                for key, value in columns.items()
            },
        )
        encoded = {key: _json(key, array) for key, array in answer.items()}
        if len(encoded) == 1:
            content = only(encoded.values())
        elif rows:
            if len({len(array) for array in encoded.values()}) > 1:
                raise RequestError(None, "Tensor has inconsistent batch size")
            content = [
                dict(zip(encoded, row, strict=True))
                for row in zip(*encoded.values(), strict=True)
            ]
        else:
            content = encoded
        return {"predictions" if rows else "outputs": content}


def _columns(instances, names):
    """The row format as columns."""
    named = isinstance(instances[0], dict) and "b64" not in instances[0]
    if not named:
        return {only(names): instances}
    if any(row.keys() != instances[0].keys() for row in instances):
        raise RequestError(None, "Not all instances have the same inputs")
    return {key: [row[key] for row in instances] for key in instances[0]}


def _array(value, dtype):
    """A JSON value as a tensor of this type."""
    dtype = tf.as_dtype(dtype)
    if dtype == tf.string:
        return _strings(value)
    array = np.array(value)
    if dtype.is_integer and array.dtype.kind != "i":
        raise RequestError(None, f"JSON Value: {value} is not of type int")
    if dtype in (tf.float16, tf.bfloat16):
        raise RequestError(None, f"Failed to process: type {dtype.name}")
    return array.astype(dtype.as_numpy_dtype)


def _strings(value):
    if isinstance(value, list):
        items = [_strings(item) for item in value]
        return np.array(items, object)
    if isinstance(value, dict):
        return base64.b64decode(value["b64"], validate=True)
    return value.encode()


def _json(name, array):
    if array.ndim == 0:
        raise RequestError(
            None, f"Tensor name: {name} has no shape information"
        )
    if array.dtype == np.float16:
        raise RequestError(None, "Failed to write JSON value for type: half")
    if array.dtype == object:
        encode = base64.b64encode if name.endswith("_bytes") else bytes
        return [encode(value).decode() for value in array]
    return array.tolist()


def only(items):
    (item,) = items
    return item
