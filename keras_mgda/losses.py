"""A loss whose columns are tasks: hundreds of tasks in one output."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.internals import expand_last, keras_mask

_WAY_OUT = (
    "Take a loss of single values, such as 'binary_crossentropy' or 'mse'; "
    "classes that exclude each other are one task, with an output of its own."
)


@keras.saving.register_keras_serializable(package="keras_mgda")
class PerColumn(keras.losses.Loss):
    """Makes each column of an output a task, with a mean of its own.

    With predictions `p [b, ..., m]`, labels `y` of the same shape and the loss
    `l` of a single value, task `t` of the `m` has the loss

        L_t = mean over i of W_it l(y_it, p_it),

    with the sample weights `W`, `[b]` or one for each label. With
    `compile(unlabelled=...)` it is a sum over the labels that are there, by
    their number, in each column on its own. What enters the total loss is
    `sum_t c_t L_t`, with `task_weights` `c`.

    An `MGDAModel` trains as if each column was an output with a `Dense(1)`. The
    output has to end in one `Dense(m)`, which is called once, with or without
    an activation of single values. Its columns are the tasks' own and get
    their plain gradient; what stands before it is shared. Optimizers that
    look at a variable as a whole, as Adafactor and `clipnorm` do, see one
    kernel where `m` outputs have `m`.

    The logs hold the `{output}_loss`, which is the sum above,
    `{output}_mean_loss` and `{output}_worst_loss` over the labelled tasks, and
    the losses that `log` names. Keras metrics of the output see each label as
    an example of its own; `keras_mgda.metrics` has those for columns.

    Args:
        loss: of one value: a name, function or `keras.losses.Loss`, of the
            reduction 'sum_over_batch_size'.
        task_names: of the columns, in order. `None` for `"{output}/{k}"`.
        task_weights: `c`, a list of `m` numbers or a dict by task name, in
            which 1 stands for those that are missing. `None` for ones.
        positive_weights: what a label above zero counts for, where others
            count for one: a number, or as `task_weights`.
        log: the tasks whose losses are logged as `{task}_loss`.
        name: of the loss.

    Raises:
        ValueError: if the names, weights or logs do not fit each other; if
            the loss has another reduction, or mixes columns.

    Example:

    >>> import keras, keras_mgda
    >>> inputs = keras.Input((4,))
    >>> z = keras.layers.Dense(3, activation="relu")(inputs)
    >>> z = keras_mgda.SharedRepresentation()(z)
    >>> assays = keras.layers.Dense(2, activation="sigmoid")(z)
    >>> model = keras_mgda.MGDAModel(inputs, {"assays": assays})
    >>> loss = keras_mgda.losses.PerColumn(
    ...     "binary_crossentropy", task_names=["NR-AR", "SR-p53"]
    ... )
    >>> model.compile("sgd", loss={"assays": loss}, unlabelled="nan")
    >>> model.task_names
    ['NR-AR', 'SR-p53']
    """

    def __init__(
        self,
        loss: Any,
        task_names: Sequence[str] | None = None,
        task_weights: Any = None,
        positive_weights: Any = None,
        log: Sequence[str] = (),
        name: str = "per_column",
    ) -> None:
        super().__init__(name=name)
        self.loss = loss
        self.task_names = None if task_names is None else list(task_names)
        self.task_weights = task_weights
        self.positive_weights = positive_weights
        self.log = list(log)
        self._values = _values(loss)
        _check_columnwise(loss, self._values)
        if self.task_names is not None:
            _check_names(self.task_names)
            self.weights_of_tasks(len(self.task_names))
            self._weights_of_positives(len(self.task_names))
            self._check_log()

    def of_output(self, output: str, size: int | None) -> "PerColumn":
        """The same with all names, for an output of this name and last axis.

        Raises:
            ValueError: if the size is not known, or not that of the names.
        """
        names = self.task_names
        if names is None and size is None:
            raise ValueError(
                "`PerColumn` must know the number of columns. Received: no "
                f"`task_names`, and the output '{output}' with a last axis of "
                "unknown size. Give `task_names`, or the output a size."
            )
        if names is None:
            names = [f"{output}/{k}" for k in range(size or 0)]
        elif size not in (None, len(names)):
            raise ValueError(
                "`task_names` must name every column. Received: "
                f"{len(names)} names for the output '{output}' with {size} "
                "columns. Name each, or leave `task_names` out."
            )
        return PerColumn(**{**self._config(), "task_names": names})

    @property
    def known_names(self) -> list[str]:
        """`task_names`; none before the output is known."""
        return self.task_names or []

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        """The values of all labels, `[b, ..., m]`."""
        check_labels(y_true, y_pred)
        values = self._values(expand_last(y_true), expand_last(y_pred))
        weights = self._weights_of_positives(y_pred.shape[-1])
        if weights is not None:
            weights = tf.where(y_true > 0, tf.cast(weights, values.dtype), 1)
            values *= weights
        return values

    def of_columns(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> tf.Tensor:
        """`L_t` of every column, `[m]`, a replica's summand as in Keras."""
        mask = keras_mask(y_pred)
        y_true, y_pred = (
            keras.ops.convert_to_tensor(y, self.dtype) for y in (y_true, y_pred)
        )
        values = self.call(y_true, y_pred)
        axes = list(range(values.shape.rank - 1))
        count = tf.cast(tf.reduce_prod(tf.shape(values)[:-1]), values.dtype)
        if mask is not None:
            mask = tf.cast(mask, values.dtype)
            count = tf.reduce_sum(mask)
            values *= _expanded(mask, values)
        if sample_weight is not None:
            values *= _expanded(tf.cast(sample_weight, values.dtype), values)
        # Gradients of replicas add up.
        count *= tf.distribute.get_strategy().num_replicas_in_sync
        return tf.math.divide_no_nan(tf.reduce_sum(values, axes), count)

    def total(self, of_columns: tf.Tensor) -> tf.Tensor:
        """`sum_t c_t L_t`, `[]`."""
        weights = self.weights_of_tasks(of_columns.shape[0])
        return tf.reduce_sum(of_columns * tf.cast(weights, of_columns.dtype))

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> tf.Tensor:
        return self.total(self.of_columns(y_true, y_pred, sample_weight))

    def weights_of_tasks(self, m: int) -> np.ndarray[Any, Any]:
        """`c`, `[m]`."""
        found = self._by_task("task_weights", self.task_weights, m)
        return np.ones(m, np.float32) if found is None else found

    def _weights_of_positives(self, m: int) -> Any:
        given = self.positive_weights
        if isinstance(given, (int, float)):
            given = [given] * m
        return self._by_task("positive_weights", given, m)

    def _by_task(self, argument: str, given: Any, m: int) -> Any:
        if given is None:
            return None
        unknown: Any = []
        if isinstance(given, Mapping):
            names = self.known_names
            unknown = [name for name in given if name not in names]
            given = [given.get(name, 1.0) for name in names]
        values = np.asarray(given, np.float32)
        if (
            unknown
            or values.shape != (m,)
            or not np.isfinite(values).all()
            or (values < 0).any()
        ):
            raise ValueError(
                f"`{argument}` must be {m} numbers that are finite and not "
                "negative, one for each column, or a dict of them by task "
                f"name. Received: {unknown or getattr(self, argument)!r} for "
                f"the tasks {self.task_names}. Leave it out for ones."
            )
        return values

    def _check_log(self) -> None:
        unknown = [n for n in self.log if n not in self.known_names]
        if unknown:
            raise ValueError(
                "`log` must name tasks of this output. Received: "
                f"{unknown} for the tasks {self.task_names}."
            )

    def _config(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "task_names": self.task_names,
            "task_weights": self.task_weights,
            "positive_weights": self.positive_weights,
            "log": self.log,
            "name": self.name,
        }

    def get_config(self) -> dict[str, Any]:
        return {
            key: keras.saving.serialize_keras_object(value)
            if key == "loss"
            else _plain(value)
            for key, value in self._config().items()
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PerColumn":
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})


def check_labels(y_true: Any, y_pred: Any) -> None:
    """Raises a `ValueError` unless there is one label for each value."""
    labels, predictions = y_true.shape, y_pred.shape
    if len(labels) != len(predictions) or any(
        None not in (a, b) and a != b
        for a, b in zip(labels, predictions, strict=True)
    ):
        raise ValueError(
            "Labels of an output whose columns are tasks must have its shape. "
            f"Received: labels of shape {tuple(labels)} for predictions of "
            f"shape {tuple(predictions)}. Give each column its label; what is "
            "missing is NaN, with `compile(unlabelled='nan')`."
        )


def _values(loss: Any) -> Any:
    """The function of labels and predictions that has no mean taken."""
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        loss = "binary_crossentropy"  # as Keras takes them for one column
    found = keras.losses.get(loss)
    if not isinstance(found, keras.losses.Loss):
        return found
    if found.reduction not in ("sum_over_batch_size", "mean"):
        raise ValueError(
            "The loss of a column must have the reduction "
            f"'sum_over_batch_size'. Received: {found.reduction!r}. Leave the "
            "reduction out."
        )
    return found.call


def _check_columnwise(loss: Any, values: Any) -> None:
    """Raises unless a column's loss depends on its prediction, and no other.

    Two examples of three columns tell, by the derivatives of all values.
    """
    if not tf.executing_eagerly():
        return
    y_true = tf.constant([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])[..., None]
    y_pred = tf.constant([[0.2, 0.3, 0.4], [0.5, 0.6, 0.7]])[..., None]
    try:
        with tf.GradientTape() as tape, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is refused below
            tape.watch(y_pred)
            found = tf.convert_to_tensor(values(y_true, y_pred))
        why = (
            _mixes(tape.jacobian(found, y_pred), found)
            if found.shape == (2, 3)
            else f"has values of shape {tuple(found.shape)} for labels of "
            "shape (2, 3, 1)"
        )
    except (ValueError, TypeError, tf.errors.OpError) as error:
        why = f"fails for labels of shape (2, 3, 1): {error}"
    if why is not None:
        raise ValueError(
            "The loss of a column must have a value for each label, by its own "
            f"prediction alone. Received: {loss!r}, which {why}. {_WAY_OUT}"
        )


def _mixes(jacobian: tf.Tensor | None, values: tf.Tensor) -> str | None:
    if jacobian is None:
        return "does not depend on the prediction"
    derivatives = np.abs(np.reshape(jacobian, [6, 6]))
    own = np.diag(derivatives)
    # But for rounding.
    if not own.max() > 1e-6 * np.abs(values).max():
        return "does not change with the prediction of a single column"
    if (derivatives - np.diag(own)).max() > 1e-6 * own.max():
        return "mixes columns or examples"
    return None


def _check_names(names: Sequence[Any]) -> None:
    if (
        not names
        or not all(isinstance(name, str) and name for name in names)
        or len(set(names)) < len(names)
    ):
        raise ValueError(
            "`task_names` must be a list of different names. "
            f"Received: {list(names)!r}."
        )


def _expanded(weight: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`[b]` as `[b, 1, ...]`, of the rank of the values."""
    missing = values.shape.rank - weight.shape.rank
    return tf.reshape(weight, tf.concat([tf.shape(weight), [1] * missing], 0))


def _plain(value: Any) -> Any:
    """The same in lists and numbers, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: float(number) for key, number in value.items()}
    if isinstance(value, (np.ndarray, tuple)):
        return np.asarray(value).tolist()
    return value
