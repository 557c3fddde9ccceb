"""A traced model, cut where its tasks part.

For an operation `v` of the traced graph let `R(v)` be the set of tasks whose
outputs depend on it. What feeds `v` is needed wherever `v` is:

    u -> v    implies    R(u) >= R(v).

So the operations with one and the same `R` form a *block* that no path leaves
and enters again, and blocks in the order of falling `|R|` are in an order in
which they can run. The block of all tasks is the encoder, the blocks of a
single task are the heads, and those between are encoders of some tasks. Each
becomes one function. A signature for some tasks calls the blocks that these
tasks need, and nothing else: every operation is in the artifact once, and the
functions are the same in all signatures.

This reads the graph and not the layers, so it holds for any model that can be
traced: functional or subclassed, with skip connections around the encoder,
masks, or layers that several heads share. What is hidden in one operation (a
`tf.function` that computes several heads) is one operation here too.

A *guard* is an operation that fails on values which the model refuses, as those
of `tf.debugging.assert_less`; mostly nothing reads its result. It guards the
tasks that need all of what it looks at, and runs with them: an assertion on the
encoder's output with every task, one on a head's output with that task. So a
signature refuses what `predict` refuses of its tasks, and runs no other head
for it. Only what relates tasks that share nothing runs these tasks together.
Other effects that no output depends on, prints and updates of state, are
dropped.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from keras_mgda.serving.graph_def import by_name, called_functions

# Inputs come from the caller. A constant is copied into every block that reads
# it: as an argument of a function it is not known when shapes are inferred.
_WITHOUT_BLOCK = ("Const", "Placeholder")

# What fails on some values, alone or in a function that an operation calls. A
# function of Python may raise: kept, it is found and refused.
_GUARDS = re.compile("Assert|CheckNumerics(V2)?|PyFunc|EagerPyFunc")


@dataclasses.dataclass(frozen=True)
class Block:
    """The operations that exactly these tasks need, as one function.

    Attributes:
        tasks: The tasks that need it.
        function: The concrete function from `inputs` to `outputs`.
        inputs: Names of tensors of the traced graph, from earlier blocks or
            from the caller.
        outputs: Names of the tensors that others read.
        captured: What it reads from outside the graph: handles of variables
            and tables, and eager tensors.
    """

    tasks: frozenset[str]
    function: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[Any, ...]


# What the model answers for tasks that are not served. No task is named so.
_OTHERS = ""


def split_by_tasks(
    traced: Any,
    outputs: Mapping[str, Sequence[tf.Tensor]],
    others: Sequence[tf.Tensor] = (),
) -> list[Block]:
    """Cuts a concrete function into blocks, in an order in which they run.

    Operations that no task needs are dropped, but for guards.

    Args:
        traced: A `tf.types.experimental.ConcreteFunction`.
        outputs: For each task the tensors of `traced.graph` that it wants.
        others: What is answered and not served, as heads that are left out:
            what guards these alone is dropped.

    Returns:
        The blocks, the encoder first.
    """
    graph = traced.graph
    definition = graph.as_graph_def()
    captures = _captures(traced)
    answered = {**outputs, _OTHERS: others} if others else outputs
    needed_by = _needed_by(graph, answered)
    _add_guards(needed_by, graph, definition, frozenset(answered), captures)
    needed_by = {op: tasks - {_OTHERS} for op, tasks in needed_by.items()}
    members = defaultdict(list)
    for operation in graph.get_operations():
        if needed_by[operation] and operation.type not in _WITHOUT_BLOCK:
            members[needed_by[operation]].append(operation)
    wanted = {tensor.name for tensors in outputs.values() for tensor in tensors}
    wanted.update(
        tensor.name
        for tasks, operations in members.items()
        for operation in operations
        for tensor in operation.inputs
        if needed_by[tensor.op] != tasks
    )
    return [
        _block(tasks, members[tasks], wanted, captures, definition)
        for tasks in sorted(members, key=len, reverse=True)
    ]


def run(
    blocks: Iterable[Block],
    tasks: Collection[str],
    tensors: Mapping[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
    """Runs the blocks that `tasks` need.

    Args:
        blocks: The blocks, in order.
        tasks: The tasks.
        tensors: The inputs, by their name in the traced graph.

    Returns:
        `tensors` and the outputs of every block that ran.
    """
    known = dict(tensors)
    for block in needed(blocks, tasks):
        results = block.function(*(known[name] for name in block.inputs))
        known.update(zip(block.outputs, results, strict=True))
    return known


def needed(blocks: Iterable[Block], tasks: Collection[str]) -> list[Block]:
    """The blocks that some of `tasks` need."""
    return [block for block in blocks if not block.tasks.isdisjoint(tasks)]


def _needed_by(
    graph: tf.Graph, outputs: Mapping[str, Sequence[tf.Tensor]]
) -> dict[tf.Operation, frozenset[str]]:
    """`R`, for every operation, from the outputs back to the inputs."""
    needed_by: dict[tf.Operation, frozenset[str]] = defaultdict(frozenset)
    for task, tensors in outputs.items():
        for tensor in tensors:
            needed_by[tensor.op] |= {task}
    returned = set(needed_by)
    # A graph's operations are listed in the order of their making, each after
    # what it reads.
    for operation in reversed(graph.get_operations()):
        sources = {tensor.op for tensor in operation.inputs}
        # What is returned waits for every effect of the function.
        if operation not in returned:
            sources.update(operation.control_inputs)
        for source in sources:
            needed_by[source] |= needed_by[operation]
    return needed_by


def _add_guards(
    needed_by: dict[tf.Operation, frozenset[str]],
    graph: tf.Graph,
    definition: Any,
    every: frozenset[str],
    captures: Mapping[str, Any],
) -> None:
    """Adds to `R` the guards whose results nothing reads, and their needs."""
    library = by_name(definition.library.function)
    nodes = {node.name: node for node in definition.node}
    weights = {name.split(":")[0] for name in captures}
    guards = [
        operation
        for operation in graph.get_operations()
        if not needed_by[operation] and _guards(nodes[operation.name], library)
    ]
    for guard in guards:
        # Between the guard and what some task needs stands what only it needs,
        # as the comparison of an assertion.
        between: set[tf.Operation] = set()
        seen = []
        pending = [tensor.op for tensor in guard.inputs]
        while pending:
            operation = pending.pop()
            if operation in between or operation.name in weights:
                continue
            if needed_by[operation]:
                seen.append(needed_by[operation])
                continue
            between.add(operation)
            pending += [tensor.op for tensor in operation.inputs]
            pending += operation.control_inputs
        guarded = every.intersection(*seen) or frozenset().union(*seen)
        _need(guard, guarded, needed_by)


def _guards(node: Any, library: dict[str, Any]) -> bool:
    if _GUARDS.fullmatch(node.op):
        return True
    return any(
        _GUARDS.fullmatch(inner.op)
        for function in called_functions([node], library).values()
        for inner in function.node_def
    )


def _need(
    guard: tf.Operation,
    tasks: frozenset[str],
    needed_by: dict[tf.Operation, frozenset[str]],
) -> None:
    """Adds tasks to a guard and all that it reads.

    Not to what it waits for: TensorFlow puts effects in the order of their
    making, and a print before the guard is no part of it.
    """
    needed_by[guard] |= tasks
    pending = [tensor.op for tensor in guard.inputs]
    while pending:
        operation = pending.pop()
        if not tasks <= needed_by[operation]:
            needed_by[operation] |= tasks
            pending += [tensor.op for tensor in operation.inputs]
            pending += operation.control_inputs


def _captures(traced: Any) -> dict[str, Any]:
    """What a function reads from outside, by the tensor that stands for it."""
    outside = traced.captured_inputs
    inside = traced.inputs[len(traced.inputs) - len(outside) :]
    return {
        tensor.name: source
        for tensor, source in zip(inside, outside, strict=True)
    }


def _block(
    tasks: frozenset[str],
    operations: Sequence[tf.Operation],
    wanted: Collection[str],
    captures: Mapping[str, Any],
    definition: Any,
) -> Block:
    names = {operation.name for operation in operations}
    arguments: dict[str, tf.TensorSpec] = {}
    captured: dict[str, Any] = {}
    for tensor in (t for operation in operations for t in operation.inputs):
        if tensor.op.type == "Const":
            names.add(tensor.op.name)
        elif tensor.name in captures:
            captured[tensor.name] = captures[tensor.name]
        elif tensor.op.name not in names:
            arguments[tensor.name] = tf.TensorSpec(tensor.shape, tensor.dtype)
    results = {
        tensor.name: tensor.shape
        for operation in operations
        for tensor in operation.outputs
        if tensor.name in wanted
    }
    nodes = _subgraph(definition, names)

    def block(*tensors: tf.Tensor) -> list[tf.Tensor]:
        graph = tf.compat.v1.get_default_graph()
        known = dict(zip(arguments, tensors, strict=True))
        known.update((n, graph.capture(t)) for n, t in captured.items())
        outputs = tf.graph_util.import_graph_def(
            nodes,
            input_map=known,
            return_elements=list(results),
            name=block.__name__,
        )
        for tensor, shape in zip(outputs, results.values(), strict=True):
            tensor.set_shape(shape)  # What the model said and no node tells.
        return outputs

    block.__name__ = _name(tasks)
    return Block(
        tasks=tasks,
        function=tf.function(block, autograph=False).get_concrete_function(
            *arguments.values()
        ),
        inputs=tuple(arguments),
        outputs=tuple(results),
        captured=tuple(captured.values()),
    )


def _subgraph(definition: Any, names: Collection[str]) -> Any:
    """The named nodes of a graph, and the functions that they call."""
    part = tf.compat.v1.GraphDef(versions=definition.versions)
    part.node.extend(node for node in definition.node if node.name in names)
    for node in part.node:
        # Order that operations of other blocks gave.
        sources = [
            source
            for source in node.input
            if not source.startswith("^") or source[1:] in names
        ]
        node.ClearField("input")
        node.input.extend(sources)
    library = by_name(definition.library.function)
    part.library.function.extend(called_functions(part.node, library).values())
    for nodes in (part.node, *(f.node_def for f in part.library.function)):
        for node in nodes:
            _forget_training(node)
    return part


def _forget_training(node: Any) -> None:
    """Strips this machine's devices and placements, and links to gradients."""
    node.ClearField("device")
    for attribute in ("_class", "_gradient_op_type"):
        node.attr.pop(attribute, None)


def _name(tasks: frozenset[str]) -> str:
    """The name that the function has in the artifact, for its readers."""
    if len(tasks) == 1:
        return f"head_{next(iter(tasks))}"
    return f"encoder_of_{len(tasks)}_tasks"
