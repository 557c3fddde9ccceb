"""Numbers that a user gives the tasks, by their names or in their order."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.weightings.weighting import GramWeighting

Numbers = Mapping[str, float] | Sequence[float]


class TaskNumbers:
    """One finite number for each task; or `None`, where a default stands.

    Args:
        given: `{task: number}`, or `m` numbers in the order of the tasks.
        what: what they are, in the plural, as a sentence begins.
        may_be_negative: whether they may.

    Raises:
        ValueError: for other numbers.
    """

    def __init__(
        self, given: Numbers | None, what: str, may_be_negative: bool = False
    ) -> None:
        numbers = given.values() if isinstance(given, Mapping) else given
        values = [_as_float(n) for n in (() if numbers is None else numbers)]
        self.given: dict[str, float] | list[float] | None = None
        if isinstance(given, Mapping):
            self.given = dict(zip(given, values, strict=True))
        elif given is not None:
            self.given = values
        self._what = what
        least = -float("inf") if may_be_negative else 0
        if not all(math.isfinite(n) and n >= least for n in values):
            raise ValueError(
                f"{what} must be finite"
                f"{'' if may_be_negative else ' and not negative'}. "
                f"Received: {given}."
            )

    def in_order(self, task_names: Sequence[str]) -> "TaskNumbers":
        """The same, in the order of the tasks.

        Raises:
            ValueError: if they do not fit the tasks.
        """
        if self.given is None:
            return self
        tasks = f"{self.given} for the tasks {list(task_names)}"
        if not isinstance(self.given, dict):
            if len(self.given) != len(task_names):
                raise ValueError(
                    f"{self._what} must be as many as the tasks. Received: "
                    f"{tasks}."
                )
            return self
        missing = [task for task in task_names if task not in self.given]
        unknown = [name for name in self.given if name not in task_names]
        if missing or unknown:
            ways = [f"Add {missing}."] if missing else []
            ways += [f"Remove {unknown}."] if unknown else []
            raise ValueError(
                f"{self._what} must name the tasks. Received: {tasks}. "
                f"{' '.join(ways)}"
            )
        ordered = [self.given[task] for task in task_names]
        return TaskNumbers(ordered, self._what, may_be_negative=True)

    def tensor(self, gram: tf.Tensor, default: float) -> tf.Tensor:
        """`[m]`, float64, for a Gram matrix `[m, m]` or losses `[m]`."""
        m = gram.shape[0]
        if self.given is None:
            return tf.fill([m], tf.constant(default, tf.float64))
        if isinstance(self.given, dict) or len(self.given) != m:
            raise ValueError(
                f"{self._what} must fit the Gram matrix. Received: "
                f"{self.given} for shape {tuple(gram.shape)}. "
                "Named ones need `build(task_names)` first."
            )
        return tf.constant(self.given, tf.float64)


class PreferenceWeighting(GramWeighting):
    """A weighting by the Gram matrix and a preference among the tasks.

    Args:
        preference: `{task: number}`, or `m` numbers in the order of the tasks;
            finite and not negative. `None` prefers none: `1 / m` each.

    Raises:
        ValueError: for other numbers, and when they do not fit the tasks.
    """

    def __init__(self, preference: Numbers | None = None) -> None:
        self._numbers = TaskNumbers(preference, "Preferences")
        self.preference = self._numbers.given

    def build(self, task_names: Sequence[str]) -> None:
        self._numbers = self._numbers.in_order(task_names)

    def preference_of(self, gram: tf.Tensor) -> tf.Tensor:
        return self._numbers.tensor(gram, default=1 / gram.shape[0])

    def get_config(self) -> dict[str, Any]:
        return {"preference": self.preference}


def shares(preference: tf.Tensor, active: tf.Tensor) -> tf.Tensor:
    """The preferences of the active tasks, `[m]`, with the sum that all have.

    What the others hold is theirs in proportion, or in equal parts where they
    have none themselves, so that they are not stopped by who is away.
    """
    among = tf.where(active, preference, 0)
    none = tf.reduce_sum(among) == 0
    among = tf.where(none, tf.cast(active, among.dtype), among)
    total = tf.reduce_sum(preference) / tf.reduce_sum(among)
    return tf.where(active, among * total, 0)


def is_variable(value: Any) -> bool:
    return isinstance(value, (keras.Variable, tf.Variable))


def _as_float(number: Any) -> float:
    """NaN for what is no number, and for a variable, which would not be read.

    A string is none either.
    """
    try:
        is_none = isinstance(number, str) or is_variable(number)
        return math.nan if is_none else float(number)
    except (TypeError, ValueError):
        return math.nan
