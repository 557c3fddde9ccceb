"""Generated Gram matrices and models: no crash, no NaN from finite input, and
no encoder that stands still without being told so."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from benchmarks.gram_matrices import FAMILIES, SPREADS, gram_of, jacobian
from keras_mgda import (
    MGDAModel,
    SharedRepresentation,
    min_norm_point,
    weightings,
)
from tests.support.weighting_cases import IDENTIFIERS

WEIGHTINGS = sorted(set(IDENTIFIERS) - {"fixed"})
SIZES = (1, 2, 3, 5, 8)


def generated_grams(number, seed=0):
    """Of any family, rank, spread and unit; some with rows that are zero.

    Half of these belong to tasks without labels, whose loss is zero.
    """
    rng = np.random.default_rng(seed)
    for i in range(number):
        m = SIZES[i % len(SIZES)]
        family = FAMILIES[rng.integers(len(FAMILIES))]
        if m == 1:  # none to be stationary with
            family = FAMILIES[0]
        J = jacobian(family, m, int(rng.choice(SPREADS)), seed=i)
        losses = 10.0 ** rng.uniform(-3, 3, m)
        if rng.random() < 0.3:
            zero = rng.random(m) < 0.4
            J[zero] = 0.0
            losses[zero] *= rng.integers(2)
        yield gram_of(J * 10.0 ** rng.uniform(-5, 4)), np.float32(losses)


def check_moves(gram, task_weights, label):
    """Not zero, unless the tasks that have a gradient are stationary."""
    gram, w = np.float64(gram), np.float64(task_weights)
    present = gram.diagonal() > 0
    if not present.any():
        return
    scale = gram.diagonal()[present].min()
    best = min_norm_point(np.float32(gram[np.ix_(present, present)]))
    if best.squared_norm > 1e-3 * scale:
        assert w @ gram @ w > 0, label


@pytest.mark.parametrize(
    "number", [150, pytest.param(4_000, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_solver(number):
    solve = tf.function(min_norm_point)  # one program for each size
    mgda = weightings.MGDA()
    weigh = {
        m: tf.function(mgda).get_concrete_function(tf.TensorSpec([m, m]))
        for m in SIZES
    }
    for i, (gram, _) in enumerate(generated_grams(number)):
        present = gram.diagonal() > 0
        found = solve(tf.constant(gram), active=tf.constant(present))
        w = found.task_weights.numpy().astype("float64")
        label = f"number {i}: {gram.tolist()}"
        assert np.isfinite(w).all(), label
        assert w.min() >= 0, label
        assert w.sum() == pytest.approx(1, abs=1e-5), label
        if not present.any():
            continue
        assert (w[~present] == 0).all(), label
        norms = np.sqrt(gram.diagonal().astype("float64"))
        along = gram.astype("float64") @ w
        cosines = along[present] / (norms[present] * (w @ norms))
        assert cosines.min() >= -1e-6, label
        np.testing.assert_allclose(
            weigh[len(gram)](tf.constant(gram)), w, atol=1e-6, err_msg=label
        )
        if found.squared_norm > 1e-3 * (norms[present].min() ** 2):
            assert along @ w > 0, label


@pytest.mark.parametrize(
    ("identifier", "number"),
    [("famo", 20)]
    + [pytest.param(name, 200, marks=pytest.mark.slow) for name in WEIGHTINGS],
)
@pytest.mark.slow
def test_weightings(identifier, number):
    """A stream of unrelated matrices, for each number of tasks."""
    by_size = {m: weightings.get(identifier) for m in SIZES}
    weigh = {m: tf.function(weighting) for m, weighting in by_size.items()}
    for m, weighting in by_size.items():
        weighting.build([f"t{t}" for t in range(m)])
    for i, (gram, losses) in enumerate(generated_grams(number, seed=1)):
        m = len(gram)
        w = weigh[m](tf.constant(gram), tf.constant(losses)).numpy()
        label = f"number {i}: {gram.tolist()}"
        assert np.isfinite(w).all(), label
        # A maximum of the losses may rest where the largest is at its minimum.
        at_minimum = (gram.diagonal() == 0) & (losses > 0)
        if identifier != "stch" or not at_minimum.any():
            check_moves(gram, w, label)


# Models.


def encoder(rng):
    """An input and what follows it, `[b, n]`; not all of it is trained."""
    kind = rng.choice(["dense", "image", "tokens"])
    if kind == "dense":
        x = h = keras.Input((7,))
    elif kind == "image":
        x = keras.Input((6, 6, 2))
        h = layers.Conv2D(3, 3, activation="tanh")(x)
        h = layers.Flatten()(layers.MaxPooling2D(2)(h))
    else:
        x = keras.Input((5,), dtype="int32")
        h = layers.Embedding(9, 4, mask_zero=bool(rng.integers(2)))(x)
        if rng.integers(2):
            h = layers.GRU(4)(h)
        else:
            h = layers.GlobalAveragePooling1D()(h)
    for depth in range(rng.integers(1, 4)):
        regularizer = str(rng.choice(["l2", "none"]))
        units = int(rng.integers(2, 7))
        h = layers.Dense(
            units,
            activation="tanh",
            trainable=bool(depth == 0 or rng.random() < 0.8),
            kernel_regularizer="l2" if regularizer == "l2" else None,
        )(h)
        # Two normalized numbers are 1 and -1, whatever the layers before do.
        if rng.random() < 0.3 and units > 2:
            h = layers.LayerNormalization()(h)
    return x, h


def network(rng, m):
    """Heads that share layers, or read the encoder around the marker."""
    x, h = encoder(rng)
    z = SharedRepresentation()(layers.Dense(4, activation="tanh")(h))
    if rng.random() < 0.2:
        z = SharedRepresentation()(layers.Dense(3, activation="tanh")(z))
    common = layers.Dense(3, activation="tanh")
    outputs, losses = {}, {}
    for t in range(m):
        task, of_task = f"t{t}", z
        if rng.random() < 0.3:
            of_task = layers.Concatenate()([of_task, common(z)])
        if rng.random() < 0.2:
            of_task = layers.Concatenate()([of_task, h])
        classes = int(rng.choice([1, 3]))
        outputs[task] = layers.Dense(classes)(of_task)
        losses[task] = (
            str(rng.choice(["mse", "mae", "huber"]))
            if classes == 1
            else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
    return MGDAModel(x, outputs), losses


def batch(rng, model, losses, missing):
    """Labels of any scale, half of them missing; of the last task all."""
    b = int(rng.integers(1, 7))
    shape = (b, *model.input_shape[1:])
    x = rng.normal(size=shape).astype("float32")
    if len(shape) == 2 and shape[1] == 5:
        x = rng.integers(0, 9, size=shape)
        x[:, 0] = 1
    y = {}
    for t, (task, loss) in enumerate(losses.items()):
        if isinstance(loss, str):
            y[task] = rng.normal(size=(b, 1)) * 10.0 ** rng.uniform(-2, 2)
        else:
            y[task] = rng.integers(0, 3, size=b)
        if missing:
            gone = (rng.random(b) < 0.5) | (0 < t == len(losses) - 1)
            gone[0] &= t > 0
            y[task][gone] = -1 if not isinstance(loss, str) else np.nan
    return x, y


def compile_any(rng, model, losses, seed):
    """With a weighting and mode each, as far as they go together."""
    gradients = ("representation", "parameters", "last", "verified")[seed % 4]
    identifier = WEIGHTINGS[seed % len(WEIGHTINGS)]
    weighting = weightings.get(identifier)
    if gradients == "verified" and (
        not weighting.uses_gram or weighting.state is not None
    ):
        gradients = "representation"
    missing = bool(rng.integers(2))
    markers = {
        task: "nan" if isinstance(loss, str) else -1
        for task, loss in losses.items()
    }
    graph = seed % 25 == 0  # every other one of them under XLA
    model.compile(
        keras.optimizers.SGD(1e-3),
        losses,
        weighting=weighting,
        gradients=gradients,
        unlabelled=markers if missing else None,
        run_eagerly=not graph,
        jit_compile=graph and bool(seed % 50),
    )
    return missing


def train_generated(seed):
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    model, losses = network(rng, m=int(rng.integers(1, 6)))
    missing = compile_any(rng, model, losses, seed)
    for _ in range(2):
        before = [v.numpy() for v in model.trainable_variables]
        x, y = batch(rng, model, losses, missing)
        logs = model.train_on_batch(x, y, return_dict=True)
        assert np.isfinite(logs["loss"]), logs
        for task in losses:  # NaN is that of a task without any label
            gone = np.isnan(y[task]) | (missing & (y[task] == -1))
            if not gone.all() and f"{task}_loss" in logs:
                assert np.isfinite(logs[f"{task}_loss"]), logs
        assert np.isfinite(list(model.task_weights.values())).all()
        assert all(np.isfinite(v.numpy()).all() for v in model.variables)
        moved = [
            (v.numpy() != old).any()
            for v, old in zip(model.trainable_variables, before, strict=True)
        ]
        # The first layer is the encoder's.
        assert moved[0] or not moved[-1], model.task_weights
    return model


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(1, 4), id="some"),
        pytest.param(range(200), id="all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_models(seeds):
    failed = {}
    for seed in seeds:
        try:
            train_generated(seed)
        except Exception as error:
            failed[seed] = repr(error)
        keras.backend.clear_session()
    assert not failed, failed
