"""What a step did to the losses of all tasks, against losses made by hand.

By hand is `stateless_call`, from the values before a step and after it, with
the seeds and statistics that the step started from.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from keras_mgda.internals import global_seed_state
from keras_mgda.training.taken_step import ROUNDING, changes
from tests.support import networks, oracle
from tests.support.dtype_policy import dtype_policy
from tests.support.refusal import refused

FOUND = ("harmed", "worst_change", "encoder_part")
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
# Steps that are long enough to do harm.
OPTIMIZERS = {
    "sgd": lambda: SGD(0.3),
    "momentum": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: Adam(0.05),
    "adamw": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.5),
    "clipped": lambda: Adam(0.05, clipvalue=1e-3),
    "clipped by norm": lambda: SGD(0.5, global_clipnorm=0.1),
    "averaged": lambda: Adam(0.05, use_ema=True, ema_overwrite_frequency=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(Adam(0.05)),
    "lion": lambda: keras.optimizers.Lion(0.05),
}


class Noise(layers.Layer):
    """Draws from where nobody gave a seed."""

    def call(self, x, training=False):
        return x + 0.3 * keras.random.normal(keras.ops.shape(x))


def with_all_state(mark):
    """Masks, statistics, a loss of no task, in encoder and heads."""
    x = keras.Input((8,))
    h = layers.Dense(6, activation="tanh", activity_regularizer="l2")(x)
    h = layers.Dropout(0.4)(layers.BatchNormalization()(h))
    z = mark()(Noise()(networks.dense(5, kernel_regularizer="l2")(h)))
    return x, {
        task: layers.Dense(1)(layers.Dropout(0.3)(z)) for task in ("b", "a")
    }


def values(model):
    return [v.numpy() for v in model.trainable_variables]


def state(model):
    """All that is not trained: statistics, seeds."""
    return [v.numpy() for v in model.non_trainable_variables]


def mean_squares(y_true, y_pred):
    return float(np.mean((np.float32(y_pred) - y_true) ** 2, dtype="float64"))


def by_hand(model, trained, untrained, x, y, loss=mean_squares):
    """`[m]`, in the order of `model.task_names`."""
    y_pred, _ = model.stateless_call(trained, untrained, x, training=True)
    pairs = zip(
        networks.leaves(networks.losses(model.output)),
        networks.leaves(y),
        networks.leaves(y_pred),
        strict=True,
    )
    return np.array([loss(t, np.array(p)) for of, t, p in pairs if of])


def assert_found(logs, before, after, of_encoder=None, tolerance=3e-6):
    change = (after - before) / before
    worst = change.argmax()
    assert logs["worst_change"] == pytest.approx(change[worst], abs=tolerance)
    clear = np.abs(change - ROUNDING) > tolerance
    harmed = (change > ROUNDING)[clear].sum()
    assert harmed <= logs["harmed"] <= harmed + (~clear).sum()
    if of_encoder is not None:
        part = ((of_encoder - before) / before)[worst]
        assert logs["encoder_part"] == pytest.approx(part, abs=tolerance)


@networks.each_structure(
    always=(
        networks.masked,
        networks.chained,
        networks.partly_shared_branches,
        networks.nested_outputs,
        networks.bypass_with_variables,
        networks.with_output_that_is_no_task,
    )
)
@pytest.mark.parametrize("learning_rate", [1e-2, 1.0])
@pytest.mark.sample(5)
def test_losses_are_those_of_stateless_calls(structure, learning_rate):
    model = networks.mgda_model(
        structure,
        SGD(learning_rate),
        verify="step",
        gradients="parameters",
        run_eagerly=True,
    )
    x, y = networks.data(model, b=6)
    exact = oracle.task_gradients(model, structure, x, y)
    readers = oracle.reaching(exact.full)
    old, untrained = values(model), state(model)
    logs = model.train_on_batch(x, y, return_dict=True)
    new = values(model)
    encoder = [
        b if len(tasks) > 1 else a
        for a, b, tasks in zip(old, new, readers, strict=True)
    ]
    assert_found(
        logs,
        *(
            by_hand(model, trained, untrained, x, y)
            for trained in (old, new, encoder)
        ),
    )


def trained(optimizer=SGD, structure=with_all_state, jit=False, **kwargs):
    """A model, and its logs of each of three steps of one batch."""
    keras.utils.set_random_seed(1)
    model = networks.mgda_model(
        structure, optimizer(), jit_compile=jit, **kwargs
    )
    x, y = networks.data(model, b=16)
    logs = []
    model.fit(
        x,
        y,
        batch_size=16,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, of_epoch: logs.append(dict(of_epoch))
        ),
    )
    return model, logs


def assert_untouched(looked, blind):
    """All variables, and all logs but those of `verify`."""
    for mine, plain in zip(looked[1], blind[1], strict=True):
        assert {k: v for k, v in mine.items() if k not in FOUND} == plain
    pairs = zip(
        [*looked[0].variables, *looked[0].optimizer.variables],
        [*blind[0].variables, *blind[0].optimizer.variables],
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(
            make,
            id=name,
            marks=() if name in ("adamw", "averaged") else pytest.mark.slow,
        )
        for name, make in OPTIMIZERS.items()
    ],
)
def test_every_optimizer_is_looked_at_and_left_alone(optimizer):
    looked, blind = (
        trained(optimizer, run_eagerly=True, verify=verify)
        for verify in ("step", False)
    )
    assert_untouched(looked, blind)
    keras.utils.set_random_seed(1)
    model = networks.mgda_model(with_all_state, optimizer(), run_eagerly=True)
    x, y = networks.data(model, b=16)
    for logs in looked[1]:
        old, untrained = values(model), state(model)
        drawn = global_seed_state().numpy()
        model.train_on_batch(x, y)
        new, after = values(model), global_seed_state().numpy()
        found = []
        for of_variables in (old, new):
            global_seed_state().assign(drawn)
            found.append(by_hand(model, of_variables, untrained, x, y))
        global_seed_state().assign(after)
        assert_found(logs, *found, tolerance=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"unlabelled": "nan", "verify_every": 2},
        *(
            pytest.param(kwargs, marks=pytest.mark.slow)
            for kwargs in (
                {"weighting": "uniform"},
                {"gradients": "verified"},
                {"update_every": 2},
                {"steps_per_execution": 2},
            )
        ),
    ],
    ids=str,
)
def test_training_is_the_same_bit_for_bit(kwargs):
    looked = trained(verify="step", **kwargs)
    blind = {k: v for k, v in kwargs.items() if k != "verify_every"}
    assert_untouched(looked, trained(**blind))
    assert np.isfinite(looked[1][0]["worst_change"])


@pytest.mark.slow
def test_xla_compiles_the_look():
    looked, blind = (
        trained(jit=True, verify=verify) for verify in ("step", False)
    )
    assert_untouched(looked, blind)
    # Without dropout, whose masks are others under XLA.
    compiled, plain = (
        trained(structure=networks.three_tasks, jit=jit, verify="step")[1]
        for jit in (True, False)
    )
    for mine, other in zip(compiled, plain, strict=True):
        for name in FOUND:
            assert mine[name] == pytest.approx(other[name], abs=1e-4)


@pytest.mark.parametrize(
    "jit", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_rounding_is_no_harm(jit):
    """Compiled differently, as XLA does, in particular."""
    _, logs = trained(lambda: SGD(0.0), jit=jit, verify="step")
    assert [of_step["harmed"] for of_step in logs] == [0.0] * 3
    assert max(abs(of_step["worst_change"]) for of_step in logs) < ROUNDING


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_rounding_of_half_precision_is_no_harm(policy):
    """At a rate of 0 nothing moves, but fused operations round otherwise."""
    keras.utils.set_random_seed(0)
    with dtype_policy(policy):
        x = keras.Input((8,))
        z = layers.Dense(64, "gelu")(layers.Dense(64, "gelu")(x))
        z = SharedRepresentation()(z)
        model = MGDAModel(
            x, {t: layers.Dense(1, dtype="float32")(z) for t in "ab"}
        )
    model.compile(SGD(0.0), "mse", verify="step")
    x, y = networks.data(model, b=256)
    logs = model.fit(x, y, batch_size=16, verbose=0).history
    assert logs["harmed"] == [0.0]


def unlike(mark):
    """Two tasks that want one number to be two."""
    x = keras.Input((1,))
    z = mark()(layers.Dense(1, use_bias=False, kernel_initializer="ones")(x))
    frozen = {"kernel_initializer": "ones", "trainable": False}
    return x, {task: layers.Dense(1, **frozen)(z) for task in ("a", "b")}


def test_numbers_that_are_known():
    """`theta = 1`, `L_a = (theta - 0)^2`, `L_b = (theta - 3)^2`, sum, 0.25."""
    model = networks.mgda_model(
        unlike, SGD(0.25), weighting="uniform", verify="step"
    )
    ones = np.ones((4, 1), "float32")
    logs = model.train_on_batch(
        ones, {"a": 0 * ones, "b": 3 * ones}, return_dict=True
    )
    # The gradient is 2 - 4, so that theta becomes 1.5: 1 -> 2.25, 4 -> 2.25.
    assert logs["harmed"] == 1
    assert logs["worst_change"] == pytest.approx(1.25)
    assert logs["encoder_part"] == pytest.approx(1.25)


def test_a_head_that_moves_alone_is_not_the_encoders_part():
    model = networks.mgda_model(
        networks.frozen_encoder, SGD(5.0), verify="step"
    )
    x, y = networks.data(model, b=8)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["worst_change"] > 0.1
    assert logs["encoder_part"] == 0.0


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("before", "after", "labelled", "expected"),
    [
        ([1, 2], [1.5, 1], [1, 1], (1, 0.5)),
        ([-1, -2], [-1.5, -1], [1, 1], (1, 0.5)),
        ([1, 0], [0.5, 3], [1, 1], (1, 1.0)),
        ([1, 0], [0.5, 0], [1, 1], (0, 0.0)),
        ([1, 0], [0.5, 0], [1, 0], (0, -0.5)),
        ([1, 1], [1 + 1e-7, 1], [1, 1], (0, 1e-7)),
        ([1, 1], [NAN, 2], [1, 1], (2, NAN)),
        ([1, 1], [INF, 0], [1, 1], (1, INF)),
        ([INF, 1], [INF, 0], [1, 1], (1, NAN)),
        ([1, NAN], [0.5, NAN], [1, 0], (0, -0.5)),
    ],
)
def test_changes(before, after, labelled, expected):
    before, after = (np.array(v, "float64") for v in (before, after))
    harmed, worst, part = changes(
        tf.constant(before),
        tf.constant(after),
        tf.constant(after),
        tf.constant(np.array(labelled, bool)),
    )
    assert int(harmed) == expected[0]
    np.testing.assert_allclose([worst, part], [expected[1]] * 2, rtol=1e-6)


def test_a_task_without_labels_does_not_count():
    model = networks.mgda_model(
        networks.three_tasks,
        SGD(0.01),
        verify="step",
        unlabelled="nan",
        run_eagerly=True,
    )
    x, y = networks.data(model, b=6)
    y["b"][:] = np.nan
    y["c"][2:] = np.nan
    old, untrained = values(model), state(model)
    logs = model.train_on_batch(x, y, return_dict=True)

    def labelled(y_true, y_pred):
        there = ~np.isnan(y_true)
        return mean_squares(y_true[there], y_pred[there]) if any(there) else 1

    before, after = (
        by_hand(model, trained, untrained, x, y, labelled)[[0, 2]]
        for trained in (old, values(model))
    )
    assert_found(logs, before, after)
    assert logs["worst_change"] < 0  # and not the zero of "b"

    none = {task: np.full_like(of_task, np.nan) for task, of_task in y.items()}
    model.reset_metrics()
    logs = model.train_on_batch(x, none, return_dict=True)
    assert np.isnan([logs[name] for name in FOUND]).all()


def test_masked_losses():
    def structure(mark):
        x = keras.Input((7,), dtype="int32")
        h = layers.Embedding(10, 6, mask_zero=True)(x)
        z = mark()(layers.LSTM(5, return_sequences=True)(h))
        return x, {task: layers.Dense(2)(z) for task in "ab"}

    model = networks.mgda_model(
        structure, SGD(1.0), verify="step", run_eagerly=True
    )
    x, y = networks.data(model, b=6)
    assert (x == 0).any()
    old, untrained = values(model), state(model)
    logs = model.train_on_batch(x, y, return_dict=True)

    def masked(y_true, y_pred):
        return mean_squares(y_true[x != 0], y_pred[x != 0])

    assert_found(
        logs,
        *(
            by_hand(model, trained, untrained, x, y, masked)
            for trained in (old, values(model))
        ),
    )


@pytest.fixture
def float16():
    with dtype_policy("mixed_float16"):
        yield


@pytest.mark.usefixtures("float16")
def test_mixed_precision():
    def structure(mark):
        x = keras.Input((8,))
        z = mark()(layers.Dropout(0.3)(networks.dense(6)(x)))
        return x, {t: layers.Dense(1, dtype="float32")(z) for t in "ab"}

    model = networks.mgda_model(
        structure, Adam(0.1), verify="step", run_eagerly=True
    )
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    x, y = networks.data(model, b=6)
    old, untrained = values(model), state(model)
    logs = model.train_on_batch(x, y, return_dict=True)
    before, after = (
        by_hand(model, trained, untrained, x, y)
        for trained in (old, values(model))
    )
    assert_found(logs, before, after)
    # A step that is skipped changes nothing.
    model.optimizer.dynamic_scale.assign(1e30)
    model.reset_metrics()
    old = values(model)
    logs = model.train_on_batch(x, y, return_dict=True)
    for a, b in zip(old, values(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [logs[name] for name in FOUND] == [0, 0, 0]


@pytest.mark.parametrize("verify_every", [1, 2])
def test_gathered_gradients_are_looked_at_when_they_move_something(
    verify_every,
):
    """Else `verify_every=k` would look where nothing ever moves."""
    model = networks.mgda_model(
        networks.plain,
        SGD(0.1, gradient_accumulation_steps=2),
        verify="step",
        verify_every=verify_every,
    )
    x, y = networks.data(model, b=6)
    looked = []
    for _ in range(8):
        model.reset_metrics()
        logs = model.train_on_batch(x, y, return_dict=True)
        looked.append(not np.isnan(logs["worst_change"]))
        assert not looked[-1] or logs["worst_change"] != 0
    of_updates = [False, True] if verify_every == 1 else [False, True, 0, 0]
    assert looked == of_updates * (8 // len(of_updates))


def test_losses_of_several_calls_are_added():
    class Twice(MGDAModel):
        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            zero = {task: 0 * of_task for task, of_task in y.items()}
            return loss + super().compute_loss(x, zero, y_pred, None, training)

    model = Twice(*networks.plain(SharedRepresentation))
    model.compile(
        SGD(1.0), {"a": "mse", "b": "mse"}, verify="step", run_eagerly=True
    )
    x, y = networks.data(model, b=6)
    old, untrained = values(model), state(model)
    logs = model.train_on_batch(x, y, return_dict=True)

    def twice(y_true, y_pred):
        return mean_squares(y_true, y_pred) + mean_squares(0, y_pred)

    assert_found(
        logs,
        *(
            by_hand(model, trained, untrained, x, y, twice)
            for trained in (old, values(model))
        ),
    )


def test_a_subclassed_model():
    model = networks.EncoderAndHeads()
    model.compile("sgd", {"a": "mse", "b": "mse"}, verify="step")
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(16, n)).astype("float32") for n in (8, 1))
    logs = model.fit(x, {"a": y, "b": y}, verbose=0).history
    assert np.isfinite([logs[name][0] for name in FOUND]).all()


@pytest.mark.sample(1)
def test_evaluation_has_none_of_it():
    model, logs = trained(verify="step")
    assert set(FOUND) < logs[0].keys()
    x, y = networks.data(model, b=16)
    found = model.evaluate(x, y, verbose=0, return_dict=True)
    assert not set(FOUND) & found.keys()


class Counter(layers.Layer):
    """Counts its calls where Keras does not see it."""

    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0.0, trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


class TensorFlowNoise(layers.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


class Generated(layers.Layer):
    def __init__(self):
        super().__init__()
        self.generator = tf.random.Generator.from_seed(0)

    def call(self, x):
        return x + self.generator.normal(tf.shape(x))


@pytest.mark.parametrize("make", [Counter, TensorFlowNoise, Generated])
def test_state_that_keras_does_not_know_is_refused(make):
    def structure(mark):
        x = keras.Input((8,))
        return x, networks.heads(mark()(make()(networks.dense(4)(x))))

    model = networks.mgda_model(structure, verify="step")
    before = values(model)
    with refused("state and randomness of the model must be Keras's own"):
        model.fit(*networks.data(model), verbose=0)
    for a, b in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("verify", ["direction", "steps", 1, None, ["step"]])
def test_other_words_are_refused(verify):
    with refused("`verify` must be `True`, .*'step'"):
        networks.mgda_model(networks.plain, verify=verify)
