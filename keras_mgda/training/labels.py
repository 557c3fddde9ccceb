"""Which examples of a batch are labelled for which task.

An example counts for the tasks that it is labelled for, and for no other. With
`W_ti` the sample weight of example `i` for task `t`, and `N_t` the number of
examples in the global batch that are labelled for it,

    L_t = (sum of W_ti l_ti over the labelled i) / N_t.

Keras divides by the whole batch instead, so that a rarely labelled task has
small gradients, to which MGDA would give a large weight.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mgda.internals import expand_last, keras_mask
from keras_mgda.losses import check_labels
from keras_mgda.training import tasks

Marker = str | float | None


class Labelled(NamedTuple):
    """One task's labels, without those that are missing.

    Attributes:
        y_true: as given, with zero for the missing ones.
        mask: 1 where labelled and 0 elsewhere, in the shape of the losses:
            that of `y_pred` without its last axis. Float32.
        sample_weight: in the same shape; the mean over all losses under it is
            the mean over the labelled ones.
        count: `[]`, how many are labelled; `[m]` for tasks that are columns.
    """

    y_true: tf.Tensor
    mask: tf.Tensor
    sample_weight: tf.Tensor
    count: tf.Tensor


def find_labels(
    y_true: tf.Tensor,
    y_pred: tf.Tensor,
    sample_weight: tf.Tensor | None,
    marker: Marker,
    *,
    by_column: bool = False,
) -> Labelled:
    """Which losses of a task count, or of tasks that are columns of an output.

    Args:
        y_true: `[b, ...]`, labels.
        y_pred: `[b, ..., c]`, predictions; their Keras mask is respected.
        sample_weight: `[b]`, or as the losses; zero means not labelled.
        marker: the value of a missing label, `"nan"` for NaN. A label that has
            several entries is missing if one of them is; none is in a dtype
            that has no such value. `None` if labels are missing by sample
            weight and mask alone.
        by_column: whether each column of the last axis is a task, so that
            every label has a loss of its own, and is counted in its column.

    Raises:
        ValueError: if the predictions have no axis but that of the batch.
    """
    if y_pred.shape.rank < 2:
        raise ValueError(
            "With `unlabelled`, the output of a task must have an axis beside "
            "that of the batch, as `[b, 1]`. Received: an output of shape "
            f"{y_pred.shape}. Leave out what squeezes it."
        )
    present = ~_equals(y_true, marker)
    y_true = tf.where(present, y_true, tf.zeros_like(y_true))

    if by_column:
        check_labels(y_true, y_pred)
        present.set_shape(y_pred.shape)
    elif present.shape.rank == y_pred.shape.rank:
        present = tf.reduce_all(present, axis=-1)
    if present.shape.is_compatible_with(y_pred.shape[:-1]):
        present.set_shape(y_pred.shape[:-1])
    mask = tf.cast(present, tf.float32)
    # Of one task, or of one column.
    axes = range(mask.shape.rank - by_column)
    # Keras divides by the number of losses, or of those under its own mask.
    mask_of_predictions = keras_mask(y_pred)
    sizes = [tf.shape(mask)[axis] for axis in axes]
    divisor = tf.cast(tf.reduce_prod(sizes), tf.float32)
    if mask_of_predictions is not None:
        seen = tf.cast(mask_of_predictions, tf.float32)
        divisor = tf.reduce_sum(seen)
        mask *= _expanded(seen, mask)
    scaled = mask
    if sample_weight is not None:
        sample_weight = _expanded(tf.cast(sample_weight, tf.float32), mask)
        mask *= tf.cast(sample_weight != 0.0, tf.float32)
        scaled = mask * sample_weight
    count = tf.reduce_sum(mask, list(axes))
    scaled *= tf.math.divide_no_nan(divisor, count)
    return Labelled(y_true, mask, scaled, count)


def _equals(y_true: tf.Tensor, marker: Marker) -> tf.Tensor:
    """Where labels have the value, which integers may not be able to."""
    dtype = y_true.dtype
    nothing = tf.zeros_like(y_true, tf.bool)
    if marker == "nan":
        return tf.math.is_nan(y_true) if dtype.is_floating else nothing
    if marker is None or dtype.is_bool:
        return nothing
    if dtype.is_integer and not (
        dtype.min <= marker <= dtype.max and marker == int(marker)
    ):
        return nothing
    return y_true == tf.cast(marker, dtype)


def _expanded(weight: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """`[b]`, or `[b, 1]`, as `[b, 1, ...]` of the rank of `mask`."""
    missing = mask.shape.rank - weight.shape.rank
    if missing < 0 and weight.shape[-1] == 1:
        return tf.squeeze(weight, -1)
    return tf.reshape(weight, tf.concat([tf.shape(weight), [1] * missing], 0))


class Labels:
    """Finds the labels of a batch, by what `compile(unlabelled=...)` says.

    Args:
        markers: `{output: the value of a missing label}`, see `find_labels`.
        by_column: the outputs whose columns are tasks.
    """

    def __init__(
        self, markers: Mapping[str, Marker], by_column: Collection[str] = ()
    ) -> None:
        self.markers = markers
        self._by_column = by_column

    def find(
        self, y: Any, y_pred: Any, sample_weight: Any
    ) -> dict[str, Labelled]:
        """`find_labels` for every output whose labels may be missing.

        One with the marker `None` is among them only if sample weights are
        given. Without them its loss stays as it is, one over the whole batch
        included.
        """
        labels, predictions = tasks.flatten(y), tasks.flatten(y_pred)
        missing = [name for name in self.markers if name not in labels]
        if missing:
            raise ValueError(
                "Labels must be a dict that names every task. Received: "
                f"{list(labels)}, without {missing}. Fill in the value of "
                "`unlabelled` where there are none."
            )
        weights = tasks.flatten(sample_weight)
        common = weights.get("")  # one for all outputs
        found = {}
        for output, marker in self.markers.items():
            weight = weights.get(output, common)
            if marker is not None or weight is not None:
                found[output] = find_labels(
                    tf.convert_to_tensor(labels[output]),
                    predictions[output],
                    weight,
                    marker,
                    by_column=output in self._by_column,
                )
        return found

    def counts(
        self, labels: Mapping[str, Labelled], y_pred: Any
    ) -> dict[str, tf.Tensor]:
        """`{output: number}` of labels, or of examples if none may be missing.

        `[m]` for an output whose columns are tasks.
        """
        predictions = tasks.flatten(y_pred)
        found = {}
        for output in self.markers:
            if output in labels:
                found[output] = labels[output].count
                continue
            size = tf.cast(tf.shape(predictions[output])[0], tf.float32)
            if output in self._by_column:
                size = tf.fill([predictions[output].shape[-1]], size)
            found[output] = size
        return found

    def check_metrics(self, metrics: Any, y: Any, y_pred: Any) -> None:
        """Raises unless metric functions have a value for each example.

        A mean that a function takes itself counts what is not labelled, too.
        """
        labels, predictions = tasks.flatten(y), tasks.flatten(y_pred)
        for output, of_output in tasks.flatten(metrics).items():
            for metric in keras.tree.flatten(of_output):
                if (
                    output not in self.markers
                    or isinstance(metric, (str, keras.metrics.Metric))
                    or not callable(metric)
                ):
                    continue
                value = keras.ops.convert_to_tensor(
                    metric(
                        tf.convert_to_tensor(labels[output]),
                        predictions[output],
                    )
                )
                if not len(value.shape):
                    raise ValueError(
                        "With `unlabelled`, a metric function must return a "
                        "value for each example. Received: "
                        f"'{getattr(metric, '__name__', metric)}' of task "
                        f"'{output}', which returns a scalar. Leave its mean "
                        "out, or write a `keras.metrics.Metric`."
                    )


def with_zeros(y: Any, labels: Mapping[str, Labelled]) -> Any:
    """The same labels, with zero for those that are missing."""
    return tasks.map_named(
        lambda name, given: labels[name].y_true if name in labels else given, y
    )


def each_a_task(structure: Any, by_column: Collection[str]) -> Any:
    """`[b, ..., m]` as `[b, ..., m, 1]` for the outputs of these names.

    So Keras's metrics see an example in each label.
    """
    return tasks.map_named(
        lambda name, leaf: (
            expand_last(tf.convert_to_tensor(leaf))
            if name in by_column
            else leaf
        ),
        structure,
    )


def in_structure(structure: Any, by_name: Mapping[str, Any]) -> Any:
    """The values in this structure, `None` where there are none."""
    return tasks.map_named(lambda name, _: by_name.get(name), structure)


def markers_by_output(
    unlabelled: Any, output_names: Sequence[str]
) -> dict[str, Marker] | None:
    """What marks a missing label, for each output that has a loss."""
    if unlabelled is None:
        return None
    if not isinstance(unlabelled, Mapping):
        unlabelled = dict.fromkeys(output_names, unlabelled)
    markers = {
        output: "nan" if marker != marker else marker
        for output, marker in unlabelled.items()
    }
    if set(markers) != set(output_names) or not all(
        marker in (None, "nan") or isinstance(marker, (int, float))
        for marker in markers.values()
    ):
        raise ValueError(
            "`unlabelled` must be 'nan', a number, or a dict that gives every "
            "output with a loss one of these or `None`. "
            f"Received: {unlabelled!r} for {list(output_names)}."
        )
    return markers
