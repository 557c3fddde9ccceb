"""What `fit` can tell of the tasks, beside their losses and metrics."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_mgda.model import MGDAModel
from keras_mgda.pareto import delta_m
from keras_mgda.weightings import Fixed


class LogTaskWeights(keras.callbacks.Callback):
    """Adds the task weights to the logs of every epoch, as `{task}_weight`.

    The mean of `model.task_weights` over the epoch's batches; with
    `steps_per_execution` over the last batch of each execution. `History` and
    the progress bar show them; so do `CSVLogger`, `TensorBoard` and others
    that come after this one in the list of callbacks. NaN, as of a step that
    was not finite, stays NaN.

    Raises:
        ValueError: if the model is no `MGDAModel`; if a metric has the name.

    Example:

    >>> import keras, keras_mgda
    >>> inputs = keras.Input((4,))
    >>> z = keras.layers.Dense(3, activation="relu")(inputs)
    >>> z = keras_mgda.SharedRepresentation()(z)
    >>> model = keras_mgda.MGDAModel(
    ...     inputs, {task: keras.layers.Dense(1)(z) for task in ("a", "b")}
    ... )
    >>> model.compile("sgd", loss={"a": "mse", "b": "mae"})
    >>> x, y = keras.ops.ones((8, 4)), keras.ops.ones((8, 1))
    >>> logger = keras_mgda.callbacks.LogTaskWeights()
    >>> history = model.fit(
    ...     x, {"a": y, "b": y}, epochs=2, callbacks=[logger], verbose=0
    ... ).history
    >>> both = zip(history["a_weight"], history["b_weight"])
    >>> [round(a + b, 6) for a, b in both]
    [1.0, 1.0]
    """

    def set_model(self, model: keras.Model) -> None:
        if not isinstance(model, MGDAModel):
            raise ValueError(
                "`LogTaskWeights` must be a callback of an `MGDAModel`, which "
                f"has task weights. Received: {type(model).__name__}."
            )
        super().set_model(model)

    def on_epoch_begin(
        self, epoch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        self._of_batches: list[dict[str, float]] = []

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        self._of_batches.append(self.model.task_weights)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        means = {
            f"{task}_weight": float(
                np.mean([w[task] for w in self._of_batches])
            )
            for task in self.model.task_names
        }
        logs = {} if logs is None else logs
        if taken := sorted(logs.keys() & means.keys()):
            raise ValueError(
                "The logs must not hold `{task}_weight` already. Received: "
                f"metrics with the names {taken}. Rename them."
            )
        logs.update(means)


class TaskWeightScheduler(keras.callbacks.Callback):
    """Sets fixed task weights at the begin of every epoch.

    For a schedule by steps give `weightings.Fixed` a function of the step
    instead.

    Args:
        schedule: from the number of the epoch, 0 at first, and the task weights
            `{task: weight}` to those of that epoch; the others keep theirs.

    Raises:
        ValueError: if the model is no `MGDAModel` with the weighting
            `weightings.Fixed`, or the weights do not fit the tasks.

    Example:

    >>> import keras, keras_mgda
    >>> inputs = keras.Input((4,))
    >>> z = keras.layers.Dense(3, activation="relu")(inputs)
    >>> z = keras_mgda.SharedRepresentation()(z)
    >>> model = keras_mgda.MGDAModel(
    ...     inputs, {task: keras.layers.Dense(1)(z) for task in ("a", "b")}
    ... )
    >>> model.compile(
    ...     "sgd", loss={"a": "mse", "b": "mae"}, weighting={"a": 1.0, "b": 1.0}
    ... )
    >>> x, y = keras.ops.ones((8, 4)), keras.ops.ones((8, 1))
    >>> halves = keras_mgda.callbacks.TaskWeightScheduler(
    ...     lambda epoch, task_weights: {"b": task_weights["b"] / 2}
    ... )
    >>> history = model.fit(
    ...     x, {"a": y, "b": y}, epochs=2, callbacks=[halves], verbose=0
    ... )
    >>> model.task_weights
    {'a': 1.0, 'b': 0.25}
    """

    def __init__(
        self,
        schedule: Callable[[int, dict[str, float]], Mapping[str, float]],
    ) -> None:
        super().__init__()
        self._schedule = schedule

    def set_model(self, model: keras.Model) -> None:
        weighting = getattr(model, "weighting", None)
        if not isinstance(weighting, Fixed):
            raise ValueError(
                "`TaskWeightScheduler` must be a callback of an `MGDAModel` "
                "with fixed task weights. Received: "
                f"{type(weighting or model).__name__}. Compile with "
                "`weighting={task: weight}`."
            )
        super().set_model(model)

    def on_epoch_begin(
        self, epoch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        weighting = self.model.weighting
        now = dict(zip(self.model.task_names, weighting.current(), strict=True))
        weighting.assign(dict(self._schedule(epoch, now)))


class LogDeltaM(keras.callbacks.Callback):
    """Adds one number for all tasks to the logs, to stop or to choose by.

    With a measure `M_t` of each task in the logs, `B_t` that of a model trained
    for it alone, and `s_t` minus one where lower is better,

        delta_m = 100 / m sum_t s_t (M_t - B_t) / |B_t|,

    the mean relative change in percent, and `worst_delta`, the smallest of the
    `m` changes. `EarlyStopping(monitor="delta_m", mode="max")` and
    `ModelCheckpoint` take them, where they come after this one in the list of
    callbacks. NaN stays NaN.

    Args:
        baselines: `{name in the logs: B_t}`, such as `{"val_a_loss": 0.3}`.
        lower_is_better: those of the names that are errors, as losses are.

    Raises:
        ValueError: if a baseline is zero or `lower_is_better` is none of the
            names; after an epoch, if its logs lack a name.

    Example:

    >>> import keras, keras_mgda
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse", metrics=["mae"])
    >>> logger = keras_mgda.callbacks.LogDeltaM(
    ...     {"loss": 1.0, "mae": 2.0}, lower_is_better=["loss", "mae"]
    ... )
    >>> x, y = keras.ops.ones((4, 2)), keras.ops.ones((4, 1))
    >>> logs = model.fit(x, y, callbacks=[logger], verbose=0).history
    >>> logs["worst_delta"][0] <= logs["delta_m"][0] <= 100
    True

    References:
        Maninis et al., 2019, equation 4. https://arxiv.org/abs/1904.08918
    """

    def __init__(
        self,
        baselines: Mapping[str, float],
        lower_is_better: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self._baselines = dict(baselines)
        self._lower_is_better = list(lower_is_better)
        delta_m(self._baselines, self._baselines, self._lower_is_better)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        logs = {} if logs is None else logs
        missing = [name for name in self._baselines if name not in logs]
        if missing:
            raise ValueError(
                "`baselines` must name what is in the logs. Received: "
                f"{missing}, which are not among {list(logs)}. Name metrics "
                "as they are logged, with 'val_' where they are of "
                "`validation_data`."
            )
        changes = [
            delta_m(
                {name: float(logs[name])},
                {name: baseline},
                [name] if name in self._lower_is_better else [],
            )
            for name, baseline in self._baselines.items()
        ]
        logs["delta_m"] = float(np.mean(changes))
        logs["worst_delta"] = float(np.min(changes))
