"""The warm-up requests of a published model, as TensorFlow Serving reads JSON.

    python -m tests.support.serving.request_bodies saved_models/mtl

prints a line for each request to the newest version, the body of a `:predict`.
"""

import base64
import json
import sys

from keras_mgda import serving
from keras_mgda.serving import warmup


def bodies(path):
    for request in warmup.read(path / warmup.PATH):
        inputs = {name: to_json(a) for name, a in request.inputs.items()}
        yield {"signature_name": request.signature, "inputs": inputs}


def to_json(array):
    if array.dtype != object:
        return array.tolist()
    if array.ndim:
        return [to_json(part) for part in array]
    return {"b64": base64.b64encode(array.item()).decode()}


if __name__ == "__main__":
    for found in bodies(list(serving.list_versions(sys.argv[1]).values())[-1]):
        print(json.dumps(found))
