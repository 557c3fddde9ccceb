"""Joining one data set for each task."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda import datasets


def numbered(task, size):
    """Examples whose input is (task, number) and whose label is the number."""
    x = np.stack([np.full(size, task), np.arange(size)], axis=1)
    y = np.arange(size, dtype="float32")
    return tf.data.Dataset.from_tensor_slices((x.astype("float32"), y))


SIZES = {"small": 10, "middle": 40, "large": 250}


def tables(sizes=SIZES):
    return {t: numbered(k, n) for k, (t, n) in enumerate(sizes.items())}


def drawn(joined):
    """`{task: numbers}`, in order, checked against labels and weights."""
    found = collections.defaultdict(list)
    names = list(SIZES)
    for x, y, sample_weight in joined:
        for row, (k, number) in enumerate(x.numpy()):
            task = names[int(k)]
            for other in names:
                assert sample_weight[other][row] == float(other == task)
                assert y[other][row] == (number if other == task else 0.0)
            found[task].append(int(number))
    return found


@pytest.mark.parametrize("sampling", ["proportional", "uniform"])
def test_shares_of_the_tasks(sampling):
    joined = datasets.join_tasks(
        tables(), 20, sampling=sampling, epochs=20, seed=1
    )
    found = drawn(joined)
    total = sum(map(len, found.values()))
    assert total == len(joined) * 20 == 20 * 300
    for task, size in SIZES.items():
        p = size / 300 if sampling == "proportional" else 1 / 3
        spread = 5 * np.sqrt(p * (1 - p) / total)  # of a binomial, five sigma
        assert abs(len(found[task]) / total - p) < spread


def test_annealing_moves_from_proportional_to_nearly_uniform():
    epochs = 10
    joined = datasets.join_tasks(
        tables(), 20, sampling="annealed", epochs=epochs, seed=1
    )
    steps = len(joined) // epochs
    assert len(joined) == epochs * steps == epochs * 15
    small = [0.0] * epochs
    for step, (_, _, weight) in enumerate(joined):
        small[step // steps] += float(tf.reduce_sum(weight["small"])) / 300
    last = np.array(list(SIZES.values())) ** 0.2
    assert abs(small[0] - 10 / 300) < 0.06
    assert abs(small[-1] - last[0] / last.sum()) < 0.14
    assert np.mean(small[5:]) > np.mean(small[:5])


def test_a_task_starts_over_only_when_it_is_through():
    found = drawn(datasets.join_tasks(tables(), 10, epochs=3, seed=2))
    for task, size in SIZES.items():
        for start in range(0, len(found[task]) - size, size):
            once = found[task][start : start + size]
            assert sorted(once) == list(range(size))


def test_the_seed_decides():
    def first(seed):
        batch = next(iter(datasets.join_tasks(tables(), 32, seed=seed)))
        return batch[0].numpy()

    np.testing.assert_array_equal(first(3), first(3))
    assert not np.array_equal(first(3), first(4))


def test_different_inputs_are_filled_with_zeros():
    def named(dataset, name):
        return dataset.map(lambda x, y: ({name: x, "both": x[0]}, y))

    parts = tables({"a": 8, "b": 8})
    parts = {task: named(part, task) for task, part in parts.items()}
    for x, _, weight in datasets.join_tasks(parts, 4, seed=0):
        assert set(x) == {"a", "b", "both"}
        for row in range(4):
            owner = "a" if weight["a"][row] == 1.0 else "b"
            other = "b" if owner == "a" else "a"
            np.testing.assert_array_equal(x[other][row], [0.0, 0.0])
            assert x[owner][row][0] == x["both"][row]


def test_a_model_trains_on_it():
    inputs = keras.Input((2,))
    z = layers.Dense(4, activation="tanh")(inputs)
    z = keras_mgda.SharedRepresentation()(z)
    model = keras_mgda.MGDAModel(
        inputs, {task: layers.Dense(1)(z) for task in SIZES}
    )
    model.compile(
        "adam",
        dict.fromkeys(SIZES, "mse"),
        unlabelled=dict.fromkeys(SIZES, None),
    )
    joined = datasets.join_tasks(tables(), 20, sampling="uniform", seed=0)
    joined = joined.map(
        lambda x, y, w: (x / 250, {t: v / 250 for t, v in y.items()}, w)
    )
    history = model.fit(joined, epochs=20, verbose=0).history
    for task in SIZES:
        losses = history[f"{task}_loss"]
        assert losses[-1] < 0.5 * losses[0], task


class TestBadInput:
    def test_unknown_sampling(self):
        with pytest.raises(ValueError, match="`sampling` must be one of"):
            datasets.join_tasks(tables(), 4, sampling="square")

    def test_no_epoch(self):
        with pytest.raises(ValueError, match="`epochs` at least 1"):
            datasets.join_tasks(tables(), 4, epochs=0)

    @pytest.mark.parametrize("batch_size", [0, sum(SIZES.values()) + 1])
    def test_batches_that_cannot_be_filled(self, batch_size):
        with pytest.raises(ValueError, match="no more than all data sets hold"):
            datasets.join_tasks(tables(), batch_size)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda d: d.repeat(),
            lambda d: d.filter(lambda *_: True),
            lambda d: d.map(lambda x, y: x),
        ],
        ids=["infinite", "unknown size", "no labels"],
    )
    def test_unfit_data_sets(self, spoil):
        parts = {**tables(), "spoilt": spoil(numbered(0, 4))}
        with pytest.raises(ValueError, match="must hold pairs"):
            datasets.join_tasks(parts, 4)

    def test_inputs_that_differ_without_names(self):
        other = tf.data.Dataset.from_tensor_slices(
            (np.ones((4, 3)), np.ones(4))
        )
        with pytest.raises(ValueError, match="must be alike in all data sets"):
            datasets.join_tasks({**tables(), "other": other}, 4)
