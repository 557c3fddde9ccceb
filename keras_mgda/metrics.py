"""Metrics of an output whose columns are tasks: a mean over the tasks.

Each label counts by its weight, zero where it is missing, and a task of which
the labels of one class were met has no value and is left out. Of `N` labels of
which `P` are positive, the scores order them; labels of equal score are one
step of the order.
"""

from typing import Any

import keras
import tensorflow as tf

from keras_mgda.losses import check_labels

# Logits further out are taken for equal.
_LARGEST = 16.0


class _OfColumns(keras.metrics.Metric):
    """Counts the labels of both classes, by column and by score.

    The scores are sorted into bins of equal width on the scale of the logits,
    which keeps apart the small probabilities of rare positives.
    """

    def __init__(
        self,
        num_columns: int,
        from_logits: bool = False,
        num_bins: int = 1024,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        for argument, value in {
            "num_columns": num_columns,
            "num_bins": num_bins,
        }.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{argument}` must be a positive integer. "
                    f"Received: {value!r}."
                )
        self.num_columns = num_columns
        self.from_logits = from_logits
        self.num_bins = num_bins
        shape = [num_columns, num_bins]
        self._positives = self.add_variable(shape, "zeros", name="positives")
        self._negatives = self.add_variable(shape, "zeros", name="negatives")

    def update_state(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        """Adds a batch.

        Args:
            y_true: `[b, ..., m]` or `[b, ..., m, 1]`, positive above zero; NaN
                is missing.
            y_pred: as the labels, probabilities, or logits.
            sample_weight: `[b]`, or one for each label.

        Raises:
            ValueError: if there are not `num_columns` columns, or labels and
                predictions differ in shape.
        """
        labels, scores = (
            self._without_axis_behind(
                keras.ops.convert_to_tensor(y, self.dtype)
            )
            for y in (y_true, y_pred)
        )
        check_labels(labels, scores)
        weights = tf.cast(~tf.math.is_nan(labels), labels.dtype)
        if sample_weight is not None:
            weight = keras.ops.convert_to_tensor(sample_weight, self.dtype)
            if weight.shape.rank > labels.shape.rank:
                weight = tf.squeeze(weight, -1)
            while weight.shape.rank < labels.shape.rank:
                weight = weight[..., None]
            weights *= weight
        labels, scores, weights = (
            tf.reshape(y, [-1, self.num_columns])
            for y in (labels, scores, weights)
        )
        if not self.from_logits:
            # Not of 0 and 1, which have none.
            scores = tf.clip_by_value(scores, 1e-7, 1.0 - 1e-7)
            scores = tf.math.log(scores) - tf.math.log1p(-scores)
        unit = (scores / _LARGEST + 1.0) / 2.0
        # NaN would be in any bin; its column's value is NaN.
        place = tf.cast(unit * self.num_bins, tf.int32)
        place = tf.clip_by_value(place, 0, self.num_bins - 1)
        place += self.num_bins * tf.range(self.num_columns)
        poison = tf.where(tf.math.is_nan(scores) & (weights > 0), scores, 1.0)
        weights *= poison
        for counts, of_class in (
            (self._positives, labels > 0),
            (self._negatives, ~(labels > 0)),
        ):
            added = tf.math.unsorted_segment_sum(
                tf.where(of_class, weights, 0.0),
                place,
                self.num_columns * self.num_bins,
            )
            counts.assign_add(tf.reshape(added, counts.shape))

    def _without_axis_behind(self, y: tf.Tensor) -> tf.Tensor:
        """`[b, ..., m]`."""
        if len(y.shape) > 2 and tuple(y.shape[-2:]) == (self.num_columns, 1):
            return tf.squeeze(y, -1)
        if len(y.shape) < 2 or y.shape[-1] != self.num_columns:
            raise ValueError(
                "Labels and predictions must have one column for each task, "
                f"here {self.num_columns}. Received: the shape "
                f"{tuple(y.shape)}. Give the metric the `num_columns` of the "
                "output."
            )
        return y

    def of_columns(self) -> tf.Tensor:
        """`[m]`, the value of each task; NaN of one class alone."""
        # From the largest score on.
        positives = tf.reverse(tf.convert_to_tensor(self._positives), [1])
        negatives = tf.reverse(tf.convert_to_tensor(self._negatives), [1])
        values = self._of_counts(positives, negatives)
        both = tf.reduce_sum(positives, 1) * tf.reduce_sum(negatives, 1)
        missing = tf.cast(float("nan"), values.dtype)
        return tf.where(both > 0, values, missing)

    def _of_counts(
        self, positives: tf.Tensor, negatives: tf.Tensor
    ) -> tf.Tensor:
        raise NotImplementedError

    def result(self) -> tf.Tensor:
        """`[]`, the mean over the tasks that have a value."""
        values = self.of_columns()
        counts = [
            tf.reduce_sum(tf.convert_to_tensor(v), 1)
            for v in (self._positives, self._negatives)
        ]
        # Not finite where a prediction was not: that has to show.
        counted = (counts[0] != 0) & (counts[1] != 0)
        number = tf.reduce_sum(tf.cast(counted, values.dtype))
        total = tf.reduce_sum(tf.where(counted, values, 0.0))
        return total / number

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_columns": self.num_columns,
            "from_logits": self.from_logits,
            "num_bins": self.num_bins,
        }


@keras.saving.register_keras_serializable(package="keras_mgda")
class ColumnROCAUC(_OfColumns):
    """The area under the ROC curve, a mean over the columns.

    The share of the pairs of a positive and a negative label of a column of
    which the positive one has the larger score; pairs of one score count half.
    Of `keras_mgda.losses.PerColumn`'s metrics.

    Args:
        num_columns: `m`.
        from_logits: whether predictions are logits, not probabilities.
        num_bins: how many different scores are told apart: of 1024 one is 3 %
            of the odds.
        name: of the metric.
        dtype: of the counts.

    Example:

    >>> import keras_mgda
    >>> metric = keras_mgda.metrics.ColumnROCAUC(2)
    >>> y_true = [[0, 1], [1, float("nan")], [0, 1]]
    >>> y_pred = [[0.1, 0.5], [0.8, 0.5], [0.9, 0.5]]
    >>> float(metric(y_true, y_pred))  # of the first column alone
    0.5
    """

    def _of_counts(
        self, positives: tf.Tensor, negatives: tf.Tensor
    ) -> tf.Tensor:
        below = tf.cumsum(negatives, axis=1, exclusive=True, reverse=True)
        pairs = tf.reduce_sum(positives * (below + negatives / 2), axis=1)
        number = tf.reduce_sum(positives, 1) * tf.reduce_sum(negatives, 1)
        return tf.math.divide_no_nan(pairs, number)


@keras.saving.register_keras_serializable(package="keras_mgda")
class ColumnAveragePrecision(_OfColumns):
    """The average precision, a mean over the columns.

    `sum_k (R_k - R_{k-1}) P_k`, with the precision `P_k` and the recall `R_k`
    of what has one of the `k` largest scores.

    Args:
        num_columns: `m`.
        from_logits: whether predictions are logits, not probabilities.
        num_bins: how many different scores are told apart: of 1024 one is 3 %
            of the odds.
        name: of the metric.
        dtype: of the counts.

    Example:

    >>> import keras_mgda
    >>> metric = keras_mgda.metrics.ColumnAveragePrecision(1)
    >>> float(metric([[1], [0], [1], [0]], [[0.9], [0.8], [0.8], [0.1]]))
    0.8333333730697632
    """

    def _of_counts(
        self, positives: tf.Tensor, negatives: tf.Tensor
    ) -> tf.Tensor:
        found = tf.cumsum(positives, axis=1)
        precision = tf.math.divide_no_nan(
            found, found + tf.cumsum(negatives, axis=1)
        )
        return tf.math.divide_no_nan(
            tf.reduce_sum(positives * precision, axis=1), found[:, -1]
        )
