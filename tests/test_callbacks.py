import csv

import keras
import numpy as np
import pytest

from keras_mgda import MGDAModel, SharedRepresentation
from keras_mgda.callbacks import LogTaskWeights
from tests.support.networks import plain


def model(**compile_args):
    keras.utils.set_random_seed(0)
    built = MGDAModel(*plain(SharedRepresentation))
    built.compile("sgd", {"a": "mse", "b": "mae"}, **compile_args)
    return built


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 8)).astype("float32")
    return x, {task: rng.normal(size=(24, 1)) for task in "ab"}


class EachBatch(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.task_weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.task_weights.append(self.model.task_weights)


@pytest.mark.parametrize("executions", [6, 3], ids=["steps", "executions"])
def test_history_and_later_callbacks_see_the_means(tmp_path, executions):
    path, each = tmp_path / "log.csv", EachBatch()
    history = (
        model(
            steps_per_execution=6 // executions,
            run_eagerly=executions == 6,
        )
        .fit(
            *data(),
            batch_size=4,
            epochs=2,
            verbose=0,
            validation_data=data(),
            callbacks=[LogTaskWeights(), keras.callbacks.CSVLogger(path), each],
        )
        .history
    )
    assert len(each.task_weights) == 2 * executions
    rows = list(csv.DictReader(path.open()))
    for epoch, row in enumerate(rows):
        batches = each.task_weights[epoch * executions :][:executions]
        for task in "ab":
            mean = np.mean([of_batch[task] for of_batch in batches])
            assert history[f"{task}_weight"][epoch] == pytest.approx(mean)
            assert float(row[f"{task}_weight"]) == pytest.approx(mean)
    assert not any(name.startswith("val_a_w") for name in history)


def test_a_step_that_is_not_finite_is_seen():
    x, y = data()
    y["a"][5] = np.nan
    history = model(run_eagerly=True).fit(
        x, y, batch_size=4, verbose=0, callbacks=[LogTaskWeights()]
    )
    assert np.isnan(history.history["a_weight"]).all()


def test_another_model_is_refused():
    plain_model = keras.Model(*plain(keras.layers.Identity))
    plain_model.compile("sgd", {"a": "mse", "b": "mae"})
    with pytest.raises(ValueError, match=r"of an `MGDAModel`.*Received: Func"):
        plain_model.fit(*data(), verbose=0, callbacks=[LogTaskWeights()])


def test_a_metric_is_not_overwritten():
    taken = keras.metrics.MeanAbsoluteError(name="weight")
    with pytest.raises(ValueError, match=r"Received: .*\['a_weight'\]"):
        model(metrics={"a": taken}).fit(
            *data(), verbose=0, callbacks=[LogTaskWeights()]
        )
