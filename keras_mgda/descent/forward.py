"""What the forward pass leaves for the backward pass: `Z` and the losses.

The layers and losses of a model know where the tasks part and where each ends;
the training step needs both. While `record_forward_pass()` is open,
`SharedRepresentation` leaves its tensors here and `TaskLoss` its values.
Outside of it they do nothing, so evaluation, prediction and export see plain
Keras.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import keras
import tensorflow as tf

_current: ContextVar["ForwardPass | Repetition | None"] = ContextVar(
    "keras_mgda_forward_pass", default=None
)


# How a step asks for gradients of its forward pass: for one; for several, each
# in the graph of the step itself; or for some in a loop or a branch, or to be
# differentiated again.
Asks = Literal["once", "often", "nested"]


class Gate:
    """The identity, whose backward pass can be shut.

    A tape walks back from a loss through all that led to it, even when the
    gradient is asked for at `Z` alone. Shut gates end that walk, so that task
    gradients cost the heads only; open ones let the one combined gradient
    through to the encoder, also when one representation feeds another.
    """

    def __init__(self) -> None:
        self._open = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Lets the gradients asked for in this block pass."""
        before, self._open = self._open, True
        try:
            yield
        finally:
            self._open = before

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        @tf.custom_gradient
        def identity(x: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
            return tf.identity(x), lambda dy: dy if self._open else None

        return identity(x)


class Representation(NamedTuple):
    """A tensor of the shared representation, on both sides of its gate.

    Attributes:
        encoded: `[b, ...]`, as the encoder left it.
        read: `[b, ...]`, the same values as the heads read them.
        group: what marked it. Tensors of one group belong together: the tasks
            share the group, and need not share each of them.
    """

    encoded: tf.Tensor
    read: tf.Tensor
    group: Any


class ColumnHead(NamedTuple):
    """The last layer of an output whose columns are tasks: `X W + b`.

    Attributes:
        logits: `[b, ..., m]`, what the layer computes; a column's loss depends
            on that column alone.
        kernel: `W`, as the layer read it, in its precision.
        variables: the kernel `W [d, m]`, and `b [m]` if there is one.
        of_z: the mark whose tensor of `Z` is `X`; `None` if other layers stand
            between.
    """

    logits: tf.Tensor
    kernel: tf.Tensor
    variables: Sequence[keras.Variable]
    of_z: Any


class ForwardPass:
    """The shared representation and the task losses of one forward pass.

    An output is one task, with losses `[]`, or `m` tasks that are its columns,
    with losses `[m]`.

    Attributes:
        asked: how gradients are asked for.
        representations: the tensors of `Z`, in the order in which they were
            met.
        read_before: the TensorFlow variables that were read before the last
            of them was. All variables of the encoder are among them.
        task_losses: `{output: losses}`, each before `loss_weights`; one, unless
            `compute_loss` computes it more than once.
        summands: the same values as they entered the total loss.
        num_labels: `{output: number}`, how many examples of this replica's
            batch are labelled for each task; empty if nobody counts them.
        column_heads: `{output: head}` of those whose columns are tasks.
        encoder_gate: shut between the heads and the encoder.
        loss_gate: shut between the total loss and the task losses.
    """

    def __init__(
        self, tape: tf.GradientTape, asked: Asks, *, in_graph: bool
    ) -> None:
        self.asked = asked
        self._tape = tape
        self._in_graph = in_graph
        self.graph = tf.compat.v1.get_default_graph()
        self.representations: list[Representation] = []
        self.read_before: tuple[tf.Variable, ...] = ()
        self.task_losses: dict[str, list[tf.Tensor]] = {}
        self.summands: dict[str, list[tf.Tensor]] = {}
        self.num_labels: dict[str, tf.Tensor] = {}
        self.column_heads: dict[str, ColumnHead] = {}
        self.encoder_gate = Gate()
        self.loss_gate = Gate()
        self.marked_elsewhere = False

    @property
    def num_tasks(self) -> int:
        return sum(map(num_tasks_of, self.task_losses.values()))

    @property
    def output_of_task(self) -> list[str]:
        """The output of each of the `m` tasks, in order."""
        return [
            output
            for output, losses in self.task_losses.items()
            for _ in range(num_tasks_of(losses))
        ]

    @property
    def labels_by_task(self) -> tf.Tensor:
        """`[m]`: `num_labels`, where somebody counts them."""
        return by_task(list(self.num_labels.values()))

    def by_output(self, of_tasks: tf.Tensor) -> list[tf.Tensor]:
        """`[m]` as one tensor for each output, of the shape of its losses."""
        losses = self.task_losses.values()
        if not any(of_output[0].shape.rank for of_output in losses):
            return tf.unstack(of_tasks)
        parts = tf.split(of_tasks, list(map(num_tasks_of, losses)))
        return [
            tf.reshape(part, of_output[0].shape)
            for part, of_output in zip(parts, losses, strict=True)
        ]

    def mark_representation(self, encoded: tf.Tensor, group: Any) -> tf.Tensor:
        """Notes a tensor of `Z`; returns what the heads shall read."""
        if not encoded.dtype.is_floating:
            raise ValueError(
                "A shared representation must be floating point, or it has no "
                f"gradient. Received: {encoded.dtype.name}. Mark what is made "
                "from it instead."
            )
        # A frozen encoder leaves nothing on the tape, but its representation
        # still has task gradients.
        self._tape.watch(encoded)
        read = self.encoder_gate(encoded)
        self.representations.append(Representation(encoded, read, group))
        self.read_before = self._tape.watched_variables()
        return read

    def mark_task_loss(self, output: str, loss: tf.Tensor) -> tf.Tensor:
        """Notes the loss of a task, or those of all columns of an output.

        Returns:
            What shall enter the total loss.
        """
        self._tape.watch(loss)  # even if nothing is trained on its path
        summand = self.loss_gate(loss)
        self.task_losses.setdefault(output, []).append(loss)
        self.summands.setdefault(output, []).append(summand)
        return summand

    def mark_logits(self, output: str, head: ColumnHead) -> None:
        """Notes where the columns of an output are computed."""
        self._tape.watch(head.logits)  # even if nothing is trained before
        self.column_heads[output] = head

    def gradient(
        self, targets: Any, sources: Any, output_gradients: Any = None
    ) -> Any:
        """As `tf.GradientTape.gradient`: in the structure of the sources."""
        if not self._in_graph:
            return self._tape.gradient(targets, sources, output_gradients)
        flat = tf.nest.flatten(sources)
        if not flat:
            return sources
        # A branch that asks would find handles of its own, which nothing read.
        with self.graph.as_default():
            flat = [
                tf.convert_to_tensor(x.handle)
                if isinstance(x, tf.Variable)
                else x
                for x in flat
            ]
        if output_gradients is not None:
            output_gradients = tf.nest.flatten(output_gradients)
        found = tf.gradients(tf.nest.flatten(targets), flat, output_gradients)
        return tf.nest.pack_sequence_as(sources, found)

    def complete(self, outputs: Sequence[str]) -> None:
        """Puts the losses in this order, whichever Keras computed them in.

        Raises:
            ValueError: if the forward pass left out a task's loss.
        """
        if set(self.task_losses) != set(outputs):
            raise ValueError(
                "`compute_loss` must call the compiled loss of every task, as "
                "`super().compute_loss(...)` does. Received: the tasks "
                f"{list(outputs)}, calls for {list(self.task_losses)}."
            )
        self.task_losses = {name: self.task_losses[name] for name in outputs}
        self.summands = {name: self.summands[name] for name in outputs}
        if self.num_labels:
            self.num_labels = {name: self.num_labels[name] for name in outputs}

    def require_representation(self) -> None:
        """Raises a `ValueError` unless the forward pass met a `Z`."""
        if self.representations:
            return
        if self.marked_elsewhere:
            raise ValueError(
                "A `SharedRepresentation` must be called by the training step "
                "itself. Received: one inside a `tf.function`, whose graph "
                "the step cannot look into. Remove the decorator from `call`: "
                "Keras compiles the whole step anyway."
            )
        raise ValueError(
            "A `SharedRepresentation` must mark where the tasks part. "
            "Received: a model that calls none. Add the layer between "
            "encoder and heads, use `MGDAModel.from_model(model)`, or "
            "`gradients='parameters'`, which needs none."
        )

    def before_representation(
        self, variables: Sequence[keras.Variable]
    ) -> list[bool]:
        """Which variables were read before `Z`, as the encoder's are."""
        before = {variable.ref() for variable in self.read_before}
        return [value.ref() in before for value in values(variables)]

    def reaching(
        self, targets: list[tf.Tensor], sources: Sequence[Any]
    ) -> list[bool]:
        """Which of the sources the targets depend on."""
        if not targets or not sources:
            return [False] * len(sources)
        found: list[bool] = []

        def look() -> None:
            gradients = self.gradient(targets, list(sources))
            found.extend(gradient is not None for gradient in gradients)

        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            look()  # may hold sums over replicas, which no other graph can
        else:
            # Traced, and never run.
            tf.function(look, autograph=False).get_concrete_function()
        return found

    def can_vectorize(self) -> bool:
        """Whether XLA could compile several backward passes side by side.

        Not in eager code, each time anew, nor with loops in the forward pass.
        """
        return not tf.executing_eagerly() and not any(
            op.type.endswith("While") or op.type.startswith("TensorList")
            for op in self.graph.get_operations()
        )


class Repetition:
    """What a forward pass left that is made once more, for its losses alone.

    Args:
        given: what the heads shall read for the tensors of `Z`; `None` for
            what the encoder leaves.

    Attributes:
        read: what they did read.
        task_losses: as those of a `ForwardPass`.
        num_labels: as well.
    """

    def __init__(self, given: Sequence[tf.Tensor] | None) -> None:
        self.graph = tf.compat.v1.get_default_graph()
        self.marked_elsewhere = False
        self.read: list[tf.Tensor] = []
        self.task_losses: dict[str, list[tf.Tensor]] = {}
        self.num_labels: dict[str, tf.Tensor] = {}
        self._given = given

    def mark_representation(self, encoded: tf.Tensor, group: Any) -> tf.Tensor:
        if self._given is not None:
            encoded = self._given[len(self.read)]
        self.read.append(tf.identity(encoded))
        return self.read[-1]

    def mark_task_loss(self, output: str, loss: tf.Tensor) -> tf.Tensor:
        self.task_losses.setdefault(output, []).append(loss)
        return loss

    def complete(self, outputs: Sequence[str]) -> None:
        """Puts the losses in this order."""
        self.task_losses = {name: self.task_losses[name] for name in outputs}


@contextlib.contextmanager
def record_forward_pass(asked: Asks = "nested") -> Iterator[ForwardPass]:
    """Records the forward pass in this block. One per replica and step.

    A tape that tells more than one gradient keeps every loop of the graph, such
    as that of a recurrent layer, fit for derivatives of any order: a GRU takes
    a third longer. So a step that asks often, but for first derivatives only,
    asks the graph that it is traced into, where there is one; the tape then
    tells which variables were read.

    Args:
        asked: how gradients will be asked for.
    """
    in_graph = (
        asked == "often"
        and not tf.executing_eagerly()
        and not tf.distribute.has_strategy()  # whose sums a graph cannot derive
    )
    persistent = asked != "once" and not in_graph
    with tf.GradientTape(persistent=persistent) as tape:
        forward = ForwardPass(tape, asked, in_graph=in_graph)
        token = _current.set(forward)
        try:
            yield forward
        finally:
            _current.reset(token)


@contextlib.contextmanager
def repeat_forward_pass(
    given: Sequence[tf.Tensor] | None = None,
) -> Iterator[Repetition]:
    """Notes the forward pass in this block, without a tape.

    Args:
        given: what the heads shall read for `Z`.
    """
    repeated = Repetition(given)
    token = _current.set(repeated)
    try:
        yield repeated
    finally:
        _current.reset(token)


def current_forward_pass() -> ForwardPass | Repetition | None:
    """The forward pass that is recorded here, if any.

    A graph within that of the step, such as the one in which Keras builds a
    model that was never called, is no part of it.
    """
    forward = _current.get()
    here = tf.compat.v1.get_default_graph()
    return forward if forward and forward.graph is here else None


def mark_representation(tensors: Sequence[Any], group: Any) -> list[Any]:
    """Marks tensors of `Z`, where a forward pass is recorded.

    What is not floating point is passed on beside a tensor that is.
    """
    forward = current_forward_pass()
    if forward is None:
        if (elsewhere := _current.get()) is not None:
            elsewhere.marked_elsewhere = True
        return list(tensors)
    floating = [
        tensor is not None and tf.as_dtype(tensor.dtype).is_floating
        for tensor in tensors
    ]
    marked = []
    for tensor, is_floating in zip(tensors, floating, strict=True):
        if any(floating) and not is_floating:
            marked.append(tensor)
        elif isinstance(tensor, tf.RaggedTensor):
            read = forward.mark_representation(tensor.flat_values, group)
            marked.append(tensor.with_flat_values(read))
        else:
            marked.append(forward.mark_representation(tensor, group))
    return marked


def by_task(of_outputs: Sequence[tf.Tensor]) -> tf.Tensor:
    """`[m]` from one tensor for each output: the inverse of `by_output`."""
    if not any(of_output.shape.rank for of_output in of_outputs):
        return tf.stack(of_outputs)
    return tf.concat([tf.reshape(v, [-1]) for v in of_outputs], axis=0)


def losses_by_task(
    forward: ForwardPass | Repetition, dtype: tf.DType
) -> tf.Tensor:
    """`[m]`: the losses before `loss_weights`, this replica's summands."""
    return by_task(
        [
            tf.add_n([tf.cast(loss, dtype) for loss in of_output])
            for of_output in forward.task_losses.values()
        ]
    )


def num_tasks_of(losses: Sequence[tf.Tensor]) -> int:
    """One for a loss `[]`, and `m` for `[m]`."""
    return int(losses[0].shape.num_elements())


def values(variables: Sequence[keras.Variable]) -> list[tf.Variable]:
    """The TensorFlow variables, which a tape knows."""
    return [variable.value for variable in variables]
