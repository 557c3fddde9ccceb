"""Accuracy of tokens, and F1 of spans, which are read one token at a time."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda import problems
from tests.support.refusal import refused

SCHEMES = {
    "BIO": ["B-PER", "I-PER", "B-LOC", "I-LOC", "O"],
    "BMES": list("BMES"),
    "BIES": ["O", *(f"{p}-{t}" for p in "BIES" for t in ("X", "Y"))],
    "BILU": ["O", *(f"{p}-{t}" for p in "BILU" for t in ("X", "Y"))],
}


def spans(tags):
    """`{(first, last, type)}`, by the rules of conlleval, in a loop."""
    found, start = set(), None
    before, type_before = "O", ""
    for k, tag in enumerate([*tags, "O"]):
        prefix, _, span_type = tag.partition("-")
        prefix = {"M": "I", "L": "E", "U": "S"}.get(prefix, prefix)
        same = span_type == type_before
        ends = before != "O" and (before in "ES" or prefix in "BSO" or not same)
        if ends:
            found.add((start, k - 1, type_before))
        starts = prefix != "O" and (
            prefix in "BS" or before in "EOS" or not same
        )
        if starts:
            start = k
        before, type_before = prefix, span_type
    return found


def f1(rows):
    """Of pairs of lists of tags."""
    correct = predicted = true = 0
    for y_true, y_pred in rows:
        a, b = spans(y_true), spans(y_pred)
        correct, true, predicted = (
            correct + len(a & b),
            true + len(a),
            predicted + len(b),
        )
    return 2 * correct / (predicted + true) if predicted + true else 0.0


def test_spans_by_hand():
    assert spans(["B-X", "I-X", "O", "I-X", "I-Y", "B-Y"]) == {
        (0, 1, "X"),
        (3, 3, "X"),
        (4, 4, "Y"),
        (5, 5, "Y"),
    }
    assert spans(list("BMESBE")) == {(0, 2, ""), (3, 3, ""), (4, 5, "")}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_short_sentences(scheme):
    """Every pair of sentences of two tokens, and random longer ones."""
    classes = SCHEMES[scheme]
    c = len(classes)
    short = np.array(list(itertools.product(range(c), repeat=4)))
    random = np.random.default_rng(0)
    for pairs in (
        short.reshape(-1, 2, 2),
        random.integers(c, size=(40, 2, 9)),
    ):
        metric = problems.SpanF1(classes)
        metric.update_state(pairs[:, 0], np.eye(c)[pairs[:, 1]])
        rows = [[[classes[k] for k in row] for row in pair] for pair in pairs]
        assert float(metric.result()) == pytest.approx(f1(rows), rel=1e-6)


def test_tokens_that_do_not_count_are_as_if_they_were_not_there():
    classes = SCHEMES["BIO"]
    random = np.random.default_rng(1)
    metric, rows = problems.SpanF1(classes), []
    for _ in range(3):  # batches, of other lengths
        b, length = 8, int(random.integers(4, 12))
        true, predicted = random.integers(5, size=(2, b, length))
        weight = random.integers(2, size=(b, length)) * 0.5
        metric.update_state(true, np.eye(5)[predicted], weight)
        rows += [
            [[classes[k] for k in row[w > 0]] for row in (t, p)]
            for t, p, w in zip(true, predicted, weight, strict=True)
        ]
    assert float(metric.result()) == pytest.approx(f1(rows), rel=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_perfect_and_empty():
    metric = problems.SpanF1(["O", "B"])
    tags = np.array([[0, 1, 1]])
    assert float(metric(tags, np.eye(2)[tags])) == 1.0
    metric.reset_state()
    assert float(metric(np.zeros([1, 3]), np.eye(2)[[[0, 0, 0]]])) == 0.0


def test_in_graphs_and_under_xla():
    classes = SCHEMES["BIES"]
    pairs = np.random.default_rng(2).integers(9, size=(6, 2, 7))
    expected = problems.SpanF1(classes)
    expected.update_state(pairs[:, 0], np.eye(9)[pairs[:, 1]])
    for jit_compile in (False, True):
        metric = problems.SpanF1(classes)
        update = tf.function(metric.update_state, jit_compile=jit_compile)
        update(tf.constant(pairs[:, 0]), tf.one_hot(pairs[:, 1], 9))
        assert float(metric.result()) == float(expected.result())


def test_config():
    metric = problems.SpanF1(["B", "I"], name="words")
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(metric)
    )
    assert (copy.name, copy.classes) == ("words", ["B", "I"])


@pytest.mark.parametrize("classes", [["n", "v"], ["O-X"], ["B", 3]])
def test_tags_of_no_spans(classes):
    with refused("A class must be 'O', or B, I, M, E or S"):
        problems.SpanF1(classes)


def test_accuracy_counts_every_token_alike():
    """In batches of several lengths, as if they were one list."""
    random = np.random.default_rng(3)
    metric, right = problems.TokenAccuracy(), []
    for length in (3, 9, 5):
        true, predicted = random.integers(4, size=(2, 6, length))
        weight = random.integers(2, size=(6, length)).astype("float32")
        metric.update_state(true, np.eye(4)[predicted], weight)
        right.append((true == predicted)[weight > 0])
    expected = np.concatenate(right).mean()
    assert float(metric.result()) == pytest.approx(expected, rel=1e-6)
    copy = type(metric).from_config(metric.get_config())
    assert copy.name == "accuracy"
