"""What a functional model looks like: its parts, and which tasks read them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras

from keras_mgda.functional.cut import Cut, cut_at
from keras_mgda.functional.graph import Call, Graph, Tensor, union
from keras_mgda.functional.marks import own_marks
from keras_mgda.internals import Functional
from keras_mgda.layers import SharedRepresentation


class Row(NamedTuple):
    """One part of a model that has variables.

    Attributes:
        name: of the layer; `"model/layer"` of one in a nested model, of which
            not all are alike.
        role: `"encoder"`, which learns from the tasks through `Z`;
            `"encoder, around Z"`, of which tasks learn beside `Z`, too;
            `"shared, not through Z"` by some tasks that read it behind `Z` or
            beside; `"head"` of one task; `"read by no task"`.
        num_variables: how many it would train if it was not frozen.
        num_parameters: how many numbers they hold.
        tasks: those that read it.
        around: those that do so without passing `Z`; none for heads.
        frozen: whether it trains none of them.
    """

    name: str
    role: str
    num_variables: int
    num_parameters: int
    tasks: tuple[str, ...]
    around: tuple[str, ...]
    frozen: bool


class Description(NamedTuple):
    """The parts of a functional model, and which tasks read them.

    Attributes:
        rows: one for each part that has variables, from inputs to outputs.
        tasks: all of them.
        cut: what is marked; `None` for a model without marks.
    """

    rows: list[Row]
    tasks: tuple[str, ...]
    cut: Cut | None

    def __str__(self) -> str:
        table = [("Part", "Role", "Variables", "Parameters", "Read by")]
        for row in self.rows:
            readers = self._names(row.tasks)
            if row.around:
                readers += f"; around Z by {self._names(row.around)}"
            table.append(
                (
                    row.name,
                    row.role + (" (frozen)" if row.frozen else ""),
                    f"{row.num_variables:,}",
                    f"{row.num_parameters:,}",
                    readers,
                )
            )
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if k in (2, 3) else cell.ljust(width)
                for k, (cell, width) in enumerate(
                    zip(cells, widths, strict=True)
                )
            ).rstrip()
            for cells in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        if self.cut is None:
            return "\n".join([*lines, "No shared representation is marked."])
        for part in self.cut.parts:
            lines.append(
                f"Shared representation: the output of '{part.name}' "
                f"{part.shape}, read by {self._names(part.tasks)}."
            )
        if self.cut.apart:
            lines.append(self.cut.advice)
        return "\n".join(lines)

    def _names(self, names: Sequence[str]) -> str:
        if len(names) > 1 and len(names) == len(self.tasks):
            return "all tasks"
        if len(names) > 6:
            return f"{', '.join(names[:5])} and {len(names) - 5} more"
        return ", ".join(names) or "no task"


def describe(model: keras.Model) -> Description:
    """Which layers of a functional model are shared, and by which tasks.

    Args:
        model: a functional model, with or without marks.

    Example:

    >>> import keras, keras_mgda
    >>> from keras_mgda.description import describe
    >>> inputs = keras.Input((4,))
    >>> z = keras.layers.Dense(3, name="trunk")(inputs)
    >>> z = keras_mgda.SharedRepresentation()(z)
    >>> outputs = {
    ...     task: keras.layers.Dense(1, name=f"of_{task}")(z) for task in "ab"
    ... }
    >>> print(describe(keras_mgda.MGDAModel(inputs, outputs)))
    Part   Role     Variables  Parameters  Read by
    -----  -------  ---------  ----------  ---------
    trunk  encoder          2          15  all tasks
    of_a   head             2           4  a
    of_b   head             2           4  b
    Shared representation: the output of 'trunk' (None, 3), read by all tasks.
    """
    if not isinstance(model, Functional):
        raise ValueError(
            "Only a functional model can be described: its graph says which "
            f"tasks read what. Received: {type(model).__name__}, a subclass. "
            "Make one of it by `keras.Model(inputs, model(inputs))`, of which "
            "it then is one part."
        )
    graph = Graph(model)
    marked = own_marks(graph)
    encoder = graph.before(marked)
    around = _reads_around(graph)
    calls: dict[str, list[Call]] = {}
    for call in graph.calls:
        if graph.variables[call]:
            calls.setdefault(call.name, []).append(call)
    rows = []
    for name, of_layer in calls.items():
        variables = graph.variables[of_layer[0]]
        reads = union(graph.reads_variable[id(v)] for v in variables)
        beside = union(around[id(v)] for v in variables)
        in_encoder = not encoder.isdisjoint(of_layer)
        if in_encoder:
            role = "encoder, around Z" if beside else "encoder"
        elif len(beside) > 1:
            role = "shared, not through Z" if marked else "shared"
        else:
            role = "head" if beside else "read by no task"
        row = Row(
            name,
            role,
            len(variables),
            sum(math.prod(variable.shape) for variable in variables),
            tuple(t for t in graph.tasks if t in reads),
            tuple(t for t in graph.tasks if in_encoder and t in beside),
            not of_layer[0].operation.trainable_variables,
        )
        rows.append(row)
    names = {tensor: tensor.name for tensor in marked}
    return Description(
        _merge(rows),
        tuple(graph.tasks),
        cut_at(graph, names) if marked else None,
    )


def _reads_around(graph: Graph) -> dict[int, set[str]]:
    """Of each variable, the tasks that read it without passing a mark."""
    reads: dict[Tensor, set[str]] = {}
    of_variable: dict[int, set[str]] = {}
    for task, tensor in graph.tasks.items():
        reads.setdefault(tensor, set()).add(task)
    for call in reversed(graph.calls):
        readers = union(reads.get(tensor, ()) for tensor in call.outputs)
        for variable in graph.variables[call]:
            of_variable.setdefault(id(variable), set()).update(readers)
        operation = call.operation
        if isinstance(operation, SharedRepresentation) and not operation.inside:
            continue
        for tensor in call.inputs:
            if tensor.is_floating:
                reads.setdefault(tensor, set()).update(readers)
    return of_variable


def _merge(rows: Sequence[Row]) -> list[Row]:
    """One row for a nested model of which all parts are alike."""
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row.name.partition("/")[0], []).append(row)
    merged = []
    for name, parts in models.items():
        if len({part[1:2] + part[4:] for part in parts}) > 1:
            merged += parts
            continue
        merged.append(
            parts[0]._replace(
                name=name,
                num_variables=sum(part.num_variables for part in parts),
                num_parameters=sum(part.num_parameters for part in parts),
            )
        )
    return merged
