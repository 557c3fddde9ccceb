"""Joining one data set for each task."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda import datasets
from tests.support.refusal import refused


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


@pytest.mark.parametrize(
    "sampling",
    ["proportional", pytest.param("uniform", marks=pytest.mark.slow)],
)
@pytest.mark.sample(1)
def test_shares_of_the_tasks(sampling):
    joined = datasets.join_tasks(
        tables(), 20, sampling=sampling, epochs=6, seed=1
    )
    found = drawn(joined)
    total = sum(map(len, found.values()))
    assert total == len(joined) * 20 == 6 * 300
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


def test_one_sample_weight_is_that_of_all_tasks():
    """Also in a data set that has the name of one of them."""
    labels = {"a": tf.zeros([4]), "b": tf.ones([4])}
    of_all = tf.data.Dataset.from_tensor_slices(
        (tf.zeros([4, 2]), labels, tf.fill([4], 0.25))
    )
    for name in ("a", "both"):
        joined = datasets.join_tasks({name: of_all}, 4, sampling="once")
        ((_, _, weight),) = list(joined)
        for task in labels:
            assert weight[task].numpy().tolist() == [0.25] * 4


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


@pytest.mark.slow
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


def sequences(rows, dtype="int32"):
    """Examples whose input and label are a row, of any length."""
    ragged = tf.ragged.constant(rows, dtype=dtype)
    return tf.data.Dataset.range(len(rows)).map(
        lambda k: ({"tokens": ragged[k]}, ragged[k])
    )


WORDS = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3], [5], [8, 9, 7, 9], [3, 2]]


def numbers(rows, value=0.0):
    """Labels of whole sequences."""
    return sequences(rows).map(lambda x, y: (x, tf.constant(value)))


class TestSequences:
    def once(self, parts, batch_size, **options):
        return list(
            datasets.join_tasks(parts, batch_size, sampling="once", **options)
        )

    def test_tokens_and_labels_are_padded_to_one_length(self):
        parts = {"tags": sequences(WORDS[:3]), "tone": numbers([[7] * 6], 2.0)}
        ((x, y, weight),) = self.once(parts, 4, pad=-1)
        tokens = np.full((4, 6), -1)
        tags, mask = np.zeros((4, 6)), np.zeros((4, 6))
        for k, row in enumerate(WORDS[:3]):
            tokens[k, : len(row)] = tags[k, : len(row)] = row
            mask[k, : len(row)] = 1
        tokens[3] = 7
        np.testing.assert_array_equal(x["tokens"], tokens)
        np.testing.assert_array_equal(y["tags"], tags)
        np.testing.assert_array_equal(weight["tags"], mask)
        np.testing.assert_array_equal(y["tone"], [0, 0, 0, 2])
        np.testing.assert_array_equal(weight["tone"], [0, 0, 0, 1])

    def test_once_goes_through_everything_in_order(self):
        parts = {"tags": sequences(WORDS), "tone": numbers(WORDS[::-1])}
        rows = [
            [token for token in row if token]
            for x, _, _ in self.once(parts, 5)
            for row in x["tokens"].numpy().tolist()
        ]
        assert rows == WORDS + WORDS[::-1]

    def test_labels_are_as_long_as_the_tokens_where_nobody_has_any(self):
        """A batch of one data set alone is a batch of all tasks, too."""
        parts = {"tags": sequences(WORDS), "tone": numbers([[1, 2, 3]])}
        x, y, weight = self.once(parts, 6)[-1]
        assert x["tokens"].shape == y["tags"].shape == weight["tags"].shape
        assert not weight["tags"].numpy().any()

    @pytest.mark.parametrize("sampling", ["proportional", "once"])
    def test_buckets(self, sampling):
        rows = [[1] * n for n in (1, 2, 3, 4, 5, 6, 7, 8, 9) for _ in range(4)]
        joined = datasets.join_tasks(
            {"tags": sequences(rows), "tone": numbers(rows)},
            4,
            sampling=sampling,
            bucket_boundaries=[3, 6],
            seed=0,
        )
        buckets = {3: range(4), 6: range(4, 7), 7: [7], 8: [8], 9: [9]}
        drawn, total = 0, 0
        for x, y, weight in joined:
            length = x["tokens"].shape[1]
            found = x["tokens"].numpy().sum(axis=1)
            bucket = set(buckets[length]) if length < 7 else {7, 8, 9}
            assert set(found) <= bucket
            assert length < 7 or length == found.max()
            assert y["tags"].shape[1] == weight["tags"].shape[1] == length
            drawn, total = drawn + len(found), total + found.sum()
        assert drawn == 2 * len(rows)
        if sampling == "once":
            assert total == 2 * sum(map(len, rows))
        else:
            assert len(joined) == drawn // 4

    def test_annealing_goes_on_while_examples_wait_in_buckets(self):
        rows = [[1] * n for n in range(1, 9)]
        joined = datasets.join_tasks(
            {"a": sequences(rows), "b": numbers(rows)},
            8,
            sampling="annealed",
            epochs=3,
            bucket_boundaries=[1, 2, 3, 4, 5, 6, 7],
        )
        assert len(list(joined)) == len(joined) == 6

    def test_strings_and_several_axes(self):
        def named(x, y):
            text = tf.strings.as_string(x["tokens"])
            grid = x["tokens"][:, None] * tf.ones_like(x["tokens"])
            return {"text": text, "grid": grid}, 0.0

        parts = {"a": sequences(WORDS[:2]).map(named)}
        ((x, _, _),) = self.once(parts, 2, pad={"text": "?", "grid": 7})
        assert x["text"].numpy().tolist() == [
            [b"3", b"1", b"4"],
            [b"1", b"5", b"?"],
        ]
        np.testing.assert_array_equal(
            x["grid"][0], np.outer([3, 1, 4], [1] * 3)
        )
        np.testing.assert_array_equal(
            x["grid"][1], [[1, 1, 7], [5, 5, 7], [7, 7, 7]]
        )

    def test_a_size_that_one_data_set_knows(self):
        fixed = tf.data.Dataset.from_tensors(
            ({"tokens": tf.constant([1, 2])}, tf.constant([1, 2]))
        )
        (batch,) = self.once({"a": sequences(WORDS[:1]), "b": fixed}, 2)
        np.testing.assert_array_equal(
            batch[0]["tokens"], [[3, 1, 4], [1, 2, 0]]
        )
        # For b both labels are of one example.
        np.testing.assert_array_equal(batch[2]["b"], [0, 1])

    @pytest.mark.slow
    def test_a_model_trains_on_it(self):
        ids = keras.Input((None,), dtype="int32", name="tokens")
        z = layers.Embedding(10, 8, mask_zero=False)(ids)
        z = keras_mgda.SharedRepresentation()(z)
        pooled = layers.GlobalAveragePooling1D()(z)
        model = keras_mgda.MGDAModel(
            {"tokens": ids},
            {"tags": layers.Dense(10)(z), "tone": layers.Dense(1)(pooled)},
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(
            keras.optimizers.Adam(0.05),
            {"tags": loss, "tone": "mse"},
            unlabelled={"tags": None, "tone": None},
        )
        parts = {"tags": sequences(WORDS), "tone": numbers(WORDS, 1.0)}
        joined = datasets.join_tasks(parts, 6, seed=0)
        history = model.fit(joined, epochs=40, verbose=0).history
        for task in ("tags", "tone"):
            losses = history[f"{task}_loss"]
            assert losses[-1] < 0.2 * losses[0], task


class TestSharedExamples:
    def test_labels_of_several_tasks(self):
        x = tf.reshape(tf.range(8.0), [4, 2])
        both = {"a": tf.range(4), "b": -tf.range(4)}
        parts = {
            "both": tf.data.Dataset.from_tensor_slices((x, both)),
            "c": tf.data.Dataset.from_tensor_slices((-x, tf.range(4))),
        }
        (batch,) = datasets.join_tasks(parts, 8, sampling="once")
        _, y, weight = batch
        assert list(y) == list(weight) == ["a", "b", "c"]
        np.testing.assert_array_equal(y["b"], [0, -1, -2, -3, 0, 0, 0, 0])
        np.testing.assert_array_equal(weight["a"], weight["b"])
        np.testing.assert_array_equal(weight["c"], 1 - weight["a"])

    def test_two_data_sets_of_one_task(self):
        x = tf.ones([2, 1])
        parts = {
            name: tf.data.Dataset.from_tensor_slices((x, {"a": [value] * 2}))
            for name, value in (("one", 1), ("other", 2))
        }
        ((_, y, weight),) = datasets.join_tasks(parts, 4, sampling="once")
        np.testing.assert_array_equal(y["a"], [1, 1, 2, 2])
        np.testing.assert_array_equal(weight["a"], [1, 1, 1, 1])


class TestSampleWeights:
    def weights(self, parts):
        batches = datasets.join_tasks(parts, 12, sampling="once")
        ((_, _, weight),) = batches
        return weight

    def test_of_examples(self):
        table = numbered(0, 3).map(lambda x, y: (x, y, 2.0 + y))
        weight = self.weights({"a": table, "b": numbered(1, 2)})
        np.testing.assert_array_equal(weight["a"], [2, 3, 4, 0, 0])
        np.testing.assert_array_equal(weight["b"], [0, 0, 0, 1, 1])

    def test_one_for_a_sequence_and_one_for_each_position(self):
        whole = sequences(WORDS[:2]).map(lambda x, y: (x, y, 0.5))
        each = sequences(WORDS[:2]).map(
            lambda x, y: (x, y, tf.cast(y, tf.float64) / 2)
        )
        weight = self.weights({"a": whole, "b": each})
        np.testing.assert_array_equal(
            weight["a"], [[0.5] * 3, [0.5, 0.5, 0], [0] * 3, [0] * 3]
        )
        np.testing.assert_array_equal(
            weight["b"], [[0] * 3, [0] * 3, [1.5, 0.5, 2], [0.5, 2.5, 0]]
        )

    def test_of_tasks_by_name_and_of_all(self):
        x, y = tf.ones([2, 1]), {"a": [1, 1], "b": [1, 1]}
        named = tf.data.Dataset.from_tensor_slices((x, y, {"b": [3.0, 4.0]}))
        weight = self.weights({"both": named})
        np.testing.assert_array_equal(weight["a"], [1, 1])
        np.testing.assert_array_equal(weight["b"], [3, 4])
        common = tf.data.Dataset.from_tensor_slices((x, y, [3.0, 4.0]))
        weight = self.weights({"both": common})
        np.testing.assert_array_equal(weight["a"], [3, 4])
        np.testing.assert_array_equal(weight["b"], [3, 4])


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
        with refused("must hold pairs"):
            datasets.join_tasks(parts, 4)

    def test_inputs_that_differ_without_names(self):
        other = tf.data.Dataset.from_tensor_slices(
            (np.ones((4, 3)), np.ones(4))
        )
        with pytest.raises(ValueError, match="must be alike in all data sets"):
            datasets.join_tasks({**tables(), "other": other}, 4)

    @pytest.mark.parametrize(
        ("other", "way_out"),
        [
            (lambda x: tf.cast(x, tf.int64), lambda x: tf.cast(x, tf.int32)),
            (lambda x: x[None], lambda x: x[0]),
            (lambda x: tf.zeros([3], tf.int32), None),
        ],
        ids=["dtype", "rank", "size"],
    )
    def test_one_name_in_two_forms(self, other, way_out):
        table = tf.data.Dataset.from_tensors(
            ({"x": tf.constant([1, 2])}, tf.constant(1.0))
        )
        changed = table.map(lambda x, y: ({"x": other(x["x"])}, y))
        with refused("one dtype, one number of axes and one size.*input 'x'"):
            datasets.join_tasks({"a": table, "b": changed}, 2)
        if way_out:
            changed = changed.map(lambda x, y: ({"x": way_out(x["x"])}, y))
        else:
            changed = sequences([[0, 0, 0]]).map(
                lambda x, y: ({"x": x["tokens"]}, 0.0)
            )
        assert len(list(datasets.join_tasks({"a": table, "b": changed}, 2)))

    def test_labels_of_one_task_in_two_forms(self):
        x = tf.ones([2, 1])
        parts = {
            str(dtype): tf.data.Dataset.from_tensor_slices(
                (x, {"a": tf.zeros([2], dtype)})
            )
            for dtype in (tf.int32, tf.float32)
        }
        with refused("one dtype.*labels of task 'a'"):
            datasets.join_tasks(parts, 2)

    def test_ragged_and_sparse(self):
        rows = tf.data.Dataset.from_tensor_slices(([[1, 2], [3, 4]], [0, 1]))
        ragged = rows.map(
            lambda x, y: (tf.RaggedTensor.from_row_lengths(x, [1, 1]), y)
        )
        with refused("must hold dense tensors.*to_tensor"):
            datasets.join_tasks({"a": ragged}, 2)
        dense = ragged.map(lambda x, y: (x.to_tensor(), y))
        assert len(datasets.join_tasks({"a": dense}, 2)) == 1
        sparse = numbered(0, 2).map(lambda x, y: (tf.sparse.from_dense(x), y))
        with refused("must hold dense tensors"):
            datasets.join_tasks({"a": sparse}, 2)
        dense = sparse.map(lambda x, y: (tf.sparse.to_dense(x), y))
        assert len(datasets.join_tasks({"a": dense}, 2)) == 1

    def test_labels_with_other_axes_of_unknown_size(self):
        rows = sequences([[1, 2], [3, 4]]).map(lambda x, y: (x, y[None]))
        with refused("must have a known size"):
            datasets.join_tasks({"a": rows}, 2)
        known = rows.map(lambda x, y: (x, tf.ensure_shape(y, [1, 2])))
        assert len(datasets.join_tasks({"a": known}, 2)) == 1

    def test_unknown_number_of_axes(self):
        rows = numbered(0, 2).map(
            lambda x, y: (tf.numpy_function(lambda x: x, [x], tf.float32), y)
        )
        with refused("number of axes.*must be known"):
            datasets.join_tasks({"a": rows}, 2)
        known = rows.map(lambda x, y: (tf.ensure_shape(x, [2]), y))
        assert len(datasets.join_tasks({"a": known}, 2)) == 1

    @pytest.mark.parametrize("pad", ["?", {"tokens": 0.5}])
    def test_padding_of_another_dtype(self, pad):
        with refused("`pad` must be a value of the input's dtype"):
            datasets.join_tasks({"a": sequences(WORDS)}, 2, pad=pad)

    def test_padding_of_no_input(self):
        with refused("`pad` must name inputs.*'words'"):
            datasets.join_tasks({"a": sequences(WORDS)}, 2, pad={"words": 0})

    @pytest.mark.parametrize("boundaries", [[0, 2], [3, 3], [4, 2]])
    def test_boundaries_that_do_not_ascend(self, boundaries):
        with refused("must be positive, ascend"):
            datasets.join_tasks(
                {"a": sequences(WORDS)}, 2, bucket_boundaries=boundaries
            )

    def test_boundaries_without_sequences(self):
        with refused("some input must be a sequence"):
            datasets.join_tasks(tables(), 2, bucket_boundaries=[2])

    def test_weights_of_other_tasks(self):
        x, y = tf.ones([2, 1]), {"a": [1, 1]}
        rows = tf.data.Dataset.from_tensor_slices((x, y, {"b": [1.0, 1.0]}))
        with refused("must be of tasks that have labels.*'b'"):
            datasets.join_tasks({"one": rows}, 2)

    def test_once_has_one_epoch(self):
        with refused("'once'.* must have one epoch"):
            datasets.join_tasks(tables(), 2, sampling="once", epochs=2)
