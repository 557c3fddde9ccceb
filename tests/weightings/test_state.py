"""Where weightings run, what they remember, and what files carry of it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from benchmarks.gram_matrices import gram_of, jacobian, random
from keras_mgda import GradientFork, MGDAModel, SharedRepresentation, weightings
from keras_mgda.weightings import (
    CRMOGM,
    FAMO,
    MGDA,
    Fixed,
    GeometricMean,
    GradNorm,
    PCGrad,
    UPGrad,
)
from tests.support.weighting_cases import IDENTIFIERS, STATEFUL, TASKS, state

each = pytest.mark.parametrize("identifier", IDENTIFIERS)
each_stateful = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=()
            if name in ("cr_mogm of famo", "gradvac")
            else pytest.mark.slow,
        )
        for name in STATEFUL
    ],
)


def grams(steps=4, m=3):
    rng = np.random.default_rng(0)
    for seed in range(steps):
        gram = gram_of(jacobian(random, m, 2, seed))
        yield (
            tf.constant(gram),
            tf.constant(rng.uniform(0.5, 2, m).astype("float32")),
        )


def sequence(weigh):
    return [weigh(gram, losses).numpy() for gram, losses in grams()]


# Where they run.


@each
@pytest.mark.parametrize(
    "jit_compile", [pytest.param(False, marks=pytest.mark.slow), True]
)
@pytest.mark.sample(4)
def test_graphs_agree_with_eager_code_and_trace_once(identifier, jit_compile):
    seeded = weightings.get(identifier).get_config()
    make = type(weightings.get(identifier)).from_config
    expected = sequence(make(seeded))
    weighting = make(seeded)
    compiled = tf.function(weighting, jit_compile=jit_compile)
    weighting.build(TASKS)
    np.testing.assert_allclose(
        sequence(compiled), expected, rtol=1e-5, atol=1e-6
    )
    assert compiled.experimental_get_tracing_count() == 1


@each
@pytest.mark.parametrize(
    "dtype",
    [
        "float16",
        pytest.param("bfloat16", marks=pytest.mark.slow),
        pytest.param("float64", marks=pytest.mark.slow),
    ],
)
@pytest.mark.sample(4)
def test_other_float_types(identifier, dtype):
    seeded = weightings.get(identifier).get_config()
    make = type(weightings.get(identifier)).from_config
    gram, losses = next(grams())
    gram, losses = tf.cast(gram / 100, dtype), tf.cast(losses, dtype)
    task_weights = make(seeded)(gram, losses)
    assert task_weights.dtype == tf.float32
    expected = make(seeded)(
        tf.cast(gram, "float32"), tf.cast(losses, "float32")
    )
    np.testing.assert_allclose(task_weights, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "weighting",
    [
        *map(weightings.get, IDENTIFIERS),
        MGDA("l2", 2.5),
        MGDA("loss+", total="tasks"),
        Fixed({"a": np.float32(1.5), "b": 0.0, "c": 2.0}),
        Fixed([1, 2.5, np.float64(0.5)]),
        CRMOGM(FAMO()),
    ],
    ids=lambda weighting: f"{type(weighting).__name__}",
)
@pytest.mark.sample(10)
def test_config_survives_json(weighting):
    config = keras.saving.serialize_keras_object(weighting)
    own = type(weighting).from_config(weighting.get_config())
    again = weightings.get(json.loads(json.dumps(config)))
    for each in (weighting, own, again):
        each.build(TASKS)
    expected = sequence(weighting)
    for same in (own, again):
        assert type(same) is type(weighting)
        assert same.get_config() == weighting.get_config()
        assert same.uses_gram == weighting.uses_gram
        assert same.uses_losses == weighting.uses_losses
        np.testing.assert_array_equal(sequence(same), expected)


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.sample(3)
def test_nan_in_nan_out(identifier, bad):
    weighting = weightings.get(identifier)
    for m in (1, 2, 3):
        gram, losses = (np.array(x) for x in next(grams(m=m)))
        if weighting.uses_gram:
            broken = gram.copy()
            broken[0, -1] = broken[-1, 0] = bad
            assert np.isnan(weightings.get(identifier)(broken, losses)).all()
        if weighting.uses_losses:
            losses[-1] = bad
            assert np.isnan(weightings.get(identifier)(gram, losses)).all()
        if not weighting.uses_gram and not weighting.uses_losses:
            broken = np.full_like(gram, bad)
            assert np.isfinite(weightings.get(identifier)(broken)).all()


@each
def test_gradients_do_not_pass(identifier):
    J = tf.Variable(tf.random.normal([3, 4]))
    losses = tf.Variable([1.0, 2.0, 3.0])
    weighting = weightings.get(identifier)
    with tf.GradientTape() as tape:
        w = weighting(J @ tf.transpose(J), losses + 0.0)
    assert tape.gradient(w, [J, losses]) == [None, None]


# What they remember.


def network(make=MGDAModel):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    z = layers.Dense(5, activation="tanh")(inputs)
    z = SharedRepresentation()(z) if make is MGDAModel else z
    return make(inputs, {task: layers.Dense(1)(z) for task in TASKS})


def data(steps=10):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8 * steps, 4)).astype("float32")
    y = {t: rng.normal(size=(8 * steps, 1)).astype("float32") for t in TASKS}
    return x, y


def compiled(weighting, **options):
    keras.utils.set_random_seed(0)
    model = network()
    loss = dict.fromkeys(TASKS, "mse")
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    # Graphs take longer to trace than these steps take.
    how = {"run_eagerly": True} if "jit_compile" not in options else {}
    model.compile(optimizer, loss, weighting=weighting, **how | options)
    return model


def fit(model, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    model.fit(*data(), **options)
    return model


def assert_same(model, other):
    for one, two in (
        (model.get_weights(), other.get_weights()),
        (state(model), state(other)),
        (list(model.task_weights.values()), list(other.task_weights.values())),
    ):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_backup_goes_on_where_training_was_interrupted(tmp_path):
    class Interruption(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(FAMO()), epochs=3, callbacks=[backup, Interruption()])
    resumed = fit(compiled(FAMO()), epochs=3, callbacks=[backup])
    assert_same(resumed, fit(compiled(FAMO()), epochs=3))


@each_stateful
def test_weight_files_go_to_and_from_a_plain_model(name, tmp_path):
    model, plain = fit(compiled(STATEFUL[name]())), network(keras.Model)
    model.save_weights(tmp_path / "ours.weights.h5")
    plain.load_weights(tmp_path / "ours.weights.h5")
    for a, b in zip(plain.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

    plain.set_weights([w + 1 for w in plain.get_weights()])
    plain.save_weights(tmp_path / "plain.weights.h5")
    before = state(model)
    model.load_weights(tmp_path / "plain.weights.h5")
    for a, b in zip(plain.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_of_another_weighting_is_refused(tmp_path):
    fit(compiled(FAMO())).save_weights(tmp_path / "famo.weights.h5")
    model = compiled(GradNorm())
    with pytest.raises(ValueError, match=r"the same weighting.*Received: \{"):
        model.load_weights(tmp_path / "famo.weights.h5")
    model.load_weights(tmp_path / "famo.weights.h5", skip_mismatch=True)
    fit(compiled(UPGrad())).load_weights(tmp_path / "famo.weights.h5")


@each_stateful
@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"jit_compile": True}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.sample(2)
def test_a_step_that_is_not_finite_is_not_remembered(name, options):
    model = compiled(STATEFUL[name](), **options)
    x, y = data(1)
    for _ in range(4):
        model.train_on_batch(x, y)
    before = state(model)
    assert all(np.isfinite(values).all() for values in before)
    model.train_on_batch(x, {**y, "b": np.full_like(y["b"], np.nan)})
    if name in ("random", "fixed by schedule"):
        return  # which looks at nothing
    assert np.isnan(list(model.task_weights.values())).all()
    for a, b in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make", [FAMO, GradNorm, lambda: CRMOGM(GeometricMean())]
)
def test_what_finite_losses_make_not_finite_is_not_remembered(make):
    """A negative loss, of which there is no logarithm, and no power."""
    weighting = make()
    for losses in ([1.0, 2.0], [2.0, 1.0]):
        weighting(np.eye(2), losses)
    before = [v.numpy() for v in weighting.state.variables]
    in_graph = tf.function(lambda losses: weighting(tf.eye(2), losses))
    assert np.isnan(in_graph(tf.constant([1.0, -1.0]))).all()
    with pytest.raises(ValueError, match=r"must have (positive )?task losses"):
        weighting(np.eye(2), [1.0, -1.0])  # eager code can see them
    for a, b in zip(weighting.state.variables, before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(weighting(np.eye(2), [1.0, 1.0])).all()


@each_stateful
def test_models_do_not_share_what_they_remember(name):
    weighting = STATEFUL[name]()
    first, second = compiled(weighting), compiled(weighting)
    untouched = state(second)
    fit(first)
    for a, b in zip(state(second), untouched, strict=True):
        np.testing.assert_array_equal(a, b)
    first.compile("sgd", dict.fromkeys(TASKS, "mse"), weighting=weighting)
    for a, b in zip(state(first), untouched, strict=True):
        np.testing.assert_array_equal(a, b)


@each_stateful
def test_a_clone_starts_anew(name):
    model = fit(compiled(STATEFUL[name]()))
    clone = keras.models.clone_model(model)
    fresh = compiled(STATEFUL[name]())
    for a, b in zip(state(clone), state(fresh), strict=True):
        np.testing.assert_array_equal(a, b)


@each_stateful
def test_layers_and_variables_are_those_of_the_plain_model(name):
    model, plain = compiled(STATEFUL[name]()), network(keras.Model)
    assert len(model.get_weights()) == len(plain.get_weights())
    assert len(model.layers) == len(plain.layers) + 1  # the marker


@each_stateful
def test_fork_refuses_state(name):
    with pytest.raises(ValueError, match="keeps no state"):
        GradientFork(3, STATEFUL[name]())


def test_a_state_is_for_its_number_of_tasks():
    weighting = PCGrad()
    weighting(np.eye(3))
    with pytest.raises(ValueError, match=r"the 3 tasks .* Received: shape"):
        weighting(np.eye(2))
