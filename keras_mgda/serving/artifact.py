"""An exported model as it is on disk: what it can be asked, and its answers.

All is read from the files, and run by a session as TensorFlow Serving runs it.
The Keras model is not needed.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from keras_mgda.serving.versions import GRAPH

_INITIALIZER = "__saved_model_init_op"


@dataclasses.dataclass(frozen=True)
class Signature:
    """One question: `{name: tf.TensorSpec}` in and out.

    The name of each spec is that of its tensor in the graph.
    """

    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]

    def __str__(self) -> str:
        return f"({_describe(self.inputs)}) -> {_describe(self.outputs)}"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An exported model.

    `str(artifact)` is a table of its signatures.

    Attributes:
        path: Its folder. The name of a published one is its version.
        signatures: What it can be asked, by name.
        graph_bytes: The size of the graph.
        weights_bytes: The size of the weights.
        total_bytes: The size of all files.
        meta_graph: The `MetaGraphDef` that servers load.
    """

    path: Path
    signatures: dict[str, Signature]
    graph_bytes: int
    weights_bytes: int
    total_bytes: int
    meta_graph: Any = dataclasses.field(repr=False, compare=False)

    def __str__(self) -> str:
        sizes = (
            f"{self.path}: {self.total_bytes / 1e6:.2f} MB "
            f"(weights {self.weights_bytes / 1e6:.2f}, "
            f"graph {self.graph_bytes / 1e6:.2f})"
        )
        table = (f"  {name}{s}" for name, s in self.signatures.items())
        return "\n".join([sizes, *table])


def read(path: str | os.PathLike[str]) -> Artifact:
    """Reads an exported model.

    Raises:
        ValueError: The folder holds no SavedModel for serving.
    """
    path = Path(path)
    if not (path / GRAPH).is_file():
        raise ValueError(
            f"An exported model is a folder with a {GRAPH}. Received: {path}. "
            "A version that lacks it was not written by one rename: remove it."
        )
    meta_graph = _serving_graph(path / GRAPH)
    return Artifact(
        path=path,
        signatures={
            name: Signature(_specs(s.inputs), _specs(s.outputs))
            for name, s in sorted(meta_graph.signature_def.items())
            if name != _INITIALIZER
        },
        graph_bytes=(path / GRAPH).stat().st_size,
        weights_bytes=_weights_bytes(path, meta_graph),
        total_bytes=sum(
            f.stat().st_size for f in path.rglob("*") if f.is_file()
        ),
        meta_graph=meta_graph,
    )


@contextlib.contextmanager
def loaded(
    artifact: Artifact,
) -> Iterator[Callable[[str, Mapping[str, np.ndarray]], dict[str, np.ndarray]]]:
    """Loads an exported model as a server does.

    Yields:
        A function from the name of a signature and `{input: array}` to
        `{output: array}`.
    """
    meta_graph = artifact.meta_graph
    assets = {
        file.tensor_info.name: str(artifact.path / "assets" / file.filename)
        for file in meta_graph.asset_file_def
    }
    graph = tf.Graph()
    # Only what a request needs is placed and optimized, a quarter faster.
    config = tf.compat.v1.ConfigProto()
    config.graph_options.place_pruned_graph = True
    session = tf.compat.v1.Session(graph=graph, config=config)
    with contextlib.closing(session):
        with graph.as_default():
            saver = tf.compat.v1.train.import_meta_graph(meta_graph)
            if saver is not None:  # It has variables.
                saver.restore(session, str(_weights(artifact.path)))
        # `[...]` would add it, and TensorFlow 1 writes none.
        if _INITIALIZER in meta_graph.signature_def:
            initialize = meta_graph.signature_def[_INITIALIZER]
            session.run(initialize.outputs[_INITIALIZER].name, assets)

        def answer(
            signature: str, inputs: Mapping[str, np.ndarray]
        ) -> dict[str, np.ndarray]:
            asked = artifact.signatures[signature]
            return session.run(
                {name: spec.name for name, spec in asked.outputs.items()},
                {asked.inputs[n].name: array for n, array in inputs.items()},
            )

        yield answer


def _serving_graph(file: Path) -> Any:
    try:
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except DecodeError as error:
        raise ValueError(
            f"{file} must be a SavedModel. Received: one that is cut."
        ) from error
    tags = [set(graph.meta_info_def.tags) for graph in saved.meta_graphs]
    if {"serve"} not in tags:
        raise ValueError(
            "TensorFlow Serving loads the graph tagged 'serve'. Received: "
            f"{file} with the tags {tags}."
        )
    return saved.meta_graphs[tags.index({"serve"})]


def _weights_bytes(path: Path, meta_graph: Any) -> int:
    if not meta_graph.HasField("saver_def"):  # It has no variables.
        return 0
    try:
        checkpoint = tf.train.load_checkpoint(str(_weights(path)))
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"An exported model has weights. Received: {path} without "
            f"{_weights(path)}.index, or a broken one. Publish it again."
        ) from error
    dtypes = checkpoint.get_variable_to_dtype_map()
    return sum(
        dtypes[name].size * int(np.prod(shape))
        for name, shape in checkpoint.get_variable_to_shape_map().items()
        if name.endswith("VARIABLE_VALUE")
    )


def _weights(path: Path) -> Path:
    return path / "variables" / "variables"


def _specs(tensors: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
    return {
        name: tf.TensorSpec(
            tf.TensorShape(info.tensor_shape),
            tf.as_dtype(info.dtype),
            name=info.name,
        )
        for name, info in sorted(tensors.items())
    }


def _describe(specs: Mapping[str, tf.TensorSpec]) -> str:
    return ", ".join(
        f"{name}: {spec.dtype.name}{spec.shape}" for name, spec in specs.items()
    )
