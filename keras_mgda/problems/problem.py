"""One problem: its examples, its head, its loss and its metrics."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_mgda.problems.pairs import PairLoss
from keras_mgda.problems.tags import SpanF1, TokenAccuracy
from keras_mgda.recipe import Recipe

Kind = Literal[
    "classification",
    "multi-label",
    "regression",
    "tagging",
    "masked language modelling",
    "contrastive pairs",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A problem that texts are labelled for.

    | kind | a label of one text | the output |
    |---|---|---|
    | `"classification"` | a class | logits `[b, c]` |
    | `"multi-label"` | a collection of classes | logits `[b, c]` |
    | `"regression"` | a number, or a list of numbers | `[b, size]` |
    | `"tagging"` | a list: a class for each token | logits `[b, l, c]` |
    | `"masked language modelling"` | none | logits `[b, l, c]` |
    | `"contrastive pairs"` | another text | embeddings of both `[b, 2 d]` |

    `None` in place of a label, or of the class of one token, is a label that
    is missing: it enters neither loss nor metrics.

    Args:
        name: of the problem: its task, its head and its column of labels.
        kind: one of these.
        data: `{split: (texts, labels)}`, as `{"train": ..., "test": ...}`. A
            text is a string, which the tokenizer takes whole, or a list of
            tokens, each of which it takes by itself. Tagging needs the second.
            `labels` is `None` for masked language modelling.
        classes: what a label can be. Defaults to those of the split "train",
            sorted. Of masked language modelling the number of token ids; of
            regression and pairs none.
        loss: what `keras.Model.compile` takes for one output. Defaults to the
            cross-entropy, binary for several labels, the squared error,
            or `PairLoss`.
        metrics: a list of what `compile` takes; metrics are copied, so that
            each model has its own. Defaults to accuracy; of tagging, where
            the classes are tags of spans, also `SpanF1`; of regression the
            root of the mean squared error.
        head: a function from the representation, `[b, l, d]` for tagging and
            masked language modelling, else `[b, d]`, to the output. Defaults to
            dropout and one dense layer, for pairs to the representation.
        mask_id: of masked language modelling: the id that stands for a token
            which the model shall find.
        mask_rate: the share of the tokens that it shall find.

    Raises:
        ValueError: for an unknown kind; if there are no data, or not as many
            labels as texts; if the classes are neither given nor to be found.

    Example:

    >>> from keras_mgda import problems
    >>> sentiment = problems.Problem(
    ...     "sentiment",
    ...     "classification",
    ...     {"train": (["good", "bad", "fair"], ["+", "-", None])},
    ... )
    >>> sentiment.classes
    ('+', '-')
    """

    name: str
    kind: Kind
    data: Mapping[str, tuple[Sequence[Any], Any]]
    classes: Any = None
    loss: Any = None
    metrics: Sequence[Any] | None = None
    head: Callable[[Any], Any] | None = None
    mask_id: int | None = None
    mask_rate: float = 0.15

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"`kind` must be one of {list(_KINDS)}. Received: "
                f"{self.kind!r} for the problem '{self.name}'."
            )
        for split in self.data or [None]:
            texts, labels = self.data[split] if split else ((), None)
            received = 0 if labels is None else len(labels)
            unlabelled = labels is None and self.kind == MASKED
            if not len(texts) or not (unlabelled or received == len(texts)):
                raise ValueError(
                    "A problem must have data, with a label for each text, "
                    f"`None` where it is missing. Received: {len(texts)} texts "
                    f"and {received} labels in the split {split!r} of the "
                    f"problem '{self.name}'. Leave out a split without texts."
                )
        if self.classes is None and self.of_kind.has_classes:
            if "train" not in self.data or self.kind == MASKED:
                raise ValueError(
                    "The classes of a problem must be given, or be found in a "
                    f"split 'train'. Received: {list(self.data)} for the "
                    f"problem '{self.name}'. Pass `classes`; for masked "
                    "language modelling the number of token ids."
                )
            labels = [y for y in self.data["train"][1] if y is not None]
            if self.kind != "classification":
                labels = [c for several in labels for c in several]
            found = tuple(sorted({c for c in labels if c is not None}))
            if any(c != c for c in found):
                raise ValueError(
                    "A class must be equal to itself. Received: NaN among the "
                    f"labels of the problem '{self.name}'. Put `None` where a "
                    "label is missing."
                )
            object.__setattr__(self, "classes", found)
        if self.kind == MASKED and self.mask_id is None:
            raise ValueError(
                "Masked language modelling needs the id of a mask. Received: "
                f"mask_id=None for the problem '{self.name}'. Give the "
                "tokenizer a token for it, and pass its id as `mask_id`."
            )

    @property
    def of_kind(self) -> "OfKind":
        return _KINDS[self.kind]

    @property
    def size(self) -> int:
        """Of the last axis of the output."""
        if self.kind == MASKED:
            return int(self.classes)
        if self.kind == "regression":
            known = (
                y
                for _, labels in self.data.values()
                for y in labels
                if y is not None
            )
            return np.size(next(known, 0.0))
        return len(self.classes)


MASKED = "masked language modelling"
PAIRS = "contrastive pairs"


class OfKind(NamedTuple):
    """What is the same for all problems of a kind.

    Attributes:
        of_tokens: whether the head reads a representation of each token.
        has_classes: whether labels are classes.
        loss: makes the default loss.
        metrics: makes the default metrics of a problem.
        answer: from the output to what is served.
    """

    of_tokens: bool
    has_classes: bool
    loss: Callable[[], Any]
    metrics: Callable[[Problem], list[Any]]
    answer: Callable[[Problem, Any], Any]


def output(problem: Problem, representation: Any) -> Any:
    """What the problem's head makes of its representation."""
    if problem.head is not None:
        return problem.head(representation)
    if problem.kind == PAIRS:
        return representation
    hidden = layers.Dropout(0.1)(representation)
    # Losses and sums over a vocabulary are not for half precision.
    return layers.Dense(problem.size, name=problem.name, dtype="float32")(
        hidden
    )


def compile_options(problems: Sequence[Problem]) -> dict[str, Any]:
    """What `MGDAModel.compile` has to know of these problems.

    Losses and metrics are made anew in each call. Losses and metrics of a
    problem count its labelled examples, or tokens, only; in a batch without any
    the problem takes no part in the step. Stock Keras takes the same dict
    without `unlabelled`, and with `metrics` as `weighted_metrics`; its losses
    are then divided by the whole batch.

    Returns:
        `loss`, `metrics` and `unlabelled`, each with an entry for each problem.
        Change what you like.

    Example:

    >>> from keras_mgda import problems
    >>> score = problems.Problem(
    ...     "score", "regression", {"train": (["good", "bad"], [1.0, 0.0])}
    ... )
    >>> options = problems.compile_options([score])
    >>> {key: list(options[key]) for key in options}
    {'loss': ['score'], 'metrics': ['score'], 'unlabelled': ['score']}
    """
    return {
        "loss": {p.name: p.loss or p.of_kind.loss() for p in problems},
        "metrics": {
            p.name: p.of_kind.metrics(p)
            if p.metrics is None
            else list(map(_copied, p.metrics))
            for p in problems
        },
        "unlabelled": {p.name: None for p in problems},
    }


def answers(problems: Sequence[Problem]) -> dict[str, Callable[[Any], Any]]:
    """What is served of each problem's output, for `export_saved_model`.

    The `postprocess` from outputs to probabilities, of classes and tags; to the
    numbers of a regression; to the embedding of a text, the first of a pair.

    Example:

    >>> from keras_mgda import problems
    >>> tone = problems.Problem(
    ...     "tone", "classification", {"train": (["good", "bad"], ["+", "-"])}
    ... )
    >>> problems.answers([tone])["tone"]([[0.0, 0.0]]).numpy().tolist()
    [[0.5, 0.5]]
    """

    def answer(problem: Problem) -> Callable[[Any], Any]:
        return lambda y: problem.of_kind.answer(problem, y)

    return {problem.name: answer(problem) for problem in problems}


def _copied(metric: Any) -> Any:
    if isinstance(metric, keras.metrics.Metric):
        return Recipe.of(metric).make()
    return metric() if callable(metric) else metric


def _crossentropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _accuracy(_: Problem) -> list[Any]:
    return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]


def _of_tags(problem: Problem) -> list[Any]:
    try:
        return [TokenAccuracy(), SpanF1(problem.classes)]
    except ValueError:  # They are no spans.
        return [TokenAccuracy()]


_KINDS = {
    "classification": OfKind(
        of_tokens=False,
        has_classes=True,
        loss=_crossentropy,
        metrics=_accuracy,
        answer=lambda _, y: tf.nn.softmax(y),
    ),
    "multi-label": OfKind(
        of_tokens=False,
        has_classes=True,
        loss=lambda: keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=lambda _: [
            keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)
        ],
        answer=lambda _, y: tf.math.sigmoid(y),
    ),
    "regression": OfKind(
        of_tokens=False,
        has_classes=False,
        loss=keras.losses.MeanSquaredError,
        metrics=lambda _: [keras.metrics.RootMeanSquaredError(name="rmse")],
        answer=lambda _, y: y,
    ),
    "tagging": OfKind(
        of_tokens=True,
        has_classes=True,
        loss=_crossentropy,
        metrics=_of_tags,
        answer=lambda _, y: tf.nn.softmax(y),
    ),
    MASKED: OfKind(
        of_tokens=True,
        has_classes=True,
        loss=_crossentropy,
        metrics=lambda _: [TokenAccuracy()],
        answer=lambda _, y: tf.nn.softmax(y),
    ),
    PAIRS: OfKind(
        of_tokens=False,
        has_classes=False,
        loss=PairLoss,
        metrics=lambda _: [],
        answer=lambda _, y: tf.split(y, 2, axis=-1)[0],
    ),
}
