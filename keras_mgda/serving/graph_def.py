"""Which functions a set of graph nodes calls, through any depth."""

from collections.abc import Iterable
from typing import Any


def called_functions(
    nodes: Iterable[Any], library: dict[str, Any]
) -> dict[str, Any]:
    """The functions that `nodes` call, and those that these call, and so on.

    Args:
        nodes: `NodeDef` messages.
        library: `FunctionDef` messages by name.

    Returns:
        The part of `library` that is reached.
    """
    called: dict[str, Any] = {}
    pending = list(nodes)
    while pending:
        for name in _names(pending.pop()):
            if name in library and name not in called:
                called[name] = library[name]
                pending.extend(library[name].node_def)
    return called


def by_name(functions: Iterable[Any]) -> dict[str, Any]:
    """`FunctionDef` messages by name."""
    return {function.signature.name: function for function in functions}


def _names(node: Any) -> Iterable[str]:
    yield node.op  # A function may be called as an operation of its name.
    for attribute in node.attr.values():
        yield attribute.func.name
        yield from (function.name for function in attribute.list.func)
