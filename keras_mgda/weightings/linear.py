"""Linear scalarizations: task weights by neither gradients nor losses."""

import random
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.weightings.preference import TaskNumbers, is_variable
from keras_mgda.weightings.state import State, StatefulWeighting, Values
from keras_mgda.weightings.weighting import Weighting

# Where the weight of a task comes from: a number, a function of the step, or a
# variable.
Source: TypeAlias = Any


@keras.saving.register_keras_serializable(package="keras_mgda")
class Uniform(Weighting):
    """All task weights 1: the plain sum of the task losses, as stock Keras.

    Permutation-equivariant; linear under scaling; scale-invariant. Not non-
    conflicting, not on the simplex.
    """

    uses_gram = False

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        return tf.ones(gram.shape[0], tf.float32)


@keras.saving.register_keras_serializable(package="keras_mgda")
class Fixed(Weighting):
    """Task weights that are given, and change when the user says so.

    They scale what the encoder gets from each task; the heads keep their plain
    gradients. (Keras's own `loss_weights` scale both.) Linear under scaling and
    scale-invariant; not non-conflicting.

    A number stays until `assign` sets another one, which takes effect at the
    next step, without tracing anew. A schedule is a function of the number of
    steps that were taken, 0 at the first. A variable is read at every step.

    Args:
        task_weights: `{task: weight}`, or `m` weights in the order of the
            tasks; `None`: all 1, as `Uniform`. A weight is a number, finite and
            not negative; a `keras.optimizers.schedules.LearningRateSchedule`
            or any other function from the step, `[]`, int64, to a number, of
            TensorFlow; or a variable. A schedule is saved if Keras can
            serialize it. A variable is saved as the number that it is.

    Raises:
        ValueError: for other weights, and when they do not fit the tasks.

    Example:

    >>> import keras
    >>> from keras_mgda import weightings
    >>> rises = keras.optimizers.schedules.PolynomialDecay(0.0, 100, 1.0)
    >>> weighting = weightings.Fixed({"left": 0.5, "right": rises})
    >>> weighting.assign({"left": 0.25})
    >>> weighting.task_weights["left"]
    0.25
    """

    uses_gram = False

    def __init__(
        self,
        task_weights: Mapping[str, Source] | Sequence[Source] | None = None,
    ) -> None:
        self._given = _checked(task_weights)
        self._task_names: list[str] = []  # until `build`
        # Copies of this one that were built, as a model builds its own.
        self._followers: weakref.WeakSet[Fixed] = weakref.WeakSet()
        self._state: Any = State({}) if self.remembers else None

    @property
    def state(self) -> State | None:  # type: ignore[override]
        return self._state

    @property
    def remembers(self) -> bool:
        """Whether a schedule counts the steps."""
        return any(_is_schedule(source) for source in _values(self._given))

    @property
    def task_weights(self) -> Any:
        """The weights in the form in which they were given, read-only.

        To set this is to `assign`.
        """
        given = self._current()
        if isinstance(given, dict):
            return MappingProxyType(given)
        return None if given is None else tuple(given)

    @task_weights.setter
    def task_weights(
        self, task_weights: Mapping[str, float] | Sequence[float]
    ) -> None:
        self.assign(task_weights)

    def assign(
        self, task_weights: Mapping[str, float] | Sequence[float]
    ) -> None:
        """Sets task weights, from the next step on, as a callback may.

        That of a model sets its own weights alone. The one that was given to
        `compile` sets those of all models that were compiled with it.

        Args:
            task_weights: `{task: number}`, the other tasks keeping theirs; or
                `m` numbers in the order of the tasks.

        Raises:
            ValueError: for other numbers, for other tasks, and for a task whose
                weight follows a schedule or a variable.
        """
        numbers = TaskNumbers(task_weights, "Fixed task weights").given
        everyone = [self, *self._followers]
        merged = [one._merged(numbers) for one in everyone]
        for one, given in zip(everyone, merged, strict=True):
            one._given = given
            if one._task_names:
                one._state.assign("task_weights", _floats(one._in_order()))

    def current(self) -> list[Any]:
        """The weights in the order of the tasks, once these are known."""
        self._given = self._current()
        return self._in_order()

    def build(self, task_names: Sequence[str]) -> None:
        TaskNumbers(_numbers(self._current()), "Fixed task weights").in_order(
            task_names
        )
        self._given = self._current()
        self._followers.add(self)
        self._followers = weakref.WeakSet()
        self._task_names = list(task_names)
        initial: dict[str, Any] = {"task_weights": _floats(self._in_order())}
        if self.remembers:
            initial["num_steps"] = np.int64(0)
        self._state = State(initial)

    def __call__(
        self, gram: tf.Tensor, task_losses: tf.Tensor | None = None
    ) -> tf.Tensor:
        m = gram.shape[0]
        if not self._task_names:
            TaskNumbers(_numbers(self._given), "Fixed task weights").tensor(
                gram, default=1
            )
            with tf.init_scope():
                self.build([str(task) for task in range(m)])
        if len(self._task_names) != m:
            raise ValueError(
                "Fixed task weights must fit the Gram matrix. Received: "
                f"{self._given} for shape {tuple(gram.shape)}."
            )
        state = self._state.read()
        task_weights = state["task_weights"]
        sources = self._in_order()
        if any(not isinstance(source, float) for source in sources):
            task_weights = tf.stack(
                [
                    number
                    if isinstance(source, float)
                    else _now(source, state.get("num_steps"))
                    for number, source in zip(
                        tf.unstack(task_weights), sources, strict=True
                    )
                ]
            )
        if self.remembers:
            one_more = {"num_steps": state["num_steps"] + 1}
            self._state.update(one_more, tf.constant(True))
        return tf.stop_gradient(task_weights)

    def get_config(self) -> dict[str, Any]:
        def saved(source: Source) -> Any:
            if is_variable(source):
                return float(source)
            if callable(source):
                return keras.saving.serialize_keras_object(source)
            return source

        return {"task_weights": _mapped(saved, self._current())}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Fixed":
        def loaded(source: Any) -> Any:
            if isinstance(source, Mapping):
                return keras.saving.deserialize_keras_object(source)
            return source

        given = config["task_weights"]
        return cls(**{**config, "task_weights": _mapped(loaded, given)})

    def _in_order(self) -> list[Source]:
        """As given, one for each of the tasks."""
        if self._given is None:
            return [1.0] * len(self._task_names)
        if isinstance(self._given, dict):
            return [self._given[task] for task in self._task_names]
        return list(self._given)

    def _current(self) -> Any:
        """As given, with the numbers that the state holds, as from a file."""
        if not self._task_names:
            return self._given
        held = self._state.value("task_weights")
        now = [
            float(number)
            if isinstance(source, float) and np.float32(source) != number
            else source
            for source, number in zip(self._in_order(), held, strict=True)
        ]
        if isinstance(self._given, dict):
            of_tasks = dict(zip(self._task_names, now, strict=True))
            return {task: of_tasks[task] for task in self._given}
        return None if self._given is None and set(now) == {1.0} else now

    def _merged(self, numbers: Any) -> Any:
        """As given, but for these numbers."""
        given = self._current()
        if given is None and not self._task_names:
            return numbers
        if given is None:
            given = self._in_order()
        old, new = self._keyed(given), self._keyed(numbers)
        is_short = isinstance(numbers, list) and len(numbers) != len(old)
        if is_short or not new.keys() <= old.keys():
            raise ValueError(
                "Fixed task weights must be assigned to the tasks, by their "
                "names or as many as they are. Received: "
                f"{numbers} for {list(old)}."
            )
        for task, number in new.items():
            if not isinstance(old[task], float):
                source = getattr(old[task], "name", type(old[task]).__name__)
                others = [t for t, of in old.items() if isinstance(of, float)]
                raise ValueError(
                    "Only a fixed task weight that is a number can be "
                    f"assigned. Received: {number} for {task!r}, which follows "
                    f"{source!r}. Assign to others, by name ({others}), "
                    "compile with a number, or set the variable itself, if it "
                    "is one."
                )
        merged = old | new
        if isinstance(given, dict):
            return {task: merged[task] for task in given}
        return list(merged.values())

    def _keyed(self, values: Any) -> dict[Any, Any]:
        """By task; by position as long as the tasks are not known."""
        if isinstance(values, dict):
            return values
        keys = self._task_names or range(len(values))
        return dict(zip(keys, values, strict=False))


@keras.saving.register_keras_serializable(package="keras_mgda")
class Random(StatefulWeighting):
    """Random loss weighting: other task weights at every step.

    ```
    w = softmax(x),   x_t ~ N(0, 1)
    ```

    a function of the seed and the number of the step: runs repeat, and go on
    where they were interrupted. On the simplex; scale-invariant and, for the
    same draw, linear under scaling; not non-conflicting.

    Args:
        seed: of the draws; `None` draws one.

    References:
        Lin et al., 2022. Reasonable Effectiveness of Random Weighting: A Litmus
        Test for Multi-Task Learning, algorithm 2.
        https://arxiv.org/abs/2111.10603
    """

    uses_gram = False

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.seed = random.getrandbits(31) if seed is None else seed

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        return {"num_steps": np.int64(0)}

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        steps = state["num_steps"]
        seed = tf.stack([self.seed, steps])
        return _random(gram.shape[0], seed), {"num_steps": steps + 1}

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


# By XLA everywhere, for it draws other numbers than TensorFlow does without.
@tf.function(jit_compile=True, autograph=False)
def _random(num_tasks: int, seed: tf.Tensor) -> tf.Tensor:
    draws = tf.random.stateless_normal([num_tasks], seed, alg="philox")
    return tf.nn.softmax(draws)


def _checked(given: Any) -> Any:
    """As given, numbers as `float`.

    Raises:
        ValueError: for what is neither number, schedule nor variable.
    """
    numbers = TaskNumbers(_numbers(given), "Fixed task weights").given
    if isinstance(given, Mapping):
        return {
            task: numbers[task] if _is_number(source) else source  # type: ignore[index]
            for task, source in given.items()
        }
    if given is None:
        return None
    return [
        number if _is_number(source) else source
        for number, source in zip(numbers or [], given, strict=True)
    ]


def _is_schedule(source: Any) -> bool:
    return callable(source) and not is_variable(source)


def _is_number(source: Any) -> bool:
    return not callable(source) and not is_variable(source)


def _mapped(change: Callable[[Any], Any], given: Any) -> Any:
    if isinstance(given, Mapping):
        return {task: change(source) for task, source in given.items()}
    return None if given is None else [change(source) for source in given]


def _values(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given.values() if isinstance(given, Mapping) else given)


def _numbers(given: Any) -> Any:
    """With zero in the place of what is no number."""
    return _mapped(lambda s: s if _is_number(s) else 0.0, given)


def _floats(sources: Sequence[Source]) -> Any:
    return np.float32(_numbers(sources))


def _now(source: Any, num_steps: tf.Tensor | None) -> tf.Tensor:
    """`[]`, float32: the weight that a schedule or a variable gives now."""
    value = source if is_variable(source) else source(num_steps)
    return tf.reshape(tf.cast(tf.convert_to_tensor(value), tf.float32), [])
