"""Tasks as columns train as the same tasks with an output each."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda import MGDAModel, SharedRepresentation, losses, weightings
from tests.support.dtype_policy import dtype_policy

M, STEPS, BATCH = 5, 20, 12
NAMES = [f"t{k}" for k in range(M)]
CROSSENTROPY = "binary_crossentropy"


def direct(x):
    """The columns read `Z`."""
    h = layers.Dense(7, activation="tanh")(x)
    return SharedRepresentation()(layers.Dense(6, activation="tanh")(h))


def hidden(x):
    """A layer of all columns stands between."""
    z = direct(x)
    return layers.Dense(4, activation="tanh")(z)


def around(x):
    """And they reach the encoder around `Z`."""
    h = layers.Dense(7, activation="tanh")(x)
    z = SharedRepresentation()(layers.Dense(6, activation="tanh")(h))
    return layers.Concatenate()([z, h])


def columns(structure=direct, beside=False, loss=CROSSENTROPY, **per_column):
    x = keras.Input((8,))
    h = structure(x)
    outputs = {"assays": layers.Dense(M, activation="sigmoid", name="last")(h)}
    of = {"assays": losses.PerColumn(loss, NAMES, **per_column)}
    if beside:
        outputs["beside"] = layers.Dense(1, name="beside")(h)
        of["beside"] = "mse"
    return MGDAModel(x, outputs), of


def outputs_each(structure=direct, beside=False, loss=CROSSENTROPY):
    x = keras.Input((8,))
    h = structure(x)
    outputs = {
        name: layers.Dense(1, activation="sigmoid", name=name)(h)
        for name in NAMES
    }
    of = dict.fromkeys(NAMES, loss)
    if beside:
        outputs["beside"] = layers.Dense(1, name="beside")(h)
        of["beside"] = "mse"
    return MGDAModel(x, outputs), of


def others(model):
    """The weights that are no column's."""
    return [
        weight
        for layer in model.layers
        if layer.name not in ["last", *NAMES]
        for weight in layer.weights
    ]


def copy_weights(one, each):
    """From the model with columns to that with an output each."""
    kernel, bias = one.get_layer("last").get_weights()
    for k, name in enumerate(NAMES):
        of_task = [kernel[:, k : k + 1], bias[k : k + 1]]
        each.get_layer(name).set_weights(of_task)
    for ours, theirs in zip(others(one), others(each), strict=True):
        theirs.assign(ours.numpy())  # or both share a buffer


def assert_same_weights(one, each, atol=1e-5):
    kernel, bias = one.get_layer("last").get_weights()
    of_tasks = [each.get_layer(name).get_weights() for name in NAMES]
    pairs = [
        (kernel, np.concatenate([k for k, _ in of_tasks], axis=1)),
        (bias, np.concatenate([b for _, b in of_tasks])),
        *(
            (a.numpy(), b.numpy())
            for a, b in zip(others(one), others(each), strict=True)
        ),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def batch(step, gaps):
    """A batch; with gaps, in which some columns have no label at all."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(BATCH, 8)).astype("float32")
    y = (rng.uniform(size=(BATCH, M)) < 0.4).astype("float32")
    if gaps:
        y[rng.uniform(size=y.shape) < 0.6] = np.nan
        y[:, (np.arange(M) + step) % 4 == 0] = np.nan
    other = rng.normal(size=(BATCH, 1)).astype("float32")
    return x, y, other


def train_both(
    weighting,
    gaps=False,
    structure=direct,
    beside=False,
    steps=STEPS,
    optimizer=None,
    per_column=None,
    each_weights=None,
    sample_weight=None,
    loss=CROSSENTROPY,
    **how,
):
    keras.utils.set_random_seed(0)
    one, of_one = columns(structure, beside, loss, **(per_column or {}))
    each, of_each = outputs_each(structure, beside, loss)
    copy_weights(one, each)
    how = {"unlabelled": "nan" if gaps else None} | how
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    one.compile(optimizer, of_one, weighting=weighting, **how)
    optimizer = one.optimizer.from_config(one.optimizer.get_config())
    each.compile(
        optimizer,
        of_each,
        weighting=weighting,
        loss_weights=each_weights,
        **how,
    )
    logs = []
    for step in range(steps):
        x, y, other = batch(step, gaps)
        extra = {"beside": other} if beside else {}
        weights = {}
        if sample_weight:
            w = np.random.default_rng(step).uniform(size=BATCH)
            weights = {"sample_weight": w.astype("float32")}
        ours = one.train_on_batch(
            x, {"assays": y} | extra, return_dict=True, **weights
        )
        theirs = each.train_on_batch(
            x,
            {n: y[:, k : k + 1] for k, n in enumerate(NAMES)} | extra,
            return_dict=True,
            **weights,
        )
        np.testing.assert_allclose(
            list(one.task_weights.values()),
            list(each.task_weights.values()),
            rtol=1e-4,
            atol=1e-5,
            err_msg=f"step {step}",
        )
        logs.append((ours, theirs))
    assert_same_weights(one, each)
    return one, each, logs


@pytest.mark.parametrize(
    "gaps",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["gaps", "full"],
)
@pytest.mark.parametrize(
    "weighting",
    ["mgda", "upgrad", weightings.PCGrad(seed=0), "famo", "uniform"],
    ids=["mgda", "upgrad", "pcgrad", "famo", "uniform"],
)
@pytest.mark.sample(2)
def test_columns_train_as_an_output_each(weighting, gaps):
    train_both(weighting, gaps)


def test_what_a_step_did_to_the_columns():
    *_, logs = train_both(
        "mgda", gaps=True, beside=True, verify="step", run_eagerly=True, steps=4
    )
    assert max(ours["harmed"] for ours, _ in logs) > 0
    for ours, theirs in logs:
        for name in ("harmed", "worst_change", "encoder_part"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"structure": hidden},
        {"structure": around, "beside": True},
        {"beside": True, "gaps": True},
        {"per_column": {"task_weights": [1, 2, 0.5, 1, 3]},
         "each_weights": dict(zip(NAMES, [1, 2, 0.5, 1, 3], strict=True))},
        {"sample_weight": True},
        {"gradients": "parameters", "gaps": True},
        {"gradients": "last", "structure": hidden, "beside": True},
        {"gradients": "verified", "beside": True},
        {"weighting": "famo", "structure": hidden, "optimizer": "adam"},
        {"loss": "mse", "optimizer": "rmsprop", "gaps": True},
        {"weighting": "upgrad", "optimizer": "adam", "gaps": True},
    ],
    ids=lambda how: "-".join(how),
)  # fmt: skip
@pytest.mark.sample(2)
def test_whatever_the_head_and_the_gradients(how):
    defaults = {"weighting": "mgda", "steps": 3, "run_eagerly": True}
    train_both(**(defaults | how))


def test_a_head_with_a_hidden_layer_in_a_graph():
    """There the columns are pulled back side by side."""
    train_both("uniform", structure=hidden, verify=True, steps=2)


def step_graph(m):
    x = keras.Input((8,))
    outputs = {"assays": layers.Dense(m)(direct(x))}
    model = MGDAModel(x, outputs)
    model.compile("adam", losses.PerColumn("mse"), unlabelled="nan")
    data = (tf.zeros([4, 8]), {"assays": tf.zeros([4, m])})
    model.optimizer.build(model.trainable_variables)
    model.test_step(data)  # makes the metrics
    step = tf.function(model.train_step, autograph=False)
    graph = step.get_concrete_function(data).graph.as_graph_def()
    functions = [f.node_def for f in graph.library.function]
    return sum(map(len, [graph.node, *functions]))


def test_the_graph_does_not_grow_with_the_columns():
    # The solver's loop may be unrolled by one, or have another constant.
    assert abs(step_graph(60) - step_graph(20)) < 10


def test_the_kernel_is_read_as_often_as_the_layer_is_called():
    """Once by the layer, once as a tensor for the Gram matrix.

    A `tf.Variable` among the factors would be read anew by each product. In
    one graph of ten, a step then took the kernel of the next one.
    """
    model, loss = columns()
    model.compile("sgd", loss)
    x, y, _ = batch(0, gaps=False)
    data = (tf.constant(x), {"assays": tf.constant(y)})
    model.optimizer.build(model.trainable_variables)
    model.test_step(data)
    step = tf.function(model.train_step, autograph=False)
    graph = step.get_concrete_function(data).graph
    handle = graph.capture(model.get_layer("last").kernel.value.handle)
    reads = [op for op in handle.consumers() if op.type == "ReadVariableOp"]
    assert len(reads) == 2


@pytest.mark.slow
def test_a_step_under_xla_is_the_same():
    found = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model, loss = columns()
        model.compile("adam", loss, unlabelled="nan", jit_compile=jit_compile)
        for step in range(3):
            x, y, _ = batch(step, gaps=True)
            model.train_on_batch(x, {"assays": y})
        found.append([w.numpy() for w in model.weights])
    for with_xla, without in zip(*found, strict=True):
        np.testing.assert_allclose(with_xla, without, atol=1e-5)


def test_mixed_precision_takes_the_kernel_as_the_layer_does():
    x, y, _ = batch(0, gaps=True)
    weights = {}
    for policy in ("float32", "mixed_float16"):
        with dtype_policy(policy):
            keras.utils.set_random_seed(0)
            model, loss = columns()
        model.compile("sgd", loss, unlabelled="nan", run_eagerly=True)
        model.train_on_batch(x, {"assays": y})
        weights[policy] = list(model.task_weights.values())
        assert np.isfinite(weights[policy]).all()
    np.testing.assert_allclose(*weights.values(), atol=0.02)


def test_an_overflow_is_that_of_its_column():
    with dtype_policy("mixed_float16"):
        model, loss = columns(loss="mse")
    model.compile("sgd", loss, run_eagerly=True)
    x, y, _ = batch(0, gaps=False)
    y[0, 2] = 1e7
    before = [w.numpy() for w in model.trainable_variables]
    with pytest.warns(UserWarning, match="in 1 for task 't2'"):
        model.fit(x, {"assays": y}, batch_size=BATCH, verbose=0)
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_a_frozen_layer_has_columns_all_the_same():
    model, loss = columns()
    model.get_layer("last").trainable = False
    model.compile("sgd", loss, run_eagerly=True)
    x, y, _ = batch(0, gaps=False)
    before = model.get_layer("last").get_weights()
    model.train_on_batch(x, {"assays": y})
    for old, new in zip(
        before, model.get_layer("last").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    assert sum(model.task_weights.values()) == pytest.approx(1, rel=1e-5)


def test_the_activation_of_the_last_layer_stays():
    model, loss = columns()
    last = model.get_layer("last")
    activation = last.activation
    model.compile("sgd", loss, run_eagerly=True)
    x, y, _ = batch(0, gaps=False)
    model.train_on_batch(x, {"assays": y})
    assert last.activation is activation
    with pytest.raises(ValueError, match="must have its shape"):
        model.train_on_batch(x, {"assays": y[:, :2]})
    assert last.activation is activation


@pytest.mark.slow
def test_replicas_train_as_one(strategy):
    """A replica may hold no label of a column that has some on the other."""
    x, y, _ = batch(0, gaps=True)
    y[:6, 1], y[6:, 1] = np.nan, 1.0
    found = []
    for scope in (strategy.scope, contextlib.nullcontext):
        with scope():
            keras.utils.set_random_seed(0)
            model, loss = columns(log=["t1"])
            model.compile(keras.optimizers.SGD(0.5), loss, unlabelled="nan")
        logs = model.fit(
            x, {"assays": y}, batch_size=BATCH, epochs=2, shuffle=False,
            verbose=0,
        ).history  # fmt: skip
        found.append((logs, [w.numpy() for w in model.weights]))
    (logs, weights), (want_logs, want) = found
    for name, values in want_logs.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-5, err_msg=name)
    for ours, theirs in zip(weights, want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "gaps", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_a_diagnosis_is_that_of_an_output_each(gaps):
    keras.utils.set_random_seed(0)
    one, of_one = columns()
    each, of_each = outputs_each()
    copy_weights(one, each)
    batches = [batch(step, gaps)[:2] for step in range(8)]
    unlabelled = "nan" if gaps else None
    found = []
    for model, of_model, labels in (
        (one, of_one, lambda y: {"assays": y}),
        (
            each,
            of_each,
            lambda y: {n: y[:, k : k + 1] for k, n in enumerate(NAMES)},
        ),
    ):
        model.compile("sgd", of_model, unlabelled=unlabelled)
        data = [(x, labels(y)) for x, y in batches]
        found.append(keras_mgda.diagnose(model, data, steps=8))
    ours, theirs = found
    assert ours.task_names == theirs.task_names == NAMES
    np.testing.assert_allclose(ours.cosines, theirs.cosines, atol=1e-4)
    assert ours.steps.keys() == theirs.steps.keys()
    for name in NAMES:
        assert ours.tasks[name].loss == pytest.approx(
            theirs.tasks[name].loss, rel=1e-5
        )
        assert ours.tasks[name].norm_in_batch == pytest.approx(
            theirs.tasks[name].norm_in_batch, rel=1e-4
        )
        assert ours.tasks[name].labelled == theirs.tasks[name].labelled
