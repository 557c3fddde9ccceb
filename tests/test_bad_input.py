"""Bad input is refused before anything is trained, with what to do instead."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation, weightings
from keras_mgda.weightings import MGDA, Fixed
from tests.support import networks
from tests.support.refusal import refused


def functional():
    return MGDAModel(*networks.plain(SharedRepresentation))


COMPILING = {
    "unknown weighting": ({"weighting": "mdga"}, "`weighting` must be.*'mdga'"),
    "no weighting": ({"weighting": None}, "`weighting` must be.*None"),
    "number for a weighting": ({"weighting": 2.0}, "`weighting` must be.*2.0"),
    "empty weighting": ({"weighting": []}, r"`weighting` must be.*\[\]"),
    "config of something else": (
        {"weighting": keras.saving.serialize_keras_object(layers.Dense(1))},
        "`weighting` must be",
    ),
    "too few task weights": ({"weighting": [1.0]}, "as many as the tasks"),
    "task weights of other tasks": (
        {"weighting": {"a": 1.0, "c": 1.0}},
        r"must name the tasks.*Add \['b'\]\. Remove \['c'\]",
    ),
    "task weights that lack one": (
        {"weighting": {"a": 1.0}},
        r"must name the tasks.*Add \['b'\]\.$",
    ),
    "negative task weight": ({"weighting": [1.0, -1.0]}, "not negative.*-1.0"),
    "task weight that is NaN": ({"weighting": [1.0, np.nan]}, "finite.*nan"),
    "task weight that is no number": (
        {"weighting": {"a": 1.0, "b": "high"}},
        "finite.*'high'",
    ),
    "unknown gradients": (
        {"gradients": "exact"},
        "`gradients` must be one of.*'exact'",
    ),
    "no loss": ({"loss": None}, "name at least one task"),
    "no task": ({"loss": {"a": None, "b": None}}, "at least one task"),
    "loss of an unknown output": (
        {"loss": {"a": "mse", "b": "mse", "c": "mse"}},
        "must name every output.*'c'",
    ),
    "output that no loss names": (
        {"loss": {"a": "mse"}},
        "must name every output.*'a'.*'b'.*loss `None`",
    ),
    "list of losses": (
        {"loss": ["mse", "mae"]},
        "`loss` must be a dict.*'mae'",
    ),
    "two losses of a task": (
        {"loss": {"a": ["mse", "mae"], "b": "mse"}},
        "must have one loss.*'mse', 'mae'.*'a'",
    ),
}


@pytest.mark.parametrize("case", COMPILING)
def test_compiling(case):
    arguments, match = COMPILING[case]
    with refused(match):
        functional().compile("sgd", **({"loss": "mse"} | arguments))


def test_compiling_what_has_no_outputs_yet():
    for loss in ("mse", None, ["mse", "mse"]):
        with refused("`loss` must be a dict.*Received: loss="):
            networks.EncoderAndHeads().compile("sgd", loss=loss)


def test_compiling_badly_leaves_what_was_compiled():
    model = functional()
    model.compile("sgd", loss="mse", weighting=[1.0, 2.0])
    for bad in ({"weighting": "mdga"}, {"gradients": "?"}, {"loss": {}}):
        with pytest.raises(ValueError, match="must"):
            model.compile(**({"optimizer": "adam", "loss": "mse"} | bad))
    model.train_on_batch(*networks.data(model))
    assert model.task_weights == {"a": 1.0, "b": 2.0}
    assert isinstance(model.optimizer, keras.optimizers.SGD)


@pytest.mark.parametrize("name", ["task_names", "task_weights"])
def test_asking_for_tasks_before_they_are_known(name):
    for model in (functional(), networks.EncoderAndHeads()):
        with refused("must know its tasks.*not compiled.*compile"):
            getattr(model, name)


@pytest.mark.parametrize("reduction", [None, "none"])
def test_loss_that_is_no_scalar(reduction):
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    model = functional()
    model.compile("sgd", loss={"a": "mse", "b": loss}, run_eagerly=True)
    before = model.get_weights()
    match = r"must be a scalar.*'b' has shape \(6,\).*reduction="
    with refused(match):
        model.train_on_batch(*networks.data(model))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    with refused(match):
        model.evaluate(*networks.data(model), verbose=0)


WEIGHTING = {
    "unknown normalization": (
        lambda: MGDA("l1"),
        "`normalization` must be one of.*'l1'",
    ),
    "no total": (lambda: MGDA(total=0), "`total` must be.*0"),
    "negative total": (lambda: MGDA(total=-1.0), "`total` must be.*-1.0"),
    "total that is infinite": (lambda: MGDA(total=np.inf), "`total` .*inf"),
    "total that is NaN": (lambda: MGDA(total=np.nan), "`total` .*nan"),
    "total of something else": (lambda: MGDA(total="m"), "`total` .*'m'"),
    "normalization without losses": (
        lambda: MGDA("loss")(np.eye(2)),
        "needs the task losses.*None",
    ),
    "fixed weights for other tasks": (
        lambda: Fixed([1.0, 2.0])(np.eye(3)),
        r"fit the Gram matrix.*\[1.0, 2.0\] for shape \(3, 3\)",
    ),
    "named weights before the names are known": (
        lambda: Fixed({"a": 1.0})(np.eye(1)),
        "fit the Gram matrix.*build",
    ),
    "fixed weight that is no number": (
        lambda: Fixed([1.0, "high"]),
        "finite and not negative.*'high'",
    ),
    "what is no weighting": (lambda: weightings.get(3), "must be one of.*3"),
}


@pytest.mark.parametrize("case", WEIGHTING)
def test_weighting(case):
    act, match = WEIGHTING[case]
    with refused(match):
        act()
