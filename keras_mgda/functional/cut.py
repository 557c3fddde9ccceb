"""Where the tasks of a functional model part, by the steps of the package."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from keras_mgda.functional.graph import Graph, Tensor, union


class Part(NamedTuple):
    """A tensor that belongs to `Z`.

    Attributes:
        name: of the layer whose output it is; `"model/layer"` where that is
            within a nested model.
        shape: of the tensor.
        tasks: those that read it.
    """

    name: str
    shape: tuple[int | None, ...]
    tasks: tuple[str, ...]


class Cut(NamedTuple):
    """Where the tasks of a model part.

    Attributes:
        parts: the tensors of `Z`.
        apart: the pairs of tasks that have variables of the encoder in common,
            but no tensor of `Z`. The Gram matrix at `Z` says nothing of them.
    """

    parts: list[Part]
    apart: list[tuple[str, str]]

    @property
    def is_diagonal(self) -> bool:
        """Whether no two tasks have a tensor of `Z` in common."""
        return bool(self.apart) and all(len(p.tasks) < 2 for p in self.parts)

    @property
    def advice(self) -> str:
        """What to know of tasks that are apart; empty if there are none."""
        if not self.apart:
            return ""
        pairs = " nor ".join(f"both '{a}' and '{b}'" for a, b in self.apart[:3])
        if len(self.apart) > 3:
            pairs += f", nor {len(self.apart) - 3} more pairs"
        return (
            f"No tensor of the shared representation, {self}, is read by "
            f"{'two tasks' if self.is_diagonal else pairs}. Their gradients "
            "there have the product zero: MGDA-UB sees no conflict between "
            "them, though they share layers before. Compile with "
            "`gradients='parameters'` or 'verified', which look at these."
        )

    def __str__(self) -> str:
        """`'layer' (None, 3), 'model/layer' (None, 4)`"""
        return ", ".join(f"'{part.name}' {part.shape}" for part in self.parts)


def cut_at(graph: Graph, names: Mapping[Tensor, str]) -> Cut:
    """The cut whose shared representation is these tensors, and their names."""
    parts = [
        Part(
            name,
            tuple(tensor.symbol.shape),
            tuple(t for t in graph.tasks if t in graph.reads.get(tensor, ())),
        )
        for tensor, name in names.items()
    ]
    in_common = {
        pair
        for call in graph.before(names)
        for variable in graph.variables[call]
        for pair in _pairs(graph, graph.reads_variable[id(variable)])
    }
    in_common -= {pair for part in parts for pair in _pairs(graph, part.tasks)}
    return Cut(parts, [p for p in _pairs(graph, graph.tasks) if p in in_common])


def where_tasks_part(graph: Graph) -> list[Tensor]:
    """The tensors of `Z`, by the two steps of `keras_mgda.functional`."""
    found = _read_by_all(graph)
    before = graph.before(found)
    beside = set(graph.calls) - before - graph.after(found)
    sharing = {
        call
        for call in beside
        if any(
            len(graph.reads_variable[id(variable)]) > 1
            for variable in graph.variables[call]
        )
    }
    sharing |= graph.before(t for call in sharing for t in call.inputs)
    encoder = before | sharing
    ends = set(graph.tasks.values())
    found += [
        tensor
        for call in graph.calls
        if call in sharing - before
        for tensor in call.outputs
        if tensor in graph.comes_from_variables
        and graph.reads.get(tensor)
        and (tensor in ends or not encoder.issuperset(graph.readers(tensor)))
    ]
    _check_found(graph, found)
    return found


def _read_by_all(graph: Graph) -> list[Tensor]:
    """Step 1: the last tensors from variables that all tasks read."""
    everyone, ends = set(graph.tasks), set(graph.tasks.values())
    parting = {
        call
        for call in graph.calls
        if any(
            graph.reads.get(tensor, everyone) != everyone
            for tensor in call.outputs
        )
    }
    return [
        tensor
        for call in graph.calls
        for tensor in call.outputs
        if graph.reads.get(tensor) == everyone
        and tensor in graph.comes_from_variables
        and (tensor in ends or parting & set(graph.readers(tensor)))
    ]


def _pairs(graph: Graph, names: Collection[str]) -> Iterator[tuple[str, str]]:
    return itertools.combinations(
        [task for task in graph.tasks if task in names], 2
    )


def _check_found(graph: Graph, found: Sequence[Tensor]) -> None:
    """One message for each reason why there is no shared representation."""
    must = (
        "A shared representation must exist: a floating point tensor that "
        "comes from variables and leads to several tasks."
    )
    if not graph.tasks:
        raise ValueError(
            f"{must} Received: a model of which no output depends on variables "
            "that could be trained. Add layers that have some."
        )
    groups = _groups(graph)
    if len(groups) == 1 and found:
        return
    integers = dict.fromkeys(
        call.name
        for call in graph.calls
        if any(tensor in graph.comes_from_variables for tensor in call.inputs)
        and not any(tensor.is_floating for tensor in call.outputs)
    )
    if integers:
        raise ValueError(
            f"{must} Received: a model where no gradient passes "
            f"{list(integers)}, whose outputs are not floating point, so that "
            "what stands before learns from no task that reads it there. Let "
            "the tasks read a floating point tensor, such as a softmax instead "
            "of an argmax."
        )
    if all(len(group) == 1 for group in groups):
        raise ValueError(
            f"{must} Received: a model whose tasks {list(graph.tasks)} have no "
            "variables in common, and so no conflict. Train it as it is, by "
            "`keras.Model.compile` and `fit`: MGDA would make the same steps."
        )
    raise ValueError(
        f"{must} Received: a model whose tasks are of groups that have no "
        f"variables in common: {groups}. Make a model of each group: "
        "`MGDAModel.from_model(keras.Model(model.input, {task: "
        "model.output[task] for task in group}))`."
    )


def _groups(graph: Graph) -> list[list[str]]:
    """Tasks are of one group if they share variables, if need be by others."""
    groups: list[set[str]] = [{task} for task in graph.tasks]
    for readers in graph.reads_variable.values():
        joined = [group for group in groups if group & readers]
        groups = [group for group in groups if not group & readers]
        groups += [union(joined)] if joined else []
    ordered = [[t for t in graph.tasks if t in group] for group in groups]
    return sorted(ordered, key=lambda group: list(graph.tasks).index(group[0]))
