"""The training of `multi_mnist`, its table, and a whole run on few images."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples import multi_mnist, report, two_digits
from keras_mgda import serving

METHODS = multi_mnist.METHODS
FEW = ["--images=96", "--epochs=2", "--learning-rates=0.02", "--seeds=1"]


@pytest.fixture(scope="module")
def data():
    """Without the test split: training may not need it."""
    data = two_digits.load("digits", images=96)
    del data["test"]
    return data


@pytest.fixture(scope="module")
def settings():
    return multi_mnist.SETTINGS["digits"]._replace(epochs=3)


def test_methods_start_from_the_same_weights():
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")

    def untrained(method, seed):
        keras.utils.set_random_seed(seed)
        return multi_mnist.build(method, learning_rate=0.1)(x)

    expected = untrained(METHODS["uniform"], seed=3)
    for method in METHODS.values():
        start, other = untrained(method, seed=3), untrained(method, seed=4)
        assert set(start) == set(method.tasks)
        for task in method.tasks:
            np.testing.assert_array_equal(start[task], expected[task])
            assert not np.allclose(other[task], expected[task])


def test_batches_change_order_each_epoch_and_are_the_same_for_all_methods():
    x = np.arange(10.0)
    split = (x, {"left": x, "right": -x})
    both = multi_mnist.batches(split, ("left", "right"), 4, seed=1)
    right = multi_mnist.batches(split, ("right",), 4, seed=1)
    epochs = []
    for _ in range(3):
        seen = []
        for (x1, y1), (x2, y2) in zip(both, right, strict=True):
            np.testing.assert_array_equal(x1, x2)
            np.testing.assert_array_equal(y1["right"], -x1)
            assert set(y2) == {"right"}
            seen += x1.numpy().tolist()
        assert sorted(seen) == x.tolist()
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_run_ends_with_the_epoch_that_is_best_on_validation(data, settings):
    run = multi_mnist.train(METHODS["MGDA-UB"], data, settings, 0.05, seed=0)
    reached = multi_mnist.accuracies(run.model, data["validation"])
    assert set(reached) == {"left", "right"}
    assert run.accuracy == pytest.approx(np.mean(list(reached.values())) / 100)
    assert len(run.task_weights) == 6  # steps
    for task_weights in run.task_weights:
        assert sum(task_weights.values()) == pytest.approx(1)


@pytest.mark.slow
def test_a_seed_determines_a_run(data, settings):
    first, second, other = (
        multi_mnist.train(METHODS["exact MGDA"], data, settings, 0.05, seed)
        for seed in (5, 5, 6)
    )
    for mine, theirs in zip(
        first.model.get_weights(), second.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    assert any(
        not np.allclose(mine, theirs, rtol=1e-2, atol=1e-2)
        for mine, theirs in zip(
            first.model.get_weights(), other.model.get_weights(), strict=True
        )
    )


def test_learning_rate_is_chosen_on_validation_by_the_first_seed(
    monkeypatch, settings
):
    reached = {(0.01, 0): 0.7, (0.02, 0): 0.8, (0.05, 0): 0.6}
    calls = []

    def train(method, data, settings, learning_rate, seed):
        calls.append((learning_rate, seed))
        accuracy = reached.get((learning_rate, seed), 0.1)
        return multi_mnist.Run(None, 1, accuracy, [])

    monkeypatch.setattr(multi_mnist, "train", train)
    chosen, runs = multi_mnist.train_seeds(
        METHODS["uniform"], None, settings, 3
    )
    assert chosen == 0.02
    assert [run.accuracy for run in runs] == [0.8, 0.1, 0.1]
    assert calls == [*reached, (0.02, 1), (0.02, 2)]


def test_accuracies_by_hand():
    y = {"left": np.array([0, 1, 2, 3]), "right": np.array([0, 0, 0, 1])}

    def model(x, training):
        assert not training
        return {task: np.eye(4)[[0, 1, 2, 0]] for task in y}

    assert multi_mnist.accuracies(model, (None, y)) == {
        "left": 75.0,
        "right": 25.0,
    }


def test_table_by_hand():
    scores = {
        "single task, left": [{"left": 50.0}, {"left": 80.0}],
        "single task, right": [{"right": 40.0}, {"right": 50.0}],
        "uniform": [
            {"left": 55.0, "right": 40.0},  # +10 % and 0: delta-m 5
            {"left": 80.0, "right": 45.0},  # 0 and -10 %: delta-m -5
        ],
    }
    lines = report.table(
        scores, dict.fromkeys(scores, 0.1), dict.fromkeys(scores, 1.234)
    ).splitlines()
    rows = [",".join(c.strip() for c in line.split("|")) for line in lines]
    # The standard deviation of two values: their distance / sqrt(2).
    assert rows[2:] == [
        ",single task, left,0.1,65.00 ± 21.21,,,1.23x,",
        ",single task, right,0.1,,45.00 ± 7.07,,1.23x,",
        ",uniform,0.1,67.50 ± 17.68,42.50 ± 3.54,0.00 ± 7.07,1.23x,",
    ]


def test_table_of_one_seed_claims_no_spread():
    scores = {
        "single task, left": [{"left": 50.0}],
        "single task, right": [{"right": 40.0}],
        "uniform": [{"left": 55.0, "right": 40.0}],
    }
    lines = report.table(
        scores, dict.fromkeys(scores, 0.1), dict.fromkeys(scores, 1.0)
    )
    assert "±" not in lines
    assert "5.00" in lines


def test_no_seeds_are_refused(capsys):
    with pytest.raises(SystemExit):
        multi_mnist.main(["--seeds=0"])
    assert "--seeds must be 1 or more. Received: 0." in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_run_writes_draws_and_publishes(tmp_path):
    figures = tmp_path / "figures"
    arguments = [*FEW, f"--output={figures}", f"--saved-models={tmp_path}"]
    runs = multi_mnist.main(arguments)
    assert list(runs) == list(METHODS)
    found = json.loads((figures / "multi_digits.json").read_text())
    assert found.keys() == {"settings", "scores", "rates", "times"}
    assert list(found["scores"]) == list(METHODS)
    assert {path.name for path in figures.iterdir()} == {
        "multi_digits.json",
        "multi_digits_accuracies.png",
        "multi_digits_task_weights.png",
    }

    model = runs["MGDA-UB"][0].model
    path = tmp_path / "multi_mnist" / "1"
    assert serving.problems(serving.read(path)) == []
    loaded = tf.saved_model.load(str(path)).signatures
    assert set(loaded) == {"serving_default", "predict_left", "predict_right"}
    x = np.random.default_rng(0).random((7, 28, 28, 1), "float32")
    expected = model(x, training=False)
    for signature, tasks in {
        "serving_default": {"left", "right"},
        "predict_left": {"left"},
        "predict_right": {"right"},
    }.items():
        served = loaded[signature](image=tf.constant(x))
        assert set(served) == tasks
        for task in served:
            np.testing.assert_allclose(
                served[task], tf.nn.softmax(expected[task]), atol=1e-6
            )
    again = multi_mnist.publish(model, x, tmp_path / "multi_mnist")
    assert again.path.name == "2"
