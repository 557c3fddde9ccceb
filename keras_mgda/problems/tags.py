"""Metrics of tags: the accuracy of tokens, F1 of spans."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

# What a tag's first part says of its token. "M" is another name for "I", "L"
# for "E", and "U" for "S".
_PREFIXES = {
    p: k for k, group in enumerate(("O", "B", "IM", "EL", "SU")) for p in group
}
_O, _B, _I, _E, _S = range(5)


@keras.saving.register_keras_serializable(package="keras_mgda")
class TokenAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """The share of all labelled tokens whose class is right.

    Of batches that are padded to several lengths Keras's own accuracy is none:
    it first takes the mean over the positions of a text, padding included, so
    that a token counts less in a longer batch.

    Args:
        name: of the metric.
        **kwargs: those of `keras.metrics.SparseCategoricalAccuracy`.

    Call arguments:
        y_true: `[b, l]`, integers.
        y_pred: `[b, l, c]`, anything that is greatest for the predicted class.
        sample_weight: `[b, l]`.

    Example:

    >>> import keras
    >>> from keras_mgda import problems
    >>> accuracy = problems.TokenAccuracy()
    >>> y_pred = keras.ops.one_hot([[0, 0, 0]], 2)
    >>> accuracy.update_state([[0, 0, 1]], y_pred)
    >>> accuracy.update_state([[1, 0, 0]], y_pred, [[1, 0, 0]])
    >>> float(accuracy.result())  # 2 of 4
    0.5
    """

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def update_state(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        y_pred = tf.convert_to_tensor(y_pred)
        if sample_weight is not None:
            sample_weight = tf.reshape(sample_weight, [-1])
        super().update_state(
            tf.reshape(y_true, [-1]),
            tf.reshape(y_pred, [-1, y_pred.shape[-1]]),
            sample_weight,
        )


@keras.saving.register_keras_serializable(package="keras_mgda")
class SpanF1(keras.metrics.Metric):
    """F1 of spans that are written as tags of tokens.

    With `P` the predicted spans and `T` the true ones of all examples, a span
    being its first token, its last one and its type,

        F1 = 2 |P and T| / (|P| + |T|),

    and 0 where both are empty. Tags are `"O"`, outside of all spans, or
    `"B-PER"` (the first token), `"I-PER"` or `"M-PER"` (one inside), `"E-PER"`
    (the last one) and `"S-PER"` (a single one), with or without a type. A tag
    that cannot follow the one before it starts a span, as in the evaluation of
    CoNLL-2000: after `"O"`, `"I-PER"` reads as `"B-PER"`.

    Tokens with the sample weight zero are left out, as if the sentence went on
    behind them: the padding, and the pieces of a word after its first.

    Args:
        classes: the tag of each class.
        name: of the metric.
        **kwargs: those of `keras.metrics.Metric`.

    Call arguments:
        y_true: `[b, l]`, integers.
        y_pred: `[b, l, c]`, anything that is greatest for the predicted class.
        sample_weight: `[b, l]`; only whether it is zero matters.

    Raises:
        ValueError: if a class is no such tag.

    Example:

    >>> from keras_mgda import problems
    >>> f1 = problems.SpanF1(["B", "I", "O"])
    >>> true, predicted = [[0, 1, 2, 0]], [[0, 1, 2, 2]]
    >>> import keras
    >>> float(f1(true, keras.ops.one_hot(predicted, 3)))  # 1 of 1, 1 of 2
    0.666...

    References:
        Tjong Kim Sang & Buchholz, 2000. Introduction to the CoNLL-2000 shared
        task: Chunking. https://aclanthology.org/W00-0726
    """

    def __init__(
        self, classes: Sequence[str], name: str = "f1", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.classes = list(classes)
        types: dict[str, int] = {}
        prefixes, of_classes = [], []
        for tag in self.classes:
            prefix, _, span_type = str(tag).partition("-")
            if prefix not in _PREFIXES or (prefix == "O") > (not span_type):
                raise ValueError(
                    "A class must be 'O', or B, I, M, E or S, alone or with a "
                    f"type as in 'B-PER'. Received: {tag!r} in {self.classes}. "
                    "Leave the metric out if the tags are no spans."
                )
            prefixes.append(_PREFIXES[prefix])
            of_classes.append(types.setdefault(span_type, len(types)))
        self._prefixes, self._types = prefixes, of_classes
        for count in ("correct", "predicted", "true"):
            variable = self.add_weight(name=count, initializer="zeros")
            setattr(self, f"num_{count}", variable)

    def update_state(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        y_true = tf.cast(y_true, tf.int32)
        y_pred = tf.argmax(y_pred, axis=-1, output_type=tf.int32)
        counted = tf.ones_like(y_true, tf.bool)
        if sample_weight is not None:
            weight = tf.convert_to_tensor(sample_weight)
            counted &= tf.reshape(weight != 0, tf.shape(y_true))
        # Those that count, moved to the front in their order.
        order = tf.argsort(tf.cast(~counted, tf.int32), axis=1, stable=True)
        counted = tf.gather(counted, order, axis=1, batch_dims=1)
        true, predicted = (
            self._spans(tf.gather(tags, order, axis=1, batch_dims=1), counted)
            for tags in (y_true, y_pred)
        )
        differs = tf.reduce_any(true != predicted, axis=0)
        inside, starts = true[1] > 0, true[2] > 0
        # The n-th span of the row takes the n-th segment, if all its tokens,
        # with where it starts, where it ends and its type, are predicted.
        b, length = tf.unstack(tf.shape(y_true))
        segment = tf.cumsum(tf.cast(starts, tf.int32), axis=1)
        segment += (length + 1) * tf.range(b)[:, None]
        wrong = tf.math.unsorted_segment_sum(
            tf.cast(differs & inside, tf.float32), segment, b * (length + 1)
        )
        spans = tf.math.unsorted_segment_sum(
            tf.cast(starts, tf.float32), segment, b * (length + 1)
        )
        correct = tf.cast((spans > 0) & (wrong == 0), tf.float32)
        self.num_correct.assign_add(tf.reduce_sum(correct))
        for count, found in (
            (self.num_true, true),
            (self.num_predicted, predicted),
        ):
            count.assign_add(tf.reduce_sum(tf.cast(found[2], tf.float32)))

    def _spans(self, tags: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
        """`[4, b, l]`: type, whether in a span, first of one, last of one."""
        prefix = tf.where(counted, tf.gather(self._prefixes, tags), _O)
        span_type = tf.gather(self._types, tags)
        inside = prefix != _O
        span_type = tf.where(inside, span_type, -1)
        before = tf.pad(prefix, [[0, 0], [1, 0]], constant_values=_O)[:, :-1]
        type_before = tf.pad(span_type, [[0, 0], [1, 0]], constant_values=-1)
        starts = inside & (
            (prefix == _B)
            | (prefix == _S)
            | (before == _O)
            | (before == _E)
            | (before == _S)
            | (span_type != type_before[:, :-1])
        )
        goes_on = tf.pad((inside & ~starts)[:, 1:], [[0, 0], [0, 1]])
        ends = inside & ~goes_on
        flags = [tf.cast(flag, tf.int32) for flag in (inside, starts, ends)]
        return tf.stack([span_type, *flags])

    def result(self) -> Any:
        return keras.ops.divide_no_nan(
            2.0 * self.num_correct, self.num_predicted + self.num_true
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "classes": self.classes}
