"""Training runs that must not depend on the number of replicas they are on."""

import functools
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation, weightings

EPOCHS, BATCHES, BATCH_SIZE = 3, 10, 24
WEIGHTINGS = {
    "mgda": weightings.MGDA(),
    "mgda l2": weightings.MGDA("l2"),
    "mgda loss": weightings.MGDA("loss"),
    "mgda loss+": weightings.MGDA("loss+"),
    "uniform": weightings.Uniform(),
    "fixed": weightings.Fixed({"a": 0.1, "b": 0.2, "c": 0.3}),
    "fixed by schedule": weightings.Fixed(
        {
            "a": 0.1,
            "b": keras.optimizers.schedules.PolynomialDecay(0.0, 20, 1.0),
            "c": 0.3,
        }
    ),
    "aligned_mtl": weightings.AlignedMTL(),
    "cagrad": weightings.CAGrad(),
    "config": weightings.ConFIG(),
    "cosmos": weightings.COSMOS(),
    "cr_mogm": weightings.CRMOGM(),
    "db_mtl": weightings.DBMTL(),
    "dualproj": weightings.DualProj({"a": 1.0, "b": 0.5, "c": 0.0}),
    "dwa": weightings.DWA(period=4),
    "edm": weightings.EDM(),
    "fairgrad": weightings.FairGrad(),
    "famo": weightings.FAMO(),
    "geometric_mean": weightings.GeometricMean(),
    "gradnorm": weightings.GradNorm(),
    "gradvac": weightings.GradVac(seed=0),
    "imtl_g": weightings.IMTLG(),
    "imtl_l": weightings.IMTLL(),
    "nash_mtl": weightings.NashMTL(),
    "normalized": weightings.Normalized(weightings.UPGrad(), "loss"),
    "pbi": weightings.PBI(),
    "pcgrad": weightings.PCGrad(seed=0),
    "random": weightings.Random(seed=0),
    "stch": weightings.STCH(),
    "uncertainty": weightings.Uncertainty(),
    "upgrad": weightings.UPGrad(),
}
MODES = ("representation", "parameters")
# For what takes long: the others differ from these in their weighting only.
PLAIN_CASES = [
    (weighting, mode)
    for weighting in WEIGHTINGS
    if weighting.startswith("mgda") or weighting == "uniform"
    for mode in MODES
]
CASES = PLAIN_CASES + [
    (weighting, "representation")
    for weighting in WEIGHTINGS
    if (weighting, "representation") not in PLAIN_CASES
]
LOSSES = {
    "a": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "b": "mse",
    "c": "mae",
}


class Run(NamedTuple):
    """What a run ended with.

    Attributes:
        weights: `[k, ...]` of each of the model's own variables.
        task_weights: `{task: float}`, of the last step.
        history: `{name: [float]}`, for each epoch.
    """

    weights: list
    task_weights: dict
    history: dict


def data(size=BATCHES * BATCH_SIZE, seed=0):
    # Labels of mean 1, so that no bias ends near zero, where a relative error
    # says nothing.
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 8)).astype("float32")
    y = {"a": rng.integers(0, 3, size)}
    y |= {t: 1 + rng.normal(size=(size, 1)).astype("float32") for t in "bc"}
    return x, y


def network(*of_encoder):
    """Two heads share a layer, one reads the encoder around the marker.

    Args:
        *of_encoder: further layers for the encoder.
    """
    x = keras.Input((8,))
    h = layers.Dense(16, activation="tanh")(x)
    for layer in of_encoder:
        h = layer(h)
    z = layers.Dense(6, activation="tanh", kernel_regularizer="l2")(h)
    z = SharedRepresentation()(z)
    common = layers.Dense(5, activation="tanh")(z)
    around = layers.Concatenate()([common, h])
    # With names: before 3.12, Keras takes metrics by the names of layers only.
    outputs = {
        "b": layers.Dense(1, dtype="float32", name="b")(z),
        "a": layers.Dense(3, dtype="float32", name="a")(common),
        "c": layers.Dense(1, dtype="float32", name="c")(around),
    }
    return x, outputs


def sgd(learning_rate=0.1, momentum=0.9, **kwargs):
    """For `compiled`, which makes it under the strategy."""
    return functools.partial(
        keras.optimizers.SGD, learning_rate, momentum, **kwargs
    )


def compiled(
    strategy=None,
    of_encoder=(),
    make=MGDAModel,
    optimizer=sgd(),  # noqa: B008
    **compile_args,
):
    """A model of the network, built under the strategy, always the same.

    Args:
        strategy: `None` for one replica.
        of_encoder: functions that make further layers for the encoder.
        make: the class of the model.
        optimizer: makes the optimizer.
        **compile_args: more of them.
    """
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = make(*network(*(layer() for layer in of_encoder)))
        model.compile(optimizer(), **{"loss": LOSSES} | compile_args)
    return model


def of_case(case, strategy=None):
    """The run of one of `CASES`: 30 steps."""
    weighting, gradients = case
    model = compiled(
        strategy,
        weighting=WEIGHTINGS[weighting],
        gradients=gradients,
        metrics={"a": "accuracy"},
    )
    return fit(model)


of_case_on_one = functools.cache(of_case)


def traced_step(case, **compile_args):
    """The whole step for a batch of known size, as `jit_compile` runs it."""
    weighting, gradients = case
    model = compiled(
        of_encoder=(layers.BatchNormalization, lambda: layers.Dropout(0.3)),
        weighting=WEIGHTINGS[weighting],
        gradients=gradients,
        metrics={"a": "accuracy"},
        run_eagerly=True,
        **compile_args,
    )
    batch = keras.tree.map_structure(tf.constant, data(BATCH_SIZE))
    model.train_on_batch(*batch)  # makes all variables
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    return step, batch


def fit(model, **fit_args):
    """Trains on all `data`, in its order."""
    history = model.fit(
        *data(),
        **{
            "batch_size": BATCH_SIZE,
            "epochs": EPOCHS,
            "shuffle": False,
            "verbose": 0,
        }
        | fit_args,
    )
    return ended(model, history)


def ended(model, history):
    return Run(
        [variable.numpy() for variable in model.weights],
        model.task_weights,
        history.history,
    )


def from_json(result):
    """A run that came out of another process."""
    arrays = [np.float32(weight) for weight in result["weights"]]
    return Run(arrays, result["task_weights"], result["history"])


def assert_same(run, expected, tolerance=1e-5, first_epoch=0):
    """Weights relative to the largest of each variable, the others as such.

    Task weights beyond one are relative to themselves.

    Args:
        run: from `first_epoch` on, and maybe with fewer metrics.
        expected: from the start.
        tolerance: for all of them.
        first_epoch: of the run.
    """
    for a, b in zip(run.weights, expected.weights, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()
    for task, task_weight in expected.task_weights.items():
        apart = abs(run.task_weights[task] - task_weight)
        assert apart <= tolerance * max(1, abs(task_weight))
    for name, values in run.history.items():
        np.testing.assert_allclose(
            values, expected.history[name][first_epoch:], rtol=tolerance
        )


def on_each_replica(model):
    """`[r][k]`: the values of all variables, with those of the optimizer."""
    local = model.distribute_strategy.experimental_local_results
    by_variable = [
        [value.numpy() for value in local(variable.value)]
        for variable in [*model.weights, *model.optimizer.variables]
    ]
    return [list(of_one) for of_one in zip(*by_variable, strict=True)]
