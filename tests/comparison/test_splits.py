import numpy as np
import pytest
import tensorflow as tf

from keras_mgda.comparison.splits import digests, of_tasks
from tests.support.comparison_job import split
from tests.support.refusal import refused

TRAIN, VALIDATION, TEST = (split(seed) for seed in range(3))


def of(**splits):
    given = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    return given | splits


def test_overlap_may_be_allowed():
    splits = of(validation=(TRAIN[0].copy(), TRAIN[1]))
    with refused("32 different inputs that are in `train` and in `validation`"):
        digests(splits, allow_overlap=False)
    found = digests(splits, allow_overlap=True)
    assert found["train"] == found["validation"] != found["test"]


@pytest.mark.parametrize(
    "alike",
    [
        lambda x: x.astype("float64"),
        lambda x: np.where(x == x[0], -x * 0, x)[1:],
        lambda x: {"image": x},
    ],
)
def test_an_example_is_known_whatever_its_type(alike):
    with refused("No example must be in two splits"):
        digests(of(test=(alike(TRAIN[0]), TEST[1])), allow_overlap=False)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64"])
def test_whole_numbers_are_known_as_floating_ones(dtype):
    whole = np.arange(len(TRAIN[0]) * 3).reshape(-1, 3) % 251
    splits = of(
        train=(whole.astype("int32"), TRAIN[1]),
        test=(
            whole.astype(dtype)[-3:],
            {t: y[-3:] for t, y in TEST[1].items()},
        ),
    )
    with refused("3 different inputs that are in `train` and in `test`"):
        digests(splits, allow_overlap=False)


def test_large_numbers_do_not_become_one():
    """As float32 they would: 2^24 and its successor."""
    ids = np.array([[2**24], [2**24 + 1]])
    labels = {t: y[:1] for t, y in TEST[1].items()}
    splits = of(train=(ids[:1], labels), test=(ids[1:], labels))
    digests(splits, allow_overlap=False)


def test_a_split_without_an_end_or_a_task_is_refused():
    endless = tf.data.Dataset.from_tensor_slices(TEST).batch(4).repeat()
    with refused("A split must end"):
        digests(of(test=endless), allow_overlap=False)
    x, y = TEST
    with refused("labels for every task"):
        of_tasks((x, {"a": y["a"]}), ["a", "b"])
    with refused("sample weights for every task"):
        of_tasks((x, y, {"a": np.ones(len(x))}), ["a", "b"])


def test_text_is_compared_too():
    labels = {"a": np.array([0.0, 1.0])}
    one, two = np.array(["a b", "c"], object), np.array(["c", "d"])
    with refused("1 different inputs"):
        digests(of(train=(one, labels), test=(two, labels)), False)


def test_digests_tell_labels_and_weights_apart():
    x, y = TRAIN
    other = x, y | {"a": y["a"] + 1}
    weighted = x, y, np.ones(len(x))
    found = {
        digests(of(train=train), False)["train"]
        for train in (TRAIN, other, weighted, lambda: TRAIN)
    }
    assert len(found) == 3
    data_set = tf.data.Dataset.from_tensor_slices(TRAIN)
    assert digests(of(train=data_set), False)["train"] is None
