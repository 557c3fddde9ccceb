"""What surrounds the long runs: their folders, and errors that are none."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples import experiment


def started(folder, *given):
    parser = experiment.parser("test", "", epochs=2)
    args = parser.parse_args([f"--run={folder}/run", *given])
    experiment.start(args, "test")
    return args


def test_a_run_goes_on_with_its_own_settings_only(tmp_path):
    started(tmp_path, "--method=uniform")
    args = started(tmp_path, "--method=uniform", "--epochs=4")
    path = args.run / "settings.json"
    before = path.read_bytes()
    assert json.loads(before)["method"] == "uniform"
    with pytest.raises(ValueError, match="must go on with the settings of"):
        started(tmp_path, "--method=mgda")
    assert path.read_bytes() == before
    started(tmp_path / "another", "--method=mgda")


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_an_error_that_is_no_number_ends_the_run(tmp_path, error):
    """It would never be the least, and the first epoch be called the best."""
    args = started(tmp_path)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    x = np.ones((4, 1))
    examples = tf.data.Dataset.from_tensors((x, x))
    with pytest.raises(ValueError, match=f"must be finite. Received: {error}"):
        experiment.train(model, examples, args, lambda logs: error)


def test_training_ends_at_the_best_epoch_and_resumes(tmp_path):
    """The second of two epochs; then a third, which is worse."""
    errors = iter([3.0, 1.0, 2.0])
    x = np.ones((4, 1))
    examples = tf.data.Dataset.from_tensors((x, x))
    kept = []

    def validation_error(logs):
        kept.append(model.get_weights())
        return next(errors)

    for epochs in (2, 3):
        args = started(tmp_path, f"--epochs={epochs}")
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        best = experiment.train(model, examples, args, validation_error)
        assert best == 2
        for mine, theirs in zip(model.get_weights(), kept[1], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert len(kept) == 3
    log = experiment.epochs(args.run / "epochs.csv")
    assert log == [(3.0, 1), (1.0, 2), (2.0, 3)]
