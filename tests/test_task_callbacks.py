"""Callbacks that set task weights, and that make one number of all tasks."""

import keras
import numpy as np
import pytest

from keras_mgda import MGDAModel, SharedRepresentation, callbacks
from tests.support import networks
from tests.support.refusal import refused


def compiled(**options):
    model = MGDAModel(*networks.plain(SharedRepresentation))
    model.compile(
        keras.optimizers.SGD(0.1),
        loss=dict.fromkeys("ab", "mse"),
        run_eagerly=True,
        **options,
    )
    return model


def test_a_schedule_by_epochs_trains_as_the_weights_that_it_sets():
    weights = [
        {"a": 1.0, "b": 2.0},
        {"a": 0.5, "b": 2.0},
        {"a": 0.25, "b": 0.0},
    ]
    scheduled = compiled(weighting=weights[0])
    x, y = networks.data(scheduled)
    start = scheduled.get_weights()
    seen = []

    def schedule(epoch, task_weights):
        seen.append(task_weights)
        return weights[epoch]

    scheduled.fit(
        x,
        y,
        epochs=3,
        callbacks=[callbacks.TaskWeightScheduler(schedule)],
        shuffle=False,
        verbose=0,
    )
    assert seen == [weights[0], *weights[:2]]
    expected = compiled()
    expected.set_weights(start)
    for of_epoch in weights:
        expected.compile(
            keras.optimizers.SGD(0.1),
            loss=dict.fromkeys("ab", "mse"),
            weighting=of_epoch,
            run_eagerly=True,
        )
        expected.fit(x, y, shuffle=False, verbose=0)
    for a, b in zip(scheduled.weights, expected.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)


def test_only_fixed_weights_are_scheduled():
    model = compiled()
    schedule = callbacks.TaskWeightScheduler(lambda epoch, w: w)
    with refused("with fixed task weights. Received: MGDA"):
        model.fit(*networks.data(model), callbacks=[schedule], verbose=0)


def test_delta_m_is_logged_and_stops():
    model = compiled()
    x, y = networks.data(model)
    baselines = {"val_a_loss": 2.0, "val_b_loss": 0.5}
    logger = callbacks.LogDeltaM(baselines, lower_is_better=baselines)
    stop = keras.callbacks.EarlyStopping(
        monitor="delta_m", mode="max", min_delta=1e9, patience=2
    )
    logs = model.fit(
        x,
        y,
        validation_data=(x, y),
        epochs=9,
        callbacks=[logger, stop],
        verbose=0,
    ).history
    assert len(logs["loss"]) == 3  # none of them a better one
    a, b = np.array(logs["val_a_loss"]), np.array(logs["val_b_loss"])
    changes = 100 * np.array([(2.0 - a) / 2.0, (0.5 - b) / 0.5])
    np.testing.assert_allclose(logs["delta_m"], changes.mean(0), rtol=1e-6)
    np.testing.assert_allclose(logs["worst_delta"], changes.min(0), rtol=1e-6)


def test_names_that_are_not_logged_are_told():
    model = compiled()
    logger = callbacks.LogDeltaM({"a_accuracy": 0.9})
    with refused("must name what is in the logs.*'a_accuracy'"):
        model.fit(*networks.data(model), callbacks=[logger], verbose=0)
    with pytest.raises(ValueError, match="must be another number"):
        callbacks.LogDeltaM({"a_loss": 0.0})
