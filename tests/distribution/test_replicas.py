"""`MirroredStrategy` on logical CPUs.

One process can hold one number of replicas only: two here, four in a process
of its own.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from benchmarks import scaling
from keras_mgda import (
    GradientFork,
    MGDAModel,
    SharedRepresentation,
    weightings,
)
from tests.support import networks, processes, runs
from tests.support.dtype_policy import dtype_policy
from tests.support.refusal import refused

# One case of both modes always runs: `test_strategies.py`.
pytestmark = pytest.mark.slow

PLAIN = ("mgda", "representation")
each_mode = pytest.mark.parametrize("gradients", runs.MODES)


def batch_normalization(**kwargs):
    return lambda: layers.BatchNormalization(**kwargs)


def dropout():
    return layers.Dropout(0.3)


def weights(model):
    return [variable.numpy() for variable in model.weights]


def assert_replicas_agree(model):
    first, second = runs.on_each_replica(model)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_finite(model):
    assert all(np.isfinite(variable).all() for variable in weights(model))


def test_all_weightings_are_tried():
    known = {
        kind
        for kind in vars(weightings).values()
        if isinstance(kind, type)
        and issubclass(kind, weightings.Weighting)
        and not inspect.isabstract(kind)
    }
    assert {type(weighting) for weighting in runs.WEIGHTINGS.values()} == known


@pytest.mark.parametrize("case", runs.CASES, ids=" by ".join)
def test_two_replicas_train_as_one(strategy, case):
    run = runs.of_case(case, strategy)
    runs.assert_same(run, runs.of_case_on_one(case))


def test_four_replicas_train_as_one():
    numbers = [runs.CASES.index(case) for case in runs.PLAIN_CASES]
    found = processes.alone("mirrored_cases", 4, *numbers, seconds=600)
    for case, n in zip(runs.PLAIN_CASES, numbers, strict=True):
        run = runs.from_json(found.result[str(n)])
        runs.assert_same(run, runs.of_case_on_one(case))


@each_mode
@pytest.mark.parametrize(
    "structure",
    [
        structure
        for structure in networks.STRUCTURES
        if structure is not networks.gathered  # a row of each replica's own
    ],
)
def test_every_structure_steps_as_on_one(strategy, structure, gradients):
    stepped = []
    for scope in (tf.distribute.get_strategy().scope(), strategy.scope()):
        with scope:
            keras.utils.set_random_seed(0)
            model = networks.mgda_model(structure, gradients=gradients)
        model.fit(*networks.data(model, b=8), batch_size=8, verbose=0)
        stepped.append((weights(model), list(model.task_weights.values())))
    one, two = stepped
    for a, b in zip(two[0], one[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(two[1], one[1], atol=1e-5)


@each_mode
def test_batch_normalization_and_dropout_are_the_same_on_both(
    strategy, gradients
):
    """Moving statistics, too, which differ in stock Keras."""
    of_encoder = (batch_normalization(), dropout)
    model = runs.compiled(strategy, of_encoder, gradients=gradients)
    loss = runs.fit(model).history["loss"]
    assert loss[-1] < loss[0]
    assert_replicas_agree(model)
    assert_finite(model)


def test_moving_statistics_are_the_mean_over_replicas(strategy):
    """What a replica would have kept of its half of the batch."""
    x, y = runs.data(24)
    frozen = {
        "of_encoder": (batch_normalization(),),
        "optimizer": runs.sgd(0.0),
    }
    halves = []
    for part in (slice(0, 12), slice(12, 24)):
        model = runs.compiled(**frozen)
        model.fit(x[part], {t: v[part] for t, v in y.items()}, verbose=0)
        halves.append(weights(model))
    model = runs.compiled(strategy, **frozen)
    model.fit(x, y, batch_size=24, shuffle=False, verbose=0)
    for both, a, b in zip(weights(model), *halves, strict=True):
        np.testing.assert_allclose(both, (a + b) / 2, rtol=1e-5, atol=1e-7)


def test_synchronized_batch_normalization_trains_as_on_one(strategy):
    of_encoder = (batch_normalization(synchronized=True),)
    one, two = (
        runs.fit(runs.compiled(where, of_encoder)) for where in (None, strategy)
    )
    runs.assert_same(two, one)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("verify", "names"),
    [
        (True, ("conflicts", "corrections", "min_cosine")),
        ("step", ("harmed", "worst_change", "encoder_part")),
    ],
)
def test_two_replicas_see_what_one_does(strategy, verify, names, every):
    one, two = (
        runs.fit(
            runs.compiled(where, verify=verify, verify_every=every), epochs=2
        )
        for where in (None, strategy)
    )
    runs.assert_same(two._replace(history={}), one._replace(history={}))
    for name in names:
        np.testing.assert_allclose(
            two.history[name], one.history[name], rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("every", [1, 4])
def test_looking_back_leaves_replicas_as_they_are(strategy, every):
    """Seeds and statistics of each replica, with labels that are missing."""
    x, y = runs.data()
    y["b"][::3] = np.nan
    of_encoder = (layers.BatchNormalization, dropout)
    models = []
    for kwargs in ({}, {"verify": "step", "verify_every": every}):
        unlabelled = {"a": None, "b": "nan", "c": None}
        model = runs.compiled(
            strategy, of_encoder, unlabelled=unlabelled, **kwargs
        )
        history = model.fit(x, y, batch_size=24, shuffle=False, verbose=0)
        models.append(model)
    blind, looked = models
    assert np.isfinite(history.history["worst_change"]).all()
    for a, b in zip(blind.variables, looked.variables, strict=True):
        for mine, other in zip(
            strategy.experimental_local_results(a.value),
            strategy.experimental_local_results(b.value),
            strict=True,
        ):
            np.testing.assert_array_equal(mine.numpy(), other.numpy())


@pytest.mark.parametrize("verify", [True, "step"])
def test_synchronized_layer_is_looked_at_in_every_step_or_none(
    strategy, verify
):
    of_encoder = (batch_normalization(synchronized=True),)
    runs.fit(runs.compiled(strategy, of_encoder, verify=verify), epochs=1)
    model = runs.compiled(strategy, of_encoder, verify=verify, verify_every=2)
    with refused("must not sum over replicas.*verify_every=1"):
        runs.fit(model, epochs=1)


@each_mode
def test_overflow_on_the_second_replica_skips_the_step_on_both(
    strategy, gradients
):
    """Stock Keras asks the first replica only."""
    x, y = runs.data(48)
    y["b"][23] = 1e30
    batches = [
        (x[part], {t: v[part] for t, v in y.items()})
        for part in (slice(0, 24), slice(24, 48))
    ]
    with dtype_policy("mixed_float16"):
        model = runs.compiled(strategy, gradients=gradients)
    before = weights(model)
    model.fit(*batches[0], batch_size=24, shuffle=False, verbose=0)
    for a, b in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.optimizer.dynamic_scale.numpy() == 2.0**14

    model.fit(*batches[1], batch_size=24, verbose=0)
    assert all(np.isfinite(list(model.task_weights.values())))
    assert (weights(model)[0] != before[0]).any()
    assert_finite(model)
    assert_replicas_agree(model)


@pytest.mark.parametrize(
    ("size", "gradients"),
    [
        (7, "representation"),
        (25, "parameters"),
        (7, "parameters"),
        (25, "representation"),
        (33, "representation"),
    ],
)
def test_batches_that_replicas_cannot_share_evenly(strategy, size, gradients):
    """The mean of each part counts the same, as in stock Keras.

    With 7 the first batch is uneven, on which stock Keras fails. With 25 the
    last one has one example and leaves the second replica without.
    """
    x, y = runs.data(size)
    in_last = size % 24
    first = (in_last + 1) // 2
    second = in_last - first
    counts = np.ones(size, "float32")
    counts[size - in_last :] = in_last / 2 / max(second, 1)
    counts[size - in_last : size - second] = in_last / 2 / first

    model = runs.compiled(strategy, gradients=gradients)
    model.fit(x, y, batch_size=24, shuffle=False, verbose=0)
    weighted = runs.compiled(gradients=gradients)
    weighted.fit(x, y, 24, sample_weight=counts, shuffle=False, verbose=0)
    for a, b in zip(weights(model), weights(weighted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert_replicas_agree(model)


def test_batch_statistics_of_no_examples_are_refused(strategy):
    """In stock Keras all weights become NaN."""
    x, y = runs.data(25)
    model = runs.compiled(strategy, (batch_normalization(),))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="every replica must have examples"
    ):
        model.fit(x, y, batch_size=24, epochs=2, verbose=0)
    assert_finite(model)


def test_evaluation_and_prediction(strategy):
    x, y = runs.data(97)
    one, two = (
        runs.compiled(where, metrics={"a": "accuracy"})
        for where in (None, strategy)
    )
    expected, found = (
        model.evaluate(x, y, batch_size=24, verbose=0, return_dict=True)
        for model in (one, two)
    )
    # The losses of single tasks are means over batches, in stock Keras, too.
    for name in ("loss", "a_accuracy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    outputs = two.predict(x, batch_size=24, verbose=0)
    for task, output in one.predict(x, batch_size=24, verbose=0).items():
        np.testing.assert_allclose(outputs[task], output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("saved", ["on one", "on two"])
@pytest.mark.parametrize("loaded", ["on one", "on two"])
def test_saved_and_loaded_as_if_not_interrupted(
    strategy, tmp_path, saved, loaded
):
    where = {"on one": tf.distribute.get_strategy(), "on two": strategy}
    model = runs.compiled(where[saved])
    runs.fit(model, epochs=1)
    model.save(tmp_path / "model.keras")
    with where[loaded].scope():
        model = keras.saving.load_model(tmp_path / "model.keras")
    runs.assert_same(
        runs.fit(model, epochs=runs.EPOCHS - 1),
        runs.of_case_on_one(PLAIN),
        first_epoch=1,
    )


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == 1.5 * runs.BATCHES:
            raise KeyboardInterrupt


def test_interrupted_and_resumed(strategy, tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path)

    with pytest.raises(KeyboardInterrupt):
        runs.fit(runs.compiled(strategy), callbacks=[backup(), Interrupt()])
    run = runs.fit(runs.compiled(strategy), callbacks=backup())
    runs.assert_same(run, runs.of_case_on_one(PLAIN), first_epoch=1)


def test_eager_step(strategy):
    run, expected = (
        runs.fit(runs.compiled(strategy, run_eagerly=eager), epochs=1)
        for eager in (True, False)
    )
    runs.assert_same(run, expected)


def test_subclassed_model(strategy):
    with strategy.scope():
        model = networks.EncoderAndHeads()
        model.compile("adam", {"a": "mse", "b": "mse"})
    x, y = runs.data(23)
    model.fit(x, {"a": y["b"], "b": y["c"]}, batch_size=23, verbose=0)
    assert_replicas_agree(model)


def test_loss_function_that_returns_a_scalar(strategy):
    """Stock Keras adds these up over the replicas."""
    losses = runs.LOSSES | {"b": lambda y, z: keras.ops.mean((y - z) ** 2)}
    run = runs.fit(runs.compiled(strategy, loss=losses))
    runs.assert_same(run, runs.of_case_on_one(PLAIN))


def forked_model(strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        x = keras.Input((8,))
        z = layers.Dense(6, activation="tanh")(x)
        copies = GradientFork(3)(z)
        outputs = {
            task: layers.Dense(3 if task == "a" else 1)(copy)
            for task, copy in zip("abc", copies, strict=True)
        }
        model = keras.Model(x, outputs)
        model.compile("sgd", runs.LOSSES)
    return model


def test_gradient_fork_trains_as_on_one(strategy):
    trained = []
    for where in (tf.distribute.get_strategy(), strategy):
        model = forked_model(where)
        model.fit(*runs.data(), batch_size=24, shuffle=False, verbose=0)
        trained.append(weights(model))
    for a, b in zip(*trained, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("m", "width"),
    [
        (2, 32),
        (5, 4),
    ],
)
def test_bytes_reduced_beyond_the_plain_sum(strategy, m, width):
    """MGDA-UB: those of the Gram matrix, whatever the model's size."""

    def reduced(make=MGDAModel, **compile_args):
        with strategy.scope():
            x = keras.Input((8,))
            z = SharedRepresentation()(layers.Dense(width)(x))
            outputs = {f"task{t}": layers.Dense(1)(z) for t in range(m)}
            model = make(x, outputs)
            model.compile("sgd", dict.fromkeys(outputs, "mse"), **compile_args)
        y = {task: np.ones((4, 1)) for task in outputs}
        return scaling.reduced_bytes(model, (np.ones((4, 8)), y))

    plain = reduced(keras.Model)
    of_encoder = 8 * width + width
    assert plain == 4 * (of_encoder + m * (width + 1))
    assert reduced() == plain + 4 * m**2
    with_losses = weightings.MGDA("loss+")
    assert reduced(weighting=with_losses) == plain + 4 * m**2 + 4 * m
    assert reduced(gradients="parameters") == plain + 4 * m * of_encoder
