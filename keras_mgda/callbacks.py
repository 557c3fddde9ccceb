"""What `fit` can tell of the tasks, beside their losses and metrics."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

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
