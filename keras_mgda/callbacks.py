"""What `fit` can tell of the tasks, beside their losses and metrics."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

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
        _check_model(self, model)
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
        _add(means, logs)


class TaskMonitor(keras.callbacks.Callback):
    """Shows how the tasks do at every `every`th step: logs, and TensorBoard.

    Of the step's task weights `w` and the Gram matrix `G` that they were chosen
    by (of the task gradients that `compile(gradients=...)` names: at the shared
    representation by default, and with `"verified"`), it takes

        the norms `sqrt(G_tt)`, the cosines `G_ts / sqrt(G_tt G_ss)`, and the
        conflicts: how many pairs of tasks have a negative cosine.

    The logs of an epoch get the means `{task}_weight`, `{task}_gradient_norm`
    and `task_conflicts`; TensorBoard the same for every step that was looked
    at, the cosine of each pair as far as there are eight tasks at most (the
    smallest one always), and the mean matrix of each epoch as an image, from
    blue (1) by white (0) to red (-1). A weighting that looks at no Gram matrix,
    as the plain sum, has weights alone. Callbacks that shall see the logs have
    to come after this one. An epoch shorter than `every` shows its last step.

    Args:
        log_dir: where TensorBoard finds it; `None` for the logs alone.
        every: the number of steps from one look to the next. With
            `steps_per_execution` a look waits for the end of an execution.

    Raises:
        ValueError: if `every` is no positive whole number; if the model is no
            `MGDAModel`; if a metric has one of the names.

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
    >>> monitor = keras_mgda.callbacks.TaskMonitor(every=1)
    >>> history = model.fit(
    ...     x, {"a": y, "b": y}, callbacks=[monitor], verbose=0
    ... ).history
    >>> sorted(name for name in history if name.startswith("a_"))
    ['a_gradient_norm', 'a_loss', 'a_weight']
    """

    def __init__(
        self, log_dir: str | os.PathLike[str] | None = None, every: int = 50
    ) -> None:
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise ValueError(
                "`every` must be a positive whole number of steps. "
                f"Received: {every!r}."
            )
        self.log_dir = log_dir
        self.every = every
        self._writer: Any = None
        self._step = 0

    def set_model(self, model: keras.Model) -> None:
        _check_model(self, model)
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(
                os.fspath(self.log_dir)
            )
        # Goes on where an earlier `fit` has ended, of this object or another.
        # Steps that a loss scale skipped, and batches of a gradient that is
        # accumulated, are steps here, and are no iterations.
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        iterations = int(keras.ops.convert_to_numpy(optimizer.iterations))
        batches = optimizer.gradient_accumulation_steps or 1
        self._step = max(self._step, iterations * batches)

    def on_epoch_begin(
        self, epoch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        self._last_batch = -1
        self._of_steps: list[dict[str, float]] = []
        self._cosines: list[npt.NDArray[Any]] = []

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        before = self._step
        self._step += batch - self._last_batch
        self._last_batch = batch
        if self._step // self.every > before // self.every:
            self._look()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if not self._of_steps:
            self._look()
        means = {
            name: float(np.mean([of_step[name] for of_step in self._of_steps]))
            for name in self._of_steps[0]
        }
        if self._writer is not None:
            if self._cosines:
                image = _image(np.mean(self._cosines, axis=0))
                with self._writer.as_default(step=self._step):
                    _write("images", {"tasks/cosines": image})
            self._writer.flush()
        _add(means, logs)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _look(self) -> None:
        """Takes the numbers of the step that was just made."""
        tasks = self.model.task_names
        weights = self.model.task_weights
        found = {f"{task}_weight": weights[task] for task in tasks}
        cosines_of_pairs: dict[str, float] = {}
        if self.model._descent.weighting.uses_gram:
            gram = self.model._descent.gram.numpy().astype(float)
            norms, cosines = _norms_and_cosines(gram)
            self._cosines.append(cosines)
            found |= {
                f"{task}_gradient_norm": float(norm)
                for task, norm in zip(tasks, norms, strict=True)
            }
            if len(tasks) > 1:
                found["task_conflicts"] = _conflicts(cosines)
                cosines_of_pairs = _of_pairs(tasks, cosines)
        self._of_steps.append(found)
        if self._writer is not None:
            values = {_tag(name, tasks): value for name, value in found.items()}
            with self._writer.as_default(step=self._step):
                _write(
                    "scalars",
                    {
                        tag: np.float32(value)
                        for tag, value in (values | cosines_of_pairs).items()
                    },
                )


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


# With more tasks their pairs are too many curves to read: the image has them.
_MOST_TASKS_IN_PAIRS = 8


def _norms_and_cosines(
    gram: npt.NDArray[Any],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Of a Gram matrix; a zero gradient has the cosine 0 with all others."""
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    norms = np.where(np.isfinite(np.diag(gram)), norms, np.nan)
    lengths = norms[:, None] * norms
    cosines = gram / np.where(lengths == 0, 1.0, lengths)
    return norms, np.clip(cosines, -1, 1)


def _conflicts(cosines: npt.NDArray[Any]) -> float:
    """How many pairs of tasks have a negative cosine; NaN if one is unknown."""
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    return float("nan") if np.isnan(pairs).any() else float((pairs < 0).sum())


def _of_pairs(
    tasks: Sequence[str], cosines: npt.NDArray[Any]
) -> dict[str, float]:
    """The smallest cosine, and that of each pair, by their names."""
    pairs = cosines[np.triu_indices(len(tasks), 1)]
    found = {"tasks/cosines/smallest": float(pairs.min())}
    if len(tasks) <= _MOST_TASKS_IN_PAIRS:
        names = itertools.combinations(tasks, 2)
        found |= {
            f"tasks/cosines/{a}, {b}": float(cosine)
            for (a, b), cosine in zip(names, pairs, strict=True)
        }
    return found


def _tag(name: str, tasks: Sequence[str]) -> str:
    """The name in TensorBoard, where what is alike stands together."""
    for kind in ("weight", "gradient_norm"):
        task = name.removesuffix(f"_{kind}")
        if task != name and task in tasks:
            return f"tasks/{kind}/{task}"
    return f"tasks/{name.removeprefix('task_')}"


# The kinds of data that TensorBoard asks for, by its plugin.
_DATA_CLASSES = {"scalars": 1, "images": 3}


def _write(plugin: str, values: Mapping[str, Any]) -> None:
    """What `tf.summary.scalar` and `image` do, which need TensorBoard itself.

    It is no part of TensorFlow any more, and mostly runs elsewhere. All tags
    are one record: a record for each would cost more than the look itself.
    """
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data={"plugin_name": plugin}, data_class=_DATA_CLASSES[plugin]
    )
    summary = tf.compat.v1.Summary()
    for tag, value in values.items():
        tensor = tf.make_tensor_proto(value)
        summary.value.add(tag=tag, metadata=metadata, tensor=tensor)
    tf.summary.experimental.write_raw_pb(summary.SerializeToString())


def _image(cosines: npt.NDArray[Any]) -> list[bytes]:
    """A picture, as TensorBoard takes it: width, height and PNG.

    A square of pixels for each pair; grey where a cosine is not known.
    """
    known = np.isfinite(cosines)
    value = np.where(known, cosines, 0.0)[..., None]
    end = np.where(value > 0, [0.1, 0.3, 0.7], [0.8, 0.1, 0.1])
    colors = 1 - np.abs(value) * (1 - end)
    colors = np.where(known[..., None], colors, 0.5)
    pixels = max(1, 256 // len(cosines))
    image = np.kron(255 * colors, np.ones([pixels, pixels, 1]))
    png = tf.io.encode_png(image.round().astype(np.uint8)).numpy()
    return [str(len(image)).encode()] * 2 + [png]


def _check_model(
    callback: keras.callbacks.Callback, model: keras.Model
) -> None:
    if not isinstance(model, MGDAModel):
        raise ValueError(
            f"`{type(callback).__name__}` must be a callback of an "
            "`MGDAModel`, which has task weights. "
            f"Received: {type(model).__name__}."
        )


def _add(means: Mapping[str, float], logs: dict[str, Any] | None) -> None:
    """Adds to the logs what is not there yet.

    Raises:
        ValueError: if it is.
    """
    logs = {} if logs is None else logs
    if taken := sorted(logs.keys() & means.keys()):
        raise ValueError(
            f"The logs must not hold {sorted(means)} already. Received: "
            f"metrics with the names {taken}. Rename them, or leave out the "
            "other callback that logs them."
        )
    logs.update(means)
