import functools
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda import weightings
from keras_mgda.comparison import InProcess, compare, settings
from keras_mgda.comparison.statistics import optional
from keras_mgda.recipe import Recipe
from tests.support import comparison_job
from tests.support.comparison_job import arguments, split
from tests.support.refusal import refused

x, y = split(0)


def data_set(seed):
    return tf.data.Dataset.from_tensor_slices(split(seed)).batch(16)


class NaNMetric(keras.metrics.MeanAbsoluteError):
    def result(self):
        return super().result() * float("nan")


class Within(keras.metrics.Metric):
    """Of which `get_config` tells nothing, as is common."""

    def __init__(self, limit=0.1, name="within", **kwargs):
        super().__init__(name=name, **kwargs)
        self.limit = limit
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y, p, sample_weight=None):
        near = keras.ops.abs(y - p) < self.limit
        self.total.assign(keras.ops.mean(keras.ops.cast(near, "float32")))

    def result(self):
        return self.total


def mean_error(y, p):
    return keras.ops.abs(y - p)


def nan_at_the_end():
    labels = {task: values.copy() for task, values in split(2)[1].items()}
    labels["a"][-1] = np.nan
    return split(2)[0], labels


@functools.cache
def same_model():
    return comparison_job.build()


def list_of_outputs():
    model = comparison_job.build()
    return keras.Model(model.input, list(model.output.values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": None}, "Three splits must be given"),
        ({"train": (x, y), "test": None}, "Three splits must be given"),
        (
            dict.fromkeys(("validation", "test"), (x, y)),
            "the same data as `validation` and `test`",
        ),
        (
            {"test": (np.concatenate([x[:5], x[:5] + 9]), y)},
            "5 different inputs that are in `train` and in `test`",
        ),
        ({"test": (x.astype("float64"), y)}, "No example must be in two"),
        ({"train": (x, y["a"])}, "`train` must be"),
        ({"metrics": {"a": "mse"}}, "`metrics` must name the tasks"),
        ({"select": {}}, "`select` must name the tasks"),
        (
            {"select": {"a": "mse", "b": ("mae", "min")}},
            "`select` must give each task",
        ),
        (
            {"select": {"a": ("mse", "lower"), "b": ("mae", "min")}},
            "`select` must give each task",
        ),
        (
            {"select": {"a": ("auc", "max"), "b": ("mae", "min")}},
            "`select` must name a metric of the task.*'auc' for 'a'.*a_mse",
        ),
        (
            {
                "metrics": {"a": NaNMetric(name="mae"), "b": "mae"},
                "select": {"a": ("mae", "min"), "b": ("mae", "min")},
            },
            "must be finite on the validation split.*a nan",
        ),
        (
            {"test": nan_at_the_end()},
            "must be finite on the test split.*a nan",
        ),
        (
            {"metrics": {"a": Within(9.0), "b": "mae"}},
            r"Within, whose `get_config` lacks \['limit'\].*partial",
        ),
        (
            {
                "metrics": {
                    "a": keras.metrics.MeanMetricWrapper(mean_error),
                    "b": "mae",
                }
            },
            "made again from its own config",
        ),
        (
            {"select": {"a": ("loss", "min"), "b": ("mae", "min")}},
            "`select` must name a metric",
        ),
        (
            {"compile_options": {"loss_weights": [1.0, 2.0]}},
            "`loss_weights` must be a dict",
        ),
        ({"reference": {"a": 1.0, "b": 0.0}}, "other than zero"),
        ({"learning_rates": []}, "different positive numbers"),
        ({"learning_rates": [0.1, 0.1]}, "different positive numbers"),
        ({"learning_rates": [float("nan")]}, "different positive numbers"),
        ({"learning_rates": 0.1}, r"Take `\[0.1\]`"),
        ({"seeds": []}, "different whole numbers"),
        ({"seeds": 3}, r"Take `range\(3\)`"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"epochs": 0}, "`epochs` must be a whole number"),
        ({"patience": 0}, "`patience` must be a whole number"),
        ({"batch_size": 1.5}, "`batch_size` must be a whole number"),
        ({"optimizer": "adam"}, "`optimizer` must be a function"),
        ({"methods": ["MGDA-UB", "mgda-ub "]}, "a name of its own"),
        ({"methods": ["plain sum", "plain sum"]}, "a name of its own"),
        ({"methods": {"reference": {}}}, "a name of its own"),
        ({"methods": ["mine"]}, "without compile options"),
        ({"methods": {"mine": 3}}, "must be a dict of compile options"),
        ({"methods": {"mine": []}}, "must be a dict of compile options"),
        (
            {"methods": {"plain sum": {"weighting": "mgda"}}},
            "must be what its name says",
        ),
        (
            {"methods": {"mine": {"weights": "mgda"}}},
            "dict of options of `compile`",
        ),
        (
            {"methods": {"mine": {"optimizer": "sgd"}}},
            "dict of options of `compile`",
        ),
        ({"compile_options": {"jit": True}}, "`compile_options` must be"),
        (
            {"methods": {"mine": {"weighting": "nashmtl"}}},
            "`weighting` must be one of",
        ),
        (
            {"methods": {"mine": {"weighting": {"c": 1.0}}}},
            "(?i)task",
        ),
        ({"build": same_model}, "`build` must return a new model"),
        ({"build": lambda: 3}, "`build` must return a Keras model"),
        ({"build": list_of_outputs}, "dict"),
        ({"executor": "dask"}, "`executor` must be"),
        ({"executor": 0}, "number of processes"),
        (
            {"build": lambda: None, "executor": None},
            "`build` must be picklable.*InProcess",
        ),
        ({"train": data_set(0), "executor": 2}, "`train` must be picklable"),
    ],
)
def test_bad_input(changes, message, tmp_path):
    path = tmp_path / "runs.jsonl"
    given = {"executor": InProcess(), "train": (x, y)}
    with refused(message):
        compare(**arguments(path, **given | changes))
    assert not path.exists() or not path.read_bytes()


def test_what_makes_a_metric_is_called_for_each_training():
    """The way out that the refusal names."""
    given = settings.portable({"a": functools.partial(Within, limit=9.0)})
    assert settings.new(given)["a"].limit == 9.0


@pytest.mark.parametrize("name", weightings.names())
def test_every_weighting_is_made_again(name):
    weighting = weightings.get(
        {"a": 1.0, "b": 2.0} if name == "fixed" else name
    )
    again = Recipe.of(weighting).make()
    assert again.get_config() == weighting.get_config()


def test_missing_packages_say_which_extra(monkeypatch, tmp_path):
    optional.cache_clear()
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r"keras_mgda\[compare\]"):
        compare(**arguments(tmp_path / "runs.jsonl"))
    optional.cache_clear()


def test_a_metric_that_keras_numbers_has_one_name():
    given = {
        "class": keras.metrics.AUC,
        "partial": functools.partial(keras.metrics.AUC, num_thresholds=20),
        "named": keras.metrics.MeanSquaredError,
    }
    for _ in range(2):
        made = settings.new(given)
        assert [metric.name for metric in made.values()] == [
            "auc",
            "auc",
            "mean_squared_error",
        ]
        assert made["partial"].num_thresholds == 20
