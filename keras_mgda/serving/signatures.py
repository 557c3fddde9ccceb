"""Signatures: the questions that a served model answers.

`serving_default` answers with every task, `predict_<task>` with one, and others
with the groups of tasks that a user named. They are made from one trace of
preprocessing, model and postprocessing, and call the same functions.
"""

import contextlib
import dataclasses
import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.serving import task_graph
from keras_mgda.serving.inputs import Inputs, float32, served_names

DEFAULT = "serving_default"

# What Keras and TensorFlow put before an error's own first line.
_AROUND = re.compile(
    "Exception encountered|Graph execution error|Detected at|in user code"
)

# `{task: {output: tensor}}`: what is served for each task.
Answers = dict[str, dict[str, tf.Tensor]]

# From `{input: tensor}` to what is served, and what is answered besides.
Forward = Callable[[Mapping[str, tf.Tensor]], tuple[Answers, list[tf.Tensor]]]


@dataclasses.dataclass(frozen=True)
class ServedFunction:
    """What stands behind one signature.

    Attributes:
        function: The concrete function to save.
        inputs: The names of what it takes.
        tasks: The tasks that it answers.
    """

    function: Any
    inputs: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TracedModel:
    """Preprocessing, model and postprocessing, as one graph in blocks.

    Attributes:
        specs: What a request holds.
        inputs: `{input: tensor name}` in the graph.
        outputs: `{task: {output: tensor name}}` in the graph.
        blocks: The graph's operations by the tasks that need them.
        variables: The variables that the blocks read.
        resources: The other handles that they read, as those of tables.
    """

    specs: dict[str, tf.TensorSpec]
    inputs: dict[str, str]
    outputs: dict[str, dict[str, str]]
    blocks: list[task_graph.Block]
    variables: list[tf.Variable]
    resources: list[Any]


def forward(
    model: keras.Model,
    inputs: Inputs,
    tasks: Sequence[str] | None = None,
    postprocess: Mapping[str, Callable[[tf.Tensor], Any]] | None = None,
) -> Forward:
    """The function of a request that is served.

    Args:
        model: A built model whose output is a flat dict of tensors.
        inputs: What a request holds.
        tasks: The outputs to serve, and columns that are tasks, which are
            served as `[b, ..., 1]`. `None` is all outputs.
        postprocess: `{task: function}` from that output to a tensor, or to a
            dict of tensors, which are served as `<task>_<key>`.

    Returns:
        A function from `{input: tensor}` to `{task: {output: tensor}}`, and a
        list of the outputs that are not served. It raises `ValueError` when
        what the model answers cannot be served.
    """

    def answers(
        tensors: Mapping[str, tf.Tensor],
    ) -> tuple[Answers, list[tf.Tensor]]:
        outputs = _called(model, inputs, tensors)
        _check_outputs(outputs)
        outputs = dict(outputs)
        columns = _columns(model, outputs, tasks or [])
        chosen = _chosen(outputs | columns, tasks)
        for task in postprocess or {}:
            _chosen(chosen, [task])
        served = {
            name: _answer(name, chosen[task], (postprocess or {}).get(task))
            for task, name in served_names(chosen, "task").items()
        }
        served_names([n for task in served.values() for n in task], "output")
        return served, [outputs[task] for task in outputs if task not in chosen]

    return answers


def trace(function: Forward, specs: dict[str, tf.TensorSpec]) -> TracedModel:
    """Traces what `forward` returned, once, and splits it by tasks."""

    def positional(*tensors: tf.Tensor) -> tuple[Answers, list[tf.Tensor]]:
        return function(dict(zip(specs, tensors, strict=True)))

    traced = tf.function(positional, autograph=False).get_concrete_function(
        *specs.values()
    )
    outputs, others = traced.structured_outputs
    blocks = task_graph.split_by_tasks(
        traced,
        {task: list(tensors.values()) for task, tensors in outputs.items()},
        others,
    )
    captured = {id(tensor): tensor for b in blocks for tensor in b.captured}
    variables = [v for v in traced.variables if id(v.handle) in captured]
    for variable in variables:
        captured.pop(id(variable.handle))
    return TracedModel(
        specs=specs,
        inputs={n: t.name for n, t in zip(specs, traced.inputs, strict=False)},
        outputs={
            task: {name: tensor.name for name, tensor in tensors.items()}
            for task, tensors in outputs.items()
        },
        blocks=blocks,
        variables=variables,
        resources=[t for t in captured.values() if t.dtype == tf.resource],
    )


def signatures(
    model: TracedModel, groups: Mapping[str, Sequence[str]] | None = None
) -> dict[str, ServedFunction]:
    """The signatures of a traced model, by name.

    Args:
        model: The traced model.
        groups: `{signature: tasks}`, for signatures that answer with some of
            the tasks.

    Raises:
        ValueError: A group has a task that is not served, or none, or two
            signatures would have one name.
    """
    every = tuple(model.outputs)
    answered = {
        DEFAULT: every,
        **{f"predict_{task}": (task,) for task in every},
    }
    groups = groups or {}
    names = served_names([*answered, *groups], "signature")
    for name, tasks in groups.items():
        answered[names[name]] = _group(name, tasks, every)
    return {n: _served_function(model, tasks) for n, tasks in answered.items()}


def _group(
    name: str, tasks: Sequence[str], every: Sequence[str]
) -> tuple[str, ...]:
    """The tasks of a group, as they are served, in the model's order."""
    listed = [] if isinstance(tasks, str) else list(tasks)
    wanted = set(served_names(dict.fromkeys(listed), "task").values())
    if not wanted or not wanted <= set(every):
        raise ValueError(
            "`groups` must be {signature: [task, ...]} with one or more of the "
            f"tasks that are served. Received: {name!r}: {tasks!r} for "
            f"{list(every)}."
        )
    return tuple(task for task in every if task in wanted)


def _served_function(
    model: TracedModel, tasks: tuple[str, ...]
) -> ServedFunction:
    """A function of the inputs which these tasks read."""
    blocks = task_graph.needed(model.blocks, tasks)
    read = {tensor for block in blocks for tensor in block.inputs}
    inputs = tuple(n for n, tensor in model.inputs.items() if tensor in read)

    def signature(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return _run(model, tasks, dict(zip(inputs, tensors, strict=True)))

    return ServedFunction(
        function=tf.function(signature, autograph=False).get_concrete_function(
            *(model.specs[name] for name in inputs)
        ),
        inputs=inputs,
        tasks=tasks,
    )


def _run(
    model: TracedModel,
    tasks: Sequence[str],
    tensors: Mapping[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
    known = task_graph.run(
        model.blocks,
        tasks,
        {model.inputs[name]: tensor for name, tensor in tensors.items()},
    )
    return {
        output: known[name]
        for task in tasks
        for output, name in model.outputs[task].items()
    }


def _answer(
    task: str, output: tf.Tensor, postprocess: Callable[[tf.Tensor], Any] | None
) -> dict[str, tf.Tensor]:
    """What is served for one task, half precision as float32."""
    answer = float32(output)
    if postprocess is not None:
        answer = _postprocessed(task, answer, postprocess)
    if not isinstance(answer, Mapping):
        return {task: float32(answer)}
    names = served_names([f"{task}_{key}" for key in answer], "output")
    return {
        name: float32(tensor)
        for name, tensor in zip(names.values(), answer.values(), strict=True)
    }


def _postprocessed(
    task: str, output: tf.Tensor, postprocess: Callable[[tf.Tensor], Any]
) -> Any:
    """A dense tensor, or a dict of them."""
    answer = postprocess(output) if callable(postprocess) else postprocess
    tensors = answer if isinstance(answer, Mapping) else {"": answer}
    if not tensors or not all(
        isinstance(key, str) and isinstance(tensor, tf.Tensor)
        for key, tensor in tensors.items()
    ):
        raise ValueError(
            "`postprocess` must have functions to a dense tensor, or to a flat "
            f"dict of them. Received: {task!r}: {answer!r}. Answer several "
            "tensors as {'key': tensor, ...}, each with a row for each row."
        )
    return answer


def _called(
    model: keras.Model, inputs: Inputs, tensors: Mapping[str, tf.Tensor]
) -> Any:
    try:
        with _recurrence_for_every_device():
            return model(inputs.arguments(tensors), training=False)
    except Exception as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise ValueError(
            "The model must answer any number of rows. Received: "
            f"{type(error).__name__} for {shapes}: {_first_line(error)} If a "
            "batch size is built in, reshape with -1 in its place. If rows "
            "were made up that are none for this model, give real ones as "
            "`warmup`. A subclassed model is called with `warmup` as it is: a "
            "dict, or one array."
        ) from error


@contextlib.contextmanager
def _recurrence_for_every_device() -> Iterator[None]:
    """Makes LSTM and GRU compute what every server can run.

    Where TensorFlow sees a GPU, Keras puts one cuDNN operation in their place,
    which no CPU can run. With `use_cudnn=False` it takes operations that every
    device has, from the same weights, to the same result but for rounding.
    They may be anywhere in a model, so all that there are are told.
    """
    # As Keras looks, where it chooses.
    seen = tf.config.list_logical_devices("GPU")
    kinds = (keras.layers.LSTM, keras.layers.GRU)
    told = [
        (thing, thing.use_cudnn)
        for thing in (gc.get_objects() if seen else ())
        if issubclass(type(thing), kinds)
    ]
    try:
        for layer, _ in told:
            layer.use_cudnn = False
        yield
    finally:
        for layer, use_cudnn in told:
            layer.use_cudnn = use_cudnn


def _first_line(error: Exception) -> str:
    """What an error says, without what Keras and TensorFlow put around it."""
    plain = re.sub(r"\x1b\[\d+m|\{\{.*?\}\}", "", str(error))
    lines = [line.strip() for line in plain.splitlines()]
    said = [line for line in lines if line and not _AROUND.match(line)]
    return said[0].rstrip(".") + "." if said else "no message."


def _check_outputs(outputs: Any) -> None:
    if not isinstance(outputs, Mapping):
        raise ValueError(
            "The model must answer a dict of named outputs, one or more for "
            f"each task: {{task: tensor}}. Received: {type(outputs).__name__}. "
            "Build it as keras.Model(inputs, {'task': output, ...})."
        )
    for task, output in outputs.items():
        if not isinstance(task, str) or not isinstance(output, tf.Tensor):
            raise ValueError(
                "The model's outputs must be a flat dict {str: dense tensor}. "
                f"Received: {task!r}: {type(output).__name__}. Flatten nested "
                "outputs, one key for each tensor."
            )


def _columns(
    model: keras.Model, outputs: Mapping[str, tf.Tensor], tasks: Sequence[str]
) -> dict[str, tf.Tensor]:
    """`{task: [b, ..., 1]}` of the tasks among these that are columns."""
    return {
        name: outputs[output][..., k : k + 1]
        for output, names in getattr(model, "column_names", {}).items()
        for k, name in enumerate(names)
        if name in tasks and output in outputs
    }


def _chosen(
    outputs: Mapping[str, Any], tasks: Sequence[str] | None
) -> dict[str, Any]:
    """The outputs of these tasks."""
    if tasks is None:
        tasks = list(outputs)
    unknown = [task for task in tasks if task not in outputs]
    if unknown or not tasks:
        raise ValueError(
            "Tasks must be among those that are served. Received: "
            f"{unknown or tasks} for {list(outputs)}."
        )
    return {task: outputs[task] for task in tasks}
