"""Publishing a trained model for TensorFlow Serving."""

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.serving import artifact, checks, versions
from keras_mgda.serving.batching import PATH as BATCHING
from keras_mgda.serving.batching import batching_parameters, is_integer
from keras_mgda.serving.inputs import Inputs, declared_inputs
from keras_mgda.serving.rows import LENGTH, sample_rows
from keras_mgda.serving.signatures import (
    DEFAULT,
    Forward,
    ServedFunction,
    TracedModel,
    forward,
    signatures,
    trace,
)
from keras_mgda.serving.warmup import MAX_RECORDS, Request
from keras_mgda.serving.warmup import PATH as WARMUP
from keras_mgda.serving.warmup import write as write_warmup

# Every signature is asked at these. A batch that is baked in fails at one.
_BATCH_SIZES = (1, 3)


def export_saved_model(
    model: keras.Model,
    directory: str | os.PathLike[str],
    version: int | None = None,
    *,
    preprocess: Any = None,
    postprocess: Mapping[str, Callable[[tf.Tensor], Any]] | None = None,
    tasks: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    warmup: Any = None,
    batching: Mapping[str, Any] | None = None,
    keep: int | None = None,
) -> artifact.Artifact:
    r"""Publishes a model as a version that TensorFlow Serving can load.

    Writes `<directory>/<version>/`: a SavedModel, warm-up requests, and
    batching parameters if given. It is written under a hidden name, its
    signatures are run from the files at several batch sizes and compared with
    the model, and then it appears with one rename. If anything is wrong nothing
    appears.

    The signatures are `serving_default`, which answers with all tasks,
    `predict_<task>` for each task, which runs that task's part of the model
    only, and those of `groups`. They take the model's named inputs, with any
    batch size, and answer a dict of named outputs, half precision as float32.
    All call the same functions, the encoder's among them, and each weight is
    stored once. Only what is needed to answer is there, and to refuse what the
    model refuses: no optimizer, no task weights, no gradients. Names are kept
    but for characters that are not letters, digits or `_`, which become `_`.
    An LSTM or a GRU is served as operations that every device has, also where
    Keras trained it with cuDNN's.

    Args:
        model: A built Keras model, functional or subclassed, whose output is a
            flat dict `{task: tensor}`.
        directory: The folder of versions; the model's name for clients is its
            last part. Local, or mounted: elsewhere no rename is atomic.
        version: The version's number. Defaults to one more than the greatest.
        preprocess: What stands in front of the model and is served with it: a
            `tf.function` with an `input_signature` of named specs, or a
            functional Keras model.
        postprocess: `{task: function}` from a task's output to the tensor to
            serve, or to a dict of them, served as `<task>_<key>`.
        tasks: The tasks to serve. Defaults to all. Of an output whose columns
            are tasks (`keras_mgda.losses.PerColumn`) these may be chosen
            columns by name, each served as `[b, 1]`; by default it is served
            as it is. `groups` may name those that are listed here.
        groups: `{signature: tasks}`, for signatures that answer with several
            of the tasks and run no other head, as `{"predict_ab": ["a", "b"]}`.
        warmup: Real rows to check and warm up with: `{input: array}`, or one
            array for a single input. Three of them are stored at most. By
            default rows are made up. A subclassed model needs them: they tell
            its inputs, by their keys, or the name of the argument of `call`.
        batching: Fields of `batching_params.pbtxt`, see
            `keras_mgda.serving.batching_parameters`. `serving_default` is then
            warmed up at each of `allowed_batch_sizes`. Rows must differ, to
            show that none depends on another.
        keep: How many versions to keep. Older ones are removed, never the
            newest and never this one, but also those that a `models.config`
            names. Defaults to all of them.

    Returns:
        What was written: its path, signatures and sizes. Print it.

    Raises:
        ValueError: An argument cannot be right, or the model cannot be served:
            the message lists all that was found and how to mend it.
        FileExistsError: `version` exists.
        OSError: It could not be written, as on a full disk.

    Example:

    >>> import tempfile, keras, keras_mgda
    >>> features = keras.Input((4,), name="features")
    >>> heads = {t: keras.layers.Dense(1, name=t)(features) for t in "ab"}
    >>> model = keras.Model(features, heads)
    >>> published = keras_mgda.export_saved_model(model, tempfile.mkdtemp())
    >>> sorted(published.signatures)
    ['predict_a', 'predict_b', 'serving_default']
    """
    directory = _folder_of_versions(directory)
    _check_number("version", version)
    _check_number("keep", keep)
    _check_model(model)
    versions.free_number(directory, version)
    parameters = None if batching is None else batching_parameters(batching)
    inputs = declared_inputs(model, preprocess, warmup)
    answers = forward(model, inputs, tasks, postprocess)
    traced = trace(answers, inputs.specs)
    served = signatures(traced, groups)
    sizes = (batching or {}).get("allowed_batch_sizes", [])
    requests = _requests(served, answers, inputs, warmup, sizes)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with versions.staging(directory) as staged:
            _save(traced, served, staged)
            name = Path(os.path.abspath(directory)).name
            write_warmup(staged / WARMUP, name, filter(_is_stored, requests))
            if parameters is not None:
                (staged / BATCHING).write_text(parameters)
            _check(staged, requests, mixed=batching is not None)
            number = versions.publish(staged, directory, version)
    except FileExistsError:
        raise
    except (OSError, tf.errors.OpError) as error:
        raise OSError(
            f"The model could not be written to {directory}, and no version "
            f"was published. Received: {error}"
        ) from error
    if keep is not None:
        _prune(directory, keep, number)
    return artifact.read(directory / str(number))


def _folder_of_versions(directory: str | os.PathLike[str]) -> Path:
    path = Path(directory)
    is_file = os.path.lexists(path) and not path.is_dir()
    is_version = (path / versions.GRAPH).exists()
    if is_file or is_version or "://" in os.fspath(directory):
        raise ValueError(
            "`directory` must be a local folder of versions, not a version, a "
            f"file, a broken link or a URL. Received: {os.fspath(directory)!r}."
            " Publish to a local folder; when copying from there, copy "
            "saved_model.pb last."
        )
    return path


def _check_number(name: str, value: int | None) -> None:
    if value is not None and not (is_integer(value) and 0 < value < 2**63):
        raise ValueError(
            f"`{name}` must be a positive 64-bit integer. Received: {value!r}"
        )


def _check_model(model: Any) -> None:
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "A SavedModel is written by Keras on TensorFlow. Received: the "
            f"backend {keras.backend.backend()!r}. Save the model, set "
            "KERAS_BACKEND=tensorflow, load it and publish."
        )
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "The model must be a built keras.Model. Received: "
            f"{model!r}. Fit it, or call it on a batch, first."
        )


def _requests(
    served: Mapping[str, ServedFunction],
    answers: Forward,
    inputs: Inputs,
    warmup: Any,
    allowed: Sequence[int],
) -> list[Request]:
    """Requests, and what the Keras model answers to them.

    Every signature at two batch sizes, to be checked. `serving_default`, which
    runs all that others run, at the allowed ones too, to be warmed up at.
    """
    sizes = sorted({*_BATCH_SIZES, *allowed})
    if len(served) + len(sizes) - 1 > MAX_RECORDS:
        raise ValueError(
            f"TensorFlow Serving takes {MAX_RECORDS} warm-up requests at most. "
            f"Received: {len(served)} signatures, one of them at {len(sizes)} "
            "batch sizes. Serve fewer `tasks`, in several models, or allow "
            f"fewer batch sizes besides {_BATCH_SIZES}, which are always asked."
        )
    requests = []
    for size in sizes:
        rows, answer = _answered(answers, inputs, warmup, size)
        for name, function in served.items():
            if size in _BATCH_SIZES or name == DEFAULT:
                right: dict[str, np.ndarray] = {}
                for task in function.tasks:
                    right.update(answer[task])
                asked = {n: rows[n] for n in function.inputs}
                requests.append(Request(name, asked, right))
    return requests


def _is_stored(request: Request) -> bool:
    """Whether the server needs it: rows may be large, and signatures many."""
    return request.signature == DEFAULT or request.num_rows == _BATCH_SIZES[0]


def _answered(
    answers: Forward, inputs: Inputs, warmup: Any, size: int
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Rows to ask with, and `{task: {output: array}}` for them."""

    def ask(**options: Any) -> Any:
        rows = sample_rows(inputs.specs, warmup, size, **options)
        asked, _ = answers({n: tf.constant(array) for n, array in rows.items()})
        return rows, {
            task: {name: tensor.numpy() for name, tensor in tensors.items()}
            for task, tensors in asked.items()
        }

    try:
        rows, answer = ask()
    except ValueError:
        if warmup is None:
            _check_length(ask, inputs)
            raise
    else:
        arrays = [array for task in answer.values() for array in task.values()]
        if warmup is None or not any(map(checks.has_nan, arrays)):
            return rows, answer
    # The model wants more of a row than values that it knows.
    return ask(repeat=True)


def _check_length(ask: Callable[..., Any], inputs: Inputs) -> None:
    """Refuses a model that rejects long rows by saying so."""
    free = {n: s.shape for n, s in inputs.specs.items() if None in s.shape[1:]}
    length = LENGTH
    while free and length > 1:
        length //= 2
        try:
            ask(length=length)
        except ValueError:
            continue
        raise ValueError(
            "Rows that are made up must not be longer than the model's maximum "
            f"length. Received: {free}, made up of length {LENGTH}, where the "
            f"model answers {length} and not {2 * length}. Give real rows as "
            "`warmup`, or declare the length in keras.Input(shape=...)."
        )


def _save(
    traced: TracedModel, served: Mapping[str, ServedFunction], path: Path
) -> None:
    # Not `model.export()`, which tracks Keras' variables besides the tensors
    # they wrap and so stores each weight twice.
    module = tf.Module()
    module.weights = traced.variables
    module.resources = _owners(traced.resources)
    tf.saved_model.save(
        module,
        str(path),
        signatures={name: s.function for name, s in served.items()},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )


def _owners(handles: Sequence[Any]) -> list[Any]:
    """The objects, as lookup tables, that initialise these handles.

    A graph knows the handles that it reads and not who made them. They may be
    anywhere: in layers, in lists of layers, in the closure of a function.
    """
    wanted = {id(handle) for handle in handles}
    resource = tf.saved_model.experimental.TrackableResource
    return [
        thing
        for thing in (gc.get_objects() if wanted else ())
        # Not `isinstance`, which asks proxies for their class.
        if issubclass(type(thing), resource)
        and id(thing.resource_handle) in wanted
    ]


def _check(staged: Path, requests: Sequence[Request], mixed: bool) -> None:
    """Refuses what would not work behind TensorFlow Serving."""
    written = artifact.read(staged)
    found = checks.problems(written, requests)
    if mixed and not found:
        found = list(_mixed_rows(requests, checks.tolerance(written)))
    if found:
        raise ValueError(
            "The model must be one that TensorFlow Serving can run; no version "
            "was published. Received: a model with these problems:\n"
            + "\n".join(f"- {problem}" for problem in found)
        )


def _mixed_rows(requests: Sequence[Request], tolerance: float) -> Iterator[str]:
    """Problems of batching, which puts the rows of many clients together."""
    alone: dict[str, Request] = {}
    mixing = set()
    shown = set()
    for request in requests:
        if any((rows != rows[:1]).any() for rows in request.inputs.values()):
            shown.add(request.signature)
        one = alone.setdefault(request.signature, request)
        for name, array in request.answer.items():
            if checks.difference(array[:1], one.answer[name][:1]) > tolerance:
                mixing.add(name)
    for name in sorted(mixing):
        yield (
            f"output {name!r}: with `batching`, the answer to a row must not "
            "depend on other rows. Found: the first row's changes when others "
            "follow. Leave `batching` out, or the operation across the batch."
        )
    equal = sorted(alone.keys() - shown)
    if equal:
        yield (
            "with `batching`, rows must differ to show that none depends on "
            f"another. Found: equal rows for {', '.join(equal)}. Give rows "
            "that differ as `warmup`."
        )


def _prune(directory: Path, keep: int, published: int) -> None:
    try:
        versions.prune(directory, keep, published)
    except OSError as error:
        warnings.warn(
            f"Version {published} is published, but older versions could not "
            f"be removed from {directory}: {error}",
            stacklevel=3,
        )
