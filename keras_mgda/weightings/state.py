"""Weightings that remember, and the variables that hold what they do."""

import abc
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.linalg import symmetric_gram
from keras_mgda.weightings.weighting import Weighting

Values = dict[str, tf.Tensor]


class State(keras.layers.Layer):
    """Variables that are saved with a model and trained by nobody.

    A layer of its own, so that weight files go to and fro between an
    `MGDAModel` and a plain `keras.Model`, which has none of these: where a file
    holds nothing for it, the state stays as it is.

    Args:
        initial: `{name: array}`.
    """

    def __init__(self, initial: Mapping[str, Any]) -> None:
        super().__init__(name="weighting_state", dtype="float32")
        self._by_name = {
            name: self.add_weight(
                name=name,
                shape=np.shape(value),
                initializer=keras.initializers.Constant(value),
                dtype=np.asarray(value).dtype.name,
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
            )
            for name, value in initial.items()
        }
        self.built = True

    def read(self) -> Values:
        return {
            name: tf.convert_to_tensor(variable.value)
            for name, variable in self._by_name.items()
        }

    def update(self, values: Values, accepted: tf.Tensor) -> tf.Tensor:
        """Takes all of the values, or none if one of them is not finite.

        Args:
            values: as `read` returns them; what is left out stays.
            accepted: `[]`, bool: whether to take them.

        Returns:
            `[]`, bool: whether they were taken.
        """
        for value in values.values():
            if value.dtype.is_floating:
                accepted &= tf.reduce_all(tf.math.is_finite(value))
        for name, value in values.items():
            variable = self._by_name[name]
            variable.assign(tf.where(accepted, value, variable.value))
        return accepted

    def assign(self, name: str, value: Any) -> None:
        """Sets a variable, between steps."""
        self._by_name[name].assign(value)

    def value(self, name: str) -> np.ndarray:
        """What a variable holds, between steps."""
        return self._by_name[name].numpy()

    def save_own_variables(self, store: Any) -> None:
        for name, variable in self._by_name.items():
            store[name] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        if not store.keys():
            return
        found = {name: store[name].shape for name in store.keys()}  # noqa: SIM118
        own = {name: tuple(v.shape) for name, v in self._by_name.items()}
        if found != own:
            raise ValueError(
                "The state in the file must be that of the same weighting of "
                f"as many tasks. Received: {found} for {own}. Compile as the "
                "model that was saved, or load with `skip_mismatch=True`."
            )
        for name, variable in self._by_name.items():
            variable.assign(store[name])


class StatefulWeighting(Weighting):
    """A weighting that remembers.

    Its state lives in the variables of a `State`, which a model that is
    compiled with it saves and loads. A step whose Gram matrix, losses or new
    state are not finite, or whose losses the weighting does not admit, leaves
    it as it was, and has NaN task weights.
    """

    state: State
    # Whether the step is one XLA program, shared by all of the same config.
    # To be set by each class for itself, as a subclass may hold anything; an
    # instance whose step is more than a function of its config unsets it.
    compiles_step = False

    def __init__(self) -> None:
        self.state = State({})

    def build(self, task_names: Sequence[str]) -> None:
        """Starts from the initial state, in new variables."""
        self._num_tasks = len(task_names)
        self.state = State(self.initial_state(self._num_tasks))

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        gram = symmetric_gram(gram)
        if not self.state.variables:
            with tf.init_scope():
                self.build([str(task) for task in range(gram.shape[0])])
        if gram.shape[0] != self._num_tasks:
            raise ValueError(
                f"`gram` must have the {self._num_tasks} tasks that the state "
                f"is for. Received: shape {gram.shape}. Use a new weighting."
            )
        finite = tf.constant(True)
        if self.uses_losses:
            task_losses = self.check_losses(task_losses, gram)
            finite &= tf.reduce_all(tf.math.is_finite(task_losses))
            finite &= tf.reduce_all(self.admits(task_losses))
        if self.uses_gram:
            finite &= tf.reduce_all(tf.math.is_finite(gram))
        step = self.step
        if vars(type(self)).get("compiles_step") and self.compiles_step:
            step = _compiled_step(type(self), tuple(self.get_config().items()))
        task_weights, values = step(self.state.read(), gram, task_losses)
        accepted = self.state.update(values, finite)
        task_weights = tf.cast(task_weights, tf.float32)
        return tf.where(accepted, task_weights, float("nan"))

    @abc.abstractmethod
    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        """`{name: array}`."""

    @abc.abstractmethod
    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        """The task weights `[m]` of one step, and the state after it.

        Args:
            state: `{name: tensor}`.
            gram: `[m, m]`.
            task_losses: `[m]`, float64, if the weighting uses them.
        """


@functools.cache
def _compiled_step(cls: type[StatefulWeighting], config: Any) -> Any:
    # Not a method of each instance, which would compile for each.
    return tf.function(
        cls(**dict(config)).step, jit_compile=True, autograph=False
    )
