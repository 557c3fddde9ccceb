"""The operations that a served answer needs, and those that none may need."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from keras_mgda.serving.artifact import Artifact
from keras_mgda.serving.graph_def import by_name, called_functions

# Operations that no answer may need: what must hold, their types, the remedy.
_REFUSED = (
    (
        "TensorFlow Serving has no Python",
        "PyFunc|PyFuncStateless|EagerPyFunc",
        "made by tf.py_function or tf.numpy_function. Replace them by "
        "TensorFlow operations, or do that work in the client.",
    ),
    (
        "No CPU server has the operations of cuDNN",
        r"Cudnn\w+",
        "which a recurrent layer is traced to where TensorFlow sees a GPU. "
        "Build it with use_cudnn=False, or publish with "
        "keras_mgda.export_saved_model, which traces an LSTM and a GRU so.",
    ),
    (
        "An answer must not depend on earlier requests",
        r"\w*Assign\w*|(Resource)?(Sparse)?Apply\w+|(Resource)?CountUpTo"
        r"|(Resource)?Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)"
        r"|LookupTable(Insert|Import|Remove)\w*",
        "which change state. Build the model with layers that keep none, as "
        "stateful=False.",
    ),
    (
        "Equal requests must get equal answers",
        # Not Stateless*: from a constant seed it draws the same each time.
        r"Random\w+|(Parameterized)?TruncatedNormal|Multinomial|Rng\w+"
        r"|Stateful(Random|Standard|Truncated|Uniform)\w+|SampleDistorted\w+"
        r"|NonDeterministicInts|\w+CandidateSampler",
        "which draw random numbers. Look for layers that do so whatever "
        "`training` says.",
    ),
)

_FALSE = tf.compat.v1.AttrValue(b=False)


def problems(artifact: Artifact) -> Iterator[str]:
    """A sentence for each kind of operation that no server should run."""
    nodes, functions = reached(artifact)
    compiled = [node.name for node in nodes if _must_compile(node)]
    compiled += [name for name, f in functions.items() if _must_compile(f)]
    if compiled:
        yield (
            "TensorFlow Serving fails on what only XLA can run, unless it was "
            f"started for it. Found: {_listed(compiled)}, made by "
            "tf.function(jit_compile=True). Drop jit_compile there; "
            "model.compile(jit_compile=True) may stay."
        )
    for rule, types, remedy in _REFUSED:
        names = [node.name for node in nodes if re.fullmatch(types, node.op)]
        if names:
            yield f"{rule}. Found: {_listed(names)}, {remedy}"
    yield from _unread_weights(artifact, {node.name for node in nodes})


def reached(artifact: Artifact) -> tuple[list[Any], dict[str, Any]]:
    """The nodes and functions on which some signature's answer depends."""
    graph = artifact.meta_graph.graph_def
    nodes = {node.name: node for node in graph.node}
    served: dict[str, Any] = {}
    pending = [
        spec.name
        for signature in artifact.signatures.values()
        for spec in signature.outputs.values()
        if spec.name
    ]
    while pending:
        name = pending.pop().lstrip("^").split(":")[0]
        if name not in served:
            served[name] = nodes[name]
            pending.extend(nodes[name].input)
    functions = called_functions(
        served.values(), by_name(graph.library.function)
    )
    inner = (node for f in functions.values() for node in f.node_def)
    return [*served.values(), *inner], functions


def _must_compile(called: Any) -> bool:
    # `attr[...]` would add the attribute.
    return called.attr.get("_XlaMustCompile", _FALSE).b


def _unread_weights(artifact: Artifact, reached: set[str]) -> Iterator[str]:
    stored = artifact.weights_bytes
    read = sum(
        tf.as_dtype(node.attr["dtype"].type).size
        * (tf.TensorShape(node.attr["shape"].shape).num_elements() or 0)
        for node in artifact.meta_graph.graph_def.node
        if node.op == "VarHandleOp" and node.name in reached
    )
    if stored - read > 0.1 * stored:
        yield (
            f"Weights must be stored once. Found: {stored} bytes of weights of "
            f"which the signatures read {read}. model.export() stores each "
            "weight twice, and the server loads both: publish with "
            "keras_mgda.export_saved_model."
        )


def _listed(names: Sequence[str]) -> str:
    """The first names of many."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
