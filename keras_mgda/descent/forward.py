"""What one training step leaves for its backward pass.

The layers and losses of a model know where the tasks part and where each ends;
the training step needs both. While `record()` is open, `SharedRepresentation`
leaves its tensors here and `TaskLoss` its values. Outside of it they do
nothing, so evaluation, prediction and export see plain Keras.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import tensorflow as tf

_current: ContextVar["Recording | None"] = ContextVar(
    "keras_mgda_recording", default=None
)


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
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        @tf.custom_gradient
        def identity(x: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
            return tf.identity(x), lambda dy: dy if self._open else None

        return identity(x)


class Representation(NamedTuple):
    """A shared representation on both sides of its gate.

    Attributes:
        encoded: `[b, ...]`, as the encoder left it.
        read: `[b, ...]`, the same values as the heads read them.
        group: what marked it. What has one group belongs together, and has to
            serve several tasks together only.
    """

    encoded: tf.Tensor
    read: tf.Tensor
    group: Any = None


class Recording:
    """The shared representations and task losses of one forward pass.

    Attributes:
        tape: the persistent tape that watched the forward pass.
        representations: in the order in which they were met.
        read_before: the TensorFlow variables that were read before the last
            representation was. All variables of the encoder are among them.
        task_losses: `{task: losses}`, each `[]` and before `loss_weights`; one,
            unless `compute_loss` computes it more than once.
        summands: the same values as they entered the total loss.
        num_labels: `{task: []}`, how many examples of this replica's batch
            are labelled; empty if nobody counts them.
        encoder_gate: shut between the heads and the encoder.
        loss_gate: shut between the total loss and the task losses.
    """

    def __init__(self, tape: tf.GradientTape) -> None:
        self.tape = tape
        self.graph = tf.compat.v1.get_default_graph()
        self.representations: list[Representation] = []
        self.read_before: tuple[tf.Variable, ...] = ()
        self.task_losses: dict[str, list[tf.Tensor]] = {}
        self.summands: dict[str, list[tf.Tensor]] = {}
        self.num_labels: dict[str, tf.Tensor] = {}
        self.encoder_gate = Gate()
        self.loss_gate = Gate()

    def mark_representations(
        self, tensors: Sequence[Any], group: Any
    ) -> list[Any]:
        """Notes those of one group; returns what the heads shall read.

        Tensors that are not floating point are passed on beside one that is.
        """
        floating = [_is_floating(tensor) for tensor in tensors]
        return [
            self._mark_values(tensor, group)
            if is_floating or not any(floating)
            else tensor
            for tensor, is_floating in zip(tensors, floating, strict=True)
        ]

    def _mark_values(self, tensor: Any, group: Any) -> Any:
        if isinstance(tensor, tf.RaggedTensor):
            marked = self.mark_representation(tensor.flat_values, group)
            return tensor.with_flat_values(marked)
        return self.mark_representation(tensor, group)

    def mark_representation(
        self, encoded: tf.Tensor, group: Any = None
    ) -> tf.Tensor:
        """Notes a shared representation; returns what the heads shall read."""
        if not encoded.dtype.is_floating:
            raise ValueError(
                "A shared representation must be floating point, or it has no "
                f"gradient. Received: {encoded.dtype.name}. Mark what is made "
                "from it instead."
            )
        # A frozen encoder leaves nothing on the tape, but its representation
        # still has task gradients.
        self.tape.watch(encoded)
        read = self.encoder_gate(encoded)
        self.representations.append(Representation(encoded, read, group))
        self.read_before = self.tape.watched_variables()
        return read

    def mark_task_loss(self, task: str, loss: tf.Tensor) -> tf.Tensor:
        """Notes a task's loss; returns what shall enter the total loss."""
        self.tape.watch(loss)  # even if nothing is trained on its path
        summand = self.loss_gate(loss)
        self.task_losses.setdefault(task, []).append(loss)
        self.summands.setdefault(task, []).append(summand)
        return summand

    def complete(self, task_names: Sequence[str]) -> None:
        """Puts the losses in this order, whichever Keras computed them in.

        Raises:
            ValueError: if the forward pass left out a task's loss, or met no
                shared representation.
        """
        if set(self.task_losses) != set(task_names):
            raise ValueError(
                "`compute_loss` must call the compiled loss of every task, as "
                "`super().compute_loss(...)` does. Received: the tasks "
                f"{list(task_names)}, calls for {list(self.task_losses)}."
            )
        if not self.representations:
            raise ValueError(
                "A `SharedRepresentation` must mark where the tasks part. "
                "Received: a model that calls none. Add the layer between "
                "encoder and heads, or use `MGDAModel.from_model(model)`."
            )
        self.task_losses = {task: self.task_losses[task] for task in task_names}
        self.summands = {task: self.summands[task] for task in task_names}
        if self.num_labels:
            self.num_labels = {t: self.num_labels[t] for t in task_names}


def _is_floating(tensor: Any) -> bool:
    return getattr(tensor, "dtype", None) is not None and (
        tf.as_dtype(tensor.dtype).is_floating
    )


@contextlib.contextmanager
def record() -> Iterator[Recording]:
    """Records the forward pass in this block. One per replica and step."""
    with tf.GradientTape(persistent=True) as tape:
        recording = Recording(tape)
        token = _current.set(recording)
        try:
            yield recording
        finally:
            _current.reset(token)


def current() -> Recording | None:
    """The recording that is open here, if any.

    A graph within that of the step, such as the one in which Keras builds a
    model that was never called, is none of it.
    """
    step = _current.get()
    here = tf.compat.v1.get_default_graph()
    return step if step and step.graph is here else None
