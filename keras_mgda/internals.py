"""What this package uses of Keras and TensorFlow that they do not promise.

All of it stands here, each with its reason and the condition under which it can
go. `tests/test_internals.py` fails when one of them changes. Checked with
Keras 3.10 to 3.15 and TensorFlow 2.18 to 2.21.
"""

import collections
import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator

_some_input = keras.Input((1,), name="input")
_some_output = keras.layers.Identity(name="output")(_some_input)

# What `keras.Model(inputs, outputs)` is: Keras exports no name of it. Can go
# when it does.
Functional = type(keras.Model(_some_input, _some_output, name="model"))


class ExchangingFunctional(Functional):  # type: ignore[misc, valid-type]
    """A functional model that can run others in place of its own layers.

    Keras asks for each layer by the argument `operation_fn` of the private
    method by which it runs the graph, as its own `clone_model` does. Can go
    when `call` takes such a function.
    """

    def exchanged(self, operation: Any) -> Any:
        """What to run in place of a layer, or another operation."""
        return operation

    def in_training(self, operation: Any) -> Any:
        """The same, in a training step."""
        return self.exchanged(operation)

    def _run_through_graph(
        self,
        inputs: Any,
        operation_fn: Callable[[Any], Any] = lambda operation: operation,
        **kwargs: Any,
    ) -> Any:
        return super()._run_through_graph(
            inputs,
            lambda operation: operation_fn(self.exchanged(operation)),
            **kwargs,
        )


def nodes(model: keras.Model) -> list[Any]:
    """What Keras notes of each call in the graph of a functional model.

    Each stands before those that read of it; of equal depth they are in the
    order of the layers. A node has `operation`, `arguments`, `input_tensors`,
    `outputs`. Can go when Keras documents its graphs.
    """
    order = {id(operation): k for k, operation in enumerate(model.operations)}
    return [
        node
        for _, of_depth in sorted(model._nodes_by_depth.items(), reverse=True)
        for node in sorted(of_depth, key=lambda n: order[id(n.operation)])
        if not node.is_input
    ]


def maker(symbol: keras.KerasTensor) -> Any:
    """The layer, or other operation, that a symbolic tensor comes from."""
    return symbol._keras_history.operation


def variables_unfrozen(layer: keras.layers.Layer) -> list[keras.Variable]:
    """What a layer trains, or would if neither it nor a part was frozen.

    `trainable_variables` is empty for what is frozen.
    """
    return [
        variable
        for part in layer._flatten_layers()
        for variable in part._trainable_variables
    ]


def half_precisions(model: keras.Model) -> set[str]:
    """`"float16"` and `"bfloat16"`, if some layer computes in it."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    return dtypes & {"float16", "bfloat16"}


# The class in which Keras wraps a loss that is a function. It is not exported,
# but the losses that are derive from it. Can go when it is exported.
FunctionLoss = keras.losses.MeanSquaredError.__base__


def put_functional_bases(cls: type, base: type, functional: type) -> None:
    """Puts the class `functional` for `base` under a user's class.

    Keras does the same, with its own classes, to every class of models that is
    used functionally (`keras.Model.__new__`), and takes it for granted in
    `from_config` and `clone_model`. Can go when Keras builds a functional model
    without a class of its own.
    """
    if issubclass(cls, functional):
        return
    for parent in cls.__bases__:
        if issubclass(parent, base) and parent is not base:
            put_functional_bases(parent, base, functional)
    cls.__bases__ = tuple(
        functional if parent is base else parent for parent in cls.__bases__
    )


def loss_tracker(model: keras.Model) -> keras.metrics.Metric:
    """The metric that logs `loss`.

    `model.metrics` has it, unless a subclass overrides that, as the guides of
    Keras do; the stock step uses the attribute, too.
    """
    return model._loss_tracker


def keras_mask(tensor: tf.Tensor) -> tf.Tensor | None:
    """The mask that a layer put on a tensor, for the losses to see.

    `keras.src.backend.get_keras_mask` is public in Keras alone.
    """
    return getattr(tensor, "_keras_mask", None)


def expand_last(tensor: tf.Tensor) -> tf.Tensor:
    """`[..., m]` as `[..., m, 1]`, with the logits that it was made from.

    Keras notes them on the output of a sigmoid, from where its crossentropy
    takes them, for precision. It finds those of TensorFlow's operation, too.
    Can go when Keras does without.
    """
    expanded = tf.expand_dims(tensor, -1)
    logits = getattr(tensor, "_keras_logits", None)
    if logits is None and not tf.executing_eagerly():
        operation = getattr(tensor, "op", None)
        if operation is not None and operation.type == "Sigmoid":
            logits = operation.inputs[0]
    if logits is not None:
        expanded._keras_logits = tf.expand_dims(logits, -1)
    return expanded


def flatten_logs(model: keras.Model, logs: Mapping[str, Any]) -> Any:
    """The list that `train_on_batch` returns for these logs."""
    return model._flatten_metrics_in_order(dict(logs))


def is_no_gradient(gradient: tf.Tensor) -> bool:
    """Whether this stands for a gradient that there is not.

    TensorFlow hands zeros to a custom gradient for an output that nothing
    reads. Only a graph tells how these were made. Can go when `None` is handed
    on.
    """
    if tf.executing_eagerly() or not hasattr(gradient, "op"):
        return False
    return gradient.op.type in ("ZerosLike", "Zeros", "Fill", "Const")


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Those of batch normalization, which Keras marks by their names alone."""
    return [
        variable
        for variable in model.non_trainable_variables
        if variable.name in ("moving_mean", "moving_variance")
    ]


def global_seed_state() -> keras.Variable:
    """What `keras.random` draws from where it is given no seed.

    No layer tracks it. Each thread has its own, made when it is first asked
    for. Can go when Keras exports it, or has none.
    """
    # Keras seeds it from here, when it is first asked for.
    before = random.getstate()
    with tf.init_scope():
        state = global_seed_generator().state
    random.setstate(before)
    return state


def own_part_of_first_batch(strategy: Any, iterator: Any) -> Any:
    """What the first replica sees of the first batch, to learn shapes from.

    For `Model._maybe_symbolic_build`, where Keras reduces the first batch to
    its mean over the replicas. That fails if their parts differ in size, and
    with several workers; the part of one replica has the same shapes. Can go
    when Keras takes a part, too. (One that does not call that method any more
    has another way, and needs none of this.)

    Args:
        strategy: of the model.
        iterator: Keras's epoch iterator, of `(begin, end, iterator)` in
            Keras 3.11 and later, `(begin, iterator)` before.
    """
    *_, batches = next(iter(iterator))
    return keras.tree.map_structure(
        lambda part: strategy.experimental_local_results(part)[0],
        next(batches),
    )


def variables_of_slots(
    slots: Sequence[keras.Variable], variables: Sequence[keras.Variable]
) -> list[int | None]:
    """For each slot of an optimizer the index of the variable it belongs to.

    Keras names a slot after its variable, and makes those of one kind in the
    order of the variables, which tells apart variables of the same path. Can go
    when an optimizer tells whose its variables are.

    Args:
        slots: the variables of an optimizer.
        variables: that it was built for, in this order.

    Returns:
        Indices; `None` for what belongs to no variable alone, such as the
        number of iterations.
    """
    by_name: dict[str, list[int]] = {}
    for i, variable in enumerate(variables):
        by_name.setdefault(variable.path.replace("/", "_"), []).append(i)
    met: collections.Counter[str] = collections.Counter()
    found: list[int | None] = []
    for slot in slots:
        alike = next(
            (by_name[p] for p in _prefixes(slot.name) if p in by_name), [None]
        )
        found.append(alike[met[slot.name] % len(alike)])
        met[slot.name] += 1
    return found


def optimizer_sets(optimizer: keras.optimizers.Optimizer, option: str) -> bool:
    """Whether an optimizer sets an option, or one that it is made of does.

    A `LossScaleOptimizer` has its `inner_optimizer`, a `MultiOptimizer` its
    `optimizers`; the options are attributes of each.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return any(
        getattr(one, option, None)
        for one in getattr(optimizer, "optimizers", [optimizer])
    )


def _prefixes(name: str) -> Iterator[str]:
    """`"a_b"` and `"a"` of `"a_b_c"`."""
    while "_" in name:
        name = name.rpartition("_")[0]
        yield name


def _gradient_of_update_slice(operation: Any, dy: tf.Tensor) -> list[Any]:
    """Of the input and of the update: what was not overwritten, and what was.

    XLA differentiates `tf.slice` by this operation, which has no gradient of
    its own, so that what slices, as position embeddings do, would have no
    second derivative under XLA. Can go when TensorFlow registers one.
    """
    _, update, start = operation.inputs
    inside = tf.ones([], tf.bool)
    for axis, size in enumerate(update.shape):
        place = tf.range(dy.shape[axis], dtype=start.dtype) - start[axis]
        of_axis = [-1 if k == axis else 1 for k in range(dy.shape.rank)]
        inside &= tf.reshape((place >= 0) & (place < size), of_axis)
    kept = tf.where(inside, tf.zeros_like(dy), dy)
    return [kept, tf.slice(dy, start, update.shape), None]


with contextlib.suppress(KeyError):  # TensorFlow has one by now
    tf.RegisterGradient("XlaDynamicUpdateSlice")(_gradient_of_update_slice)
