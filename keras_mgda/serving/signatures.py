"""Signatures: the questions that a served model answers.

`serving_default` answers with every task, `predict_<task>` with one, and
`serve_examples` with every task from serialized records. They are made from one
trace of preprocessing, model and postprocessing, and call the same functions.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.serving import examples, task_graph
from keras_mgda.serving.inputs import Inputs, float32, served_names

DEFAULT = "serving_default"

# `{input: array}`, batch first.
Rows = Mapping[str, np.ndarray]

# `{task: {output: tensor}}`: what is served for each task.
Answers = dict[str, dict[str, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Signature:
    """One question.

    Attributes:
        function: The concrete function to save.
        tasks: The tasks that it answers.
        request: From rows to the arrays that a request holds.
    """

    function: Any
    tasks: tuple[str, ...]
    request: Callable[[Rows], dict[str, np.ndarray]]


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
) -> Callable[[Mapping[str, tf.Tensor]], Answers]:
    """The function of a request that is served.

    Args:
        model: A built model whose output is a flat dict of tensors.
        inputs: What a request holds.
        tasks: The outputs to serve. `None` is all of them.
        postprocess: `{task: function}` from that output to a tensor, or to a
            dict of tensors, which are served as `<task>_<key>`.

    Returns:
        A function from `{input: tensor}` to `{task: {output: tensor}}`. It
        raises `ValueError` when what the model answers cannot be served.
    """

    def answers(tensors: Mapping[str, tf.Tensor]) -> Answers:
        outputs = _called(model, inputs, tensors)
        _check_outputs(outputs)
        chosen = _chosen(outputs, tasks)
        for task in postprocess or {}:
            _chosen(chosen, [task])
        served = {
            name: _answer(name, outputs[task], (postprocess or {}).get(task))
            for task, name in served_names(chosen, "task").items()
        }
        served_names([n for task in served.values() for n in task], "output")
        return served

    return answers


def trace(
    function: Callable[[Mapping[str, tf.Tensor]], Answers],
    specs: dict[str, tf.TensorSpec],
) -> TracedModel:
    """Traces what `forward` returned, once, and splits it by tasks."""

    def positional(*tensors: tf.Tensor) -> Answers:
        return function(dict(zip(specs, tensors, strict=True)))

    traced = tf.function(positional, autograph=False).get_concrete_function(
        *specs.values()
    )
    outputs = traced.structured_outputs
    blocks = task_graph.split_by_tasks(
        traced,
        {task: list(tensors.values()) for task, tensors in outputs.items()},
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
    model: TracedModel, example_spec: Mapping[str, Any] | None = None
) -> dict[str, Signature]:
    """The signatures of a traced model, by name."""
    every = tuple(model.outputs)
    made = {DEFAULT: _from_tensors(model, every)}
    for task in every:
        made[f"predict_{task}"] = _from_tensors(model, (task,))
    if example_spec is not None:
        examples.check(example_spec, model.specs)
        made["serve_examples"] = _from_examples(model, every, example_spec)
    return made


def _from_tensors(model: TracedModel, tasks: tuple[str, ...]) -> Signature:
    """A signature that takes the inputs which these tasks read."""
    blocks = task_graph.needed(model.blocks, tasks)
    read = {tensor for block in blocks for tensor in block.inputs}
    inputs = [name for name, tensor in model.inputs.items() if tensor in read]

    def signature(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return _run(model, tasks, dict(zip(inputs, tensors, strict=True)))

    return Signature(
        function=tf.function(signature, autograph=False).get_concrete_function(
            *(model.specs[name] for name in inputs)
        ),
        tasks=tasks,
        request=lambda rows: {name: rows[name] for name in inputs},
    )


def _from_examples(
    model: TracedModel, tasks: tuple[str, ...], example_spec: Mapping[str, Any]
) -> Signature:
    def signature(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = examples.parse(serialized, example_spec, model.specs)
        return _run(model, tasks, parsed)

    return Signature(
        function=tf.function(signature, autograph=False).get_concrete_function(
            tf.TensorSpec([None], tf.string, name=examples.NAME)
        ),
        tasks=tasks,
        request=lambda rows: {
            examples.NAME: examples.serialize(rows, example_spec)
        },
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
        return model(inputs.arguments(tensors), training=False)
    except Exception as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise ValueError(
            "The model must answer any number of rows. Received: "
            f"{type(error).__name__} for {shapes}. If a batch size is built "
            "in, reshape with -1 in its place. If rows were made up that are "
            "none for this model, give real ones as `warmup`. A subclassed "
            "model is called with `warmup` as it is: a dict, or one array."
        ) from error


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
