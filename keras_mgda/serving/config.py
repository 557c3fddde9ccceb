"""The files and command lines of TensorFlow Serving around a model."""

import base64
import dataclasses
import json
import operator
import os
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from keras_mgda.serving import warmup
from keras_mgda.serving.artifact import Artifact

BATCHING = "batching_params.pbtxt"

_IMAGE = "tensorflow/serving:2.20.0"

# The least value of each field of `tensorflow.serving.BatchingParameters`.
_BATCHING_FIELDS = {
    "max_batch_size": 1,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1,
    "num_batch_threads": 1,
}

# The longest request that a command line shows as it is.
_LONGEST = 1000


def batching_parameters(batching: Mapping[str, Any]) -> str:
    """The text of `batching_params.pbtxt`.

    Args:
        batching: Integers for `max_batch_size`, `batch_timeout_micros`,
            `max_enqueued_batches` and `num_batch_threads`; ascending integers
            up to `max_batch_size` for `allowed_batch_sizes`; a bool for
            `pad_variable_length_inputs`. What is left out is the server's
            default.

    Raises:
        ValueError: The server would refuse it.

    Example:

    ```python
    batching_parameters({"max_batch_size": 8, "allowed_batch_sizes": [1, 8]})
    ```
    """
    for name, value in batching.items():
        if not _may_be(name, value):
            raise ValueError(
                f"`batching` takes integers for {', '.join(_BATCHING_FIELDS)}, "
                "a list of them for allowed_batch_sizes, and a bool for "
                f"pad_variable_length_inputs. Received: {name}={value!r}."
            )
    fields = dict(batching)
    sizes = list(fields.pop("allowed_batch_sizes", []))
    pad = fields.pop("pad_variable_length_inputs", None)
    ascending = all(a < b for a, b in zip([0, *sizes], sizes, strict=False))
    if sizes and not (ascending and sizes[-1] == fields.get("max_batch_size")):
        raise ValueError(
            "`allowed_batch_sizes` must ascend to `max_batch_size`. Received: "
            f"{sizes} and {fields.get('max_batch_size')}."
        )
    lines = [f"{name} {{ value: {value} }}" for name, value in fields.items()]
    lines += [f"allowed_batch_sizes: {size}" for size in sizes]
    if pad is not None:
        lines.append(f"pad_variable_length_inputs: {str(pad).lower()}")
    return "".join(f"{line}\n" for line in lines)


def is_integer(value: Any) -> bool:
    """Whether this is an integer of any kind, and no bool."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _may_be(name: str, value: Any) -> bool:
    """Whether a field of `BatchingParameters` can have this value."""
    if name == "pad_variable_length_inputs":
        return isinstance(value, bool)
    if name == "allowed_batch_sizes":
        return isinstance(value, Collection) and all(map(is_integer, value))
    least = _BATCHING_FIELDS.get(name)
    return least is not None and is_integer(value) and value >= least


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """One model of a `models.config`.

    Attributes:
        name: What clients call it.
        base_path: Its folder of versions, as the server sees it.
        versions: The versions to serve. Empty is those that have labels, or,
            without labels, the newest.
        labels: `{label: version}`, as `{"stable": 1, "canary": 2}`. Clients
            ask for a label, and rolling back is moving it.
    """

    name: str
    base_path: str
    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


def write_models_config(
    path: str | os.PathLike[str], models: Iterable[ServedModel]
) -> None:
    """Writes the file that `--model_config_file` names, in one step.

    The server reads it again when it was started with
    `--model_config_file_poll_wait_seconds`, as `docker_command` starts it. It
    then unloads each model and version that the file no longer names, so list
    them all. A label that is in use may move only to a version that the server
    has loaded, or it refuses the file: list a new version first, and move the
    label once it is available.

    Args:
        path: The file.
        models: Every model that is to be served.

    Raises:
        ValueError: Two models share a name, or a label points to a version
            that is not served.

    Example:

    ```python
    write_models_config(
        "saved_models/models.config",
        [ServedModel("mtl", "/models/mtl", labels={"stable": 1, "canary": 2})],
    )
    ```
    """
    models = list(models)
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"Models must differ in name. Received: {names}")
    blocks = "".join(_model_config(model) for model in models)
    draft = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
    draft.write_text(f"model_config_list {{\n{blocks}}}\n", encoding="utf-8")
    os.replace(draft, path)


def _model_config(model: ServedModel) -> str:
    versions = model.versions or tuple(sorted(set(model.labels.values())))
    unserved = {n: v for n, v in model.labels.items() if v not in versions}
    if unserved:
        raise ValueError(
            "A label must point to a version that is served. Received: "
            f"{unserved} with versions {versions}."
        )
    lines = [
        f"name: {_quoted(model.name)}",
        f"base_path: {_quoted(model.base_path)}",
        'model_platform: "tensorflow"',
    ]
    if versions:
        numbers = " ".join(f"versions: {version}" for version in versions)
        lines.append(f"model_version_policy {{ specific {{ {numbers} }} }}")
    lines += [
        f"version_labels {{ key: {_quoted(label)} value: {version} }}"
        for label, version in model.labels.items()
    ]
    body = "".join(f"    {line}\n" for line in lines)
    return f"  config {{\n{body}  }}\n"


def docker_command(
    artifact: Artifact, models_config: str | os.PathLike[str] | None = None
) -> str:
    """A command that serves a published model.

    Args:
        artifact: A published version. The server takes the newest one that
            stands beside it, or those that `models_config` names.
        models_config: The file of `write_models_config`. What lies in its
            folder is in `/models` for the server, and changes of the file are
            taken over within seconds.
    """
    base = _folder_of_versions(artifact)
    command = ["docker", "run", "--rm", "-p", "8500:8500", "-p", "8501:8501"]
    if models_config is None:
        command += [
            "--mount",
            f"type=bind,source={base.resolve()},target=/models/{base.name}",
            *("-e", f"MODEL_NAME={base.name}", "-t", _IMAGE),
        ]
    else:
        config = Path(models_config).resolve()
        command += [
            *("--mount", f"type=bind,source={config.parent},target=/models"),
            *("-t", _IMAGE, f"--model_config_file=/models/{config.name}"),
            "--model_config_file_poll_wait_seconds=5",
            # It reads the labels before it has loaded any version.
            "--allow_version_labels_for_unavailable_models=true",
        ]
    if (artifact.path / BATCHING).exists():
        command += [
            "--enable_batching",
            "--enable_per_model_batching_parameters",
        ]
    return shlex.join(command)


def curl_command(
    artifact: Artifact,
    signature: str = "serving_default",
    address: str = "http://localhost:8501",
) -> str:
    """A command that asks the served model one row.

    Args:
        artifact: A published version.
        signature: The signature to ask.
        address: Where the server listens for REST.

    Raises:
        ValueError: There is no such signature.
    """
    requests = {
        request.signature: request
        for request in warmup.read(artifact.path / warmup.PATH)
    }
    if signature not in requests:
        raise ValueError(
            f"`signature` must be one of {list(requests)}. Received: "
            f"{signature!r}"
        )
    row = {n: array[0] for n, array in requests[signature].inputs.items()}
    model = quote(_folder_of_versions(artifact).name, safe="")
    url = f"{address}/v1/models/{model}:predict"
    body = _body(signature, {name: _json(a) for name, a in row.items()})
    if len(json.dumps(body)) <= _LONGEST:
        return f"curl -d {shlex.quote(json.dumps(body))} {url}"
    short = _body(signature, {n: _Python(_repeated(a)) for n, a in row.items()})
    script = f"import base64, json; print(json.dumps({short!r}))"
    return f"python3 -c {shlex.quote(script)} | curl -d @- {url}"


def _folder_of_versions(artifact: Artifact) -> Path:
    """The folder by which clients name the model, whatever it links to."""
    return Path(os.path.abspath(artifact.path)).parent


def _body(signature: str, row: Mapping[str, Any]) -> dict[str, Any]:
    # The values of a single input are given bare.
    instance = dict(row) if len(row) > 1 else next(iter(row.values()))
    return {"signature_name": signature, "instances": [instance]}


def _json(array: Any) -> Any:
    """A tensor as TensorFlow Serving reads it from JSON."""
    if isinstance(array, bytes):
        return {"b64": base64.b64encode(array).decode()}
    if isinstance(array, np.ndarray) and array.ndim:
        return [_json(item) for item in array]
    return array.item() if isinstance(array, np.generic) else array


class _Python(str):
    """An expression, which stands for itself in the `repr` of a structure."""

    __repr__ = str.__str__


def _repeated(array: Any) -> str:
    """An expression for a tensor of this shape, whose values are all equal."""
    array = np.asarray(array, dtype=object)
    value = _json(array.flat[0])
    expression = repr(value)
    if len(expression) > _LONGEST:
        expression = (
            '{"b64": base64.b64encode(open("FILE", "rb").read()).decode()}'
        )
    for size in reversed(array.shape):
        expression = f"[{expression}] * {size}"
    return expression


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
