"""What `fit` can tell of the tasks, beside their losses and metrics."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_mgda.model import MGDAModel


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
    representation by default), it takes

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

    def set_model(self, model: keras.Model) -> None:
        _check_model(self, model)
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(
                os.fspath(self.log_dir)
            )
        # Goes on where an earlier `fit` has ended.
        self._step = int(self.model.optimizer.iterations)

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
            if "/" not in name
        }
        if self._writer is not None:
            if self._cosines:
                image = _image(np.mean(self._cosines, axis=0))
                with self._writer.as_default(step=epoch):
                    _write("tasks/cosines", "images", image)
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
        if self.model._descent.weighting.uses_gram:
            gram = self.model._descent.gram.numpy().astype(float)
            norms, cosines = _norms_and_cosines(gram)
            self._cosines.append(cosines)
            found |= {
                f"{task}_gradient_norm": float(norm)
                for task, norm in zip(tasks, norms, strict=True)
            }
            found |= _of_pairs(tasks, cosines)
        self._of_steps.append(found)
        if self._writer is not None:
            with self._writer.as_default(step=self._step):
                for name, value in found.items():
                    _write(_tag(name, tasks), "scalars", np.float32(value))


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


def _of_pairs(
    tasks: Sequence[str], cosines: npt.NDArray[Any]
) -> dict[str, float]:
    if len(tasks) < 2:
        return {}
    above = np.triu_indices(len(tasks), 1)
    pairs = cosines[above]
    known = not np.isnan(pairs).any()
    found = {
        "task_conflicts": float((pairs < 0).sum()) if known else float("nan"),
        "cosines/smallest": float(pairs.min()),
    }
    if len(tasks) <= _MOST_TASKS_IN_PAIRS:
        names = itertools.combinations(tasks, 2)
        found |= {
            f"cosines/{a}, {b}": float(cosine)
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


def _write(tag: str, plugin: str, value: Any) -> None:
    """What `tf.summary.scalar` and `image` do, which need TensorBoard itself.

    It is no part of TensorFlow any more, and mostly runs elsewhere.
    """
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data={"plugin_name": plugin}, data_class=_DATA_CLASSES[plugin]
    )
    tf.summary.write(tag, value, metadata=metadata)


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
