import json
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from benchmarks import drawn_gradients as drawn
from keras_mgda import MGDAModel, SharedRepresentation, diagnosis
from keras_mgda.descent.task_gradients import TableRows
from keras_mgda.diagnosis import diagnose, diagnosis_of, estimates, sketches
from keras_mgda.diagnosis.means import Means
from tests.support import networks
from tests.support.dtype_policy import dtype_policy

SEEDS = 25  # 100 in benchmarks/diagnosis.py


# The statistics, on gradients whose truth is known.


@pytest.mark.parametrize("name", drawn.PROBLEMS)
def test_the_right_finding_and_no_wrong_one(name):
    right, wrong = drawn.rates(name, range(SEEDS), diagnosis_of)
    # Below this fewer than 1 % of the runs would be, at 95 % and 5 %.
    assert right >= 21 / SEEDS
    assert wrong <= 4 / SEEDS


@pytest.mark.parametrize(
    ("size", "signal", "cosine", "common"),
    [(10, 0.5, 0.3, 0.0), (300, 0.1, 0.0, 0.5), (100, 0.9, -0.9, 0.0)],
    ids=["few numbers", "mostly noise", "mostly signal"],
)
def test_the_interval_holds_the_true_cosine(size, signal, cosine, common):
    hits, lengths = 0, []
    q = estimates.student(0.975, 31)
    for seed in range(600):
        rng = np.random.default_rng(seed)
        means = drawn.of_cosine(rng, cosine, size)
        products = drawn.products(drawn.noisy(rng, means, 32, signal, common))
        _, low, high = Means(products, None).cosines(q)
        hits += low[0, 1] <= cosine <= high[0, 1]
        lengths.append(high[0, 1] - low[0, 1])
    assert 0.925 <= hits / 600 <= 0.975
    assert np.median(lengths) < 0.5  # it says something


def test_noise_biases_neither_norms_nor_cosines():
    rng = np.random.default_rng(0)
    means = np.array([[3.0], [1.0]]) * drawn.of_cosine(rng, 0.6, 50)
    cosines, norms, signals = [], [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        gradients = drawn.noisy(rng, means, 16, 0.2)
        found = diagnosis_of(drawn.products(gradients), ["a", "b"])
        cosines.append(found.cosines[0, 1])
        norms.append([r.norm**2 for r in found.tasks.values()])
        signals.append([r.signal.value for r in found.tasks.values()])
    assert np.mean(cosines) == pytest.approx(0.6, abs=0.03)
    np.testing.assert_allclose(np.mean(norms, axis=0), [9, 1], rtol=0.05)
    np.testing.assert_allclose(np.mean(signals, axis=0), 0.2, rtol=0.1)


def test_variances_are_those_of_repeated_draws():
    """Of averages over pairs, whether signal or noise prevails."""
    for signal in (0.02, 0.9):
        averages, variances = [], []
        for seed in range(400):
            rng = np.random.default_rng(seed)
            mean = np.eye(1, 30)
            gradients = drawn.noisy(rng, mean, 12, signal)[0]
            kernel = gradients @ gradients.T * (1 - np.eye(12))
            found, covariance = estimates.means_and_covariance(
                kernel[None], kernel[None]
            )
            averages.append(found[0, 0])
            variances.append(covariance[0, 0, 0])
        assert np.mean(averages) == pytest.approx(1.0, abs=0.3)
        # Cut at zero, so a little too large where noise prevails.
        ratio = np.mean(variances) / np.var(averages)
        assert 0.85 < ratio < 1.35


@pytest.mark.parametrize("degrees", [7, 31, 100])
@pytest.mark.parametrize("p", [0.95, 0.975, 0.999, 0.99999])
def test_quantiles_of_student(p, degrees):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.t.ppf(p, degrees)
    assert estimates.student(p, degrees) == pytest.approx(expected, rel=0.06)


def test_shares_stationarity_and_harm_by_hand():
    """Without noise all of it is plain algebra."""
    g = np.array([[3.0, 0.0], [-1.0, 2.0]])
    products = drawn.products(np.repeat(g[:, None], 8, axis=1))
    weights = {"plain sum": np.ones([8, 2]), "first": np.eye(2)[[0] * 8]}
    found = diagnosis_of(products, ["a", "b"], task_weights=weights)
    d = g.sum(0)
    for task, gradient in zip("ab", g, strict=True):
        report = found.tasks[task]
        assert report.norm == pytest.approx(np.linalg.norm(gradient))
        assert report.share.value == pytest.approx(gradient @ d / (d @ d))
        assert report.signal == pytest.approx((1.0, 1.0, 1.0))
    assert found.cosines[0, 1] == pytest.approx(-1 / np.sqrt(5))
    # The foot of the perpendicular from 0 to the segment between both.
    along = g[1] - g[0]
    foot = g[0] - along * (g[0] @ along) / (along @ along)
    expected = np.linalg.norm(foot) / np.sqrt(5)
    assert found.stationarity.value == pytest.approx(expected, rel=1e-5)
    assert found.steps["plain sum"].harmful.value == 0
    assert found.steps["first"].harmful.value == 1
    assert found.steps["first"].conflicts == 1


def test_order_and_scale_of_all_tasks_change_no_finding():
    rng = np.random.default_rng(3)
    gradients = drawn.noisy(rng, drawn.of_cosine(rng, -0.8, 100), 32, 0.3)
    gradients = np.concatenate([gradients, 20 * gradients[:1]])
    names = ["a", "b", "c"]

    def findings(order, scale):
        found = diagnosis_of(
            drawn.products(scale * gradients[order]),
            [names[t] for t in order],
        )
        return {(f.kind, frozenset(f.tasks)) for f in found.findings}

    plain = findings([0, 1, 2], 1.0)
    assert {kind for kind, _ in plain} >= {"conflict", "same", "scale"}
    assert findings([2, 0, 1], 1.0) == plain
    assert findings([0, 1, 2], 1e-9) == plain
    assert findings([0, 1, 2], 1e9) == plain


def test_pure_noise_is_no_finding_but_noise():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        gradients = rng.normal(size=(4, 32, 500))
        found = diagnosis_of(drawn.products(gradients), list("abcd"))
        assert not found.findings
        assert "none that the batches support" in str(found)


# The gradients, of models.


def build(structure=networks.plain, mark=SharedRepresentation, **options):
    keras.utils.set_random_seed(0)
    inputs, outputs = structure(mark)
    model = MGDAModel(inputs, outputs)
    losses = keras.tree.map_structure(lambda _: "mse", outputs)
    if "aside" in outputs:
        losses["aside"] = None
    model.compile("adam", losses, **options)
    return model


def data(model, size=64, seed=0):
    rng = np.random.default_rng(seed)
    shape = model.inputs[0].shape[1:]
    x = (
        rng.integers(0, 10, (size, *shape))
        if model.inputs[0].dtype == "int32"
        else rng.normal(size=(size, *shape))
    )
    y = keras.tree.map_structure(
        lambda t: rng.normal(size=(size, *t.shape[1:])).astype("float32"),
        model.output,
    )
    return x, y


def shared_rows(model, x, y, shared):
    """`[m, n]`: the task gradients, by a tape of its own."""
    with tf.GradientTape(persistent=True) as tape:
        predictions = model(x, training=True)
        losses = {
            task: tf.reduce_mean((predictions[task] - y[task]) ** 2)
            for task in model.task_names
        }
    by_task = [
        tape.gradient(losses[task], shared, unconnected_gradients="zero")
        for task in model.task_names
    ]
    return np.stack(
        [
            np.concatenate(
                [tf.convert_to_tensor(g).numpy().ravel() for g in gs]
            )
            for gs in by_task
        ]
    )


@pytest.mark.parametrize(
    ("structure", "shared"),
    [
        (networks.plain, [0, 1]),
        (networks.layer_in_two_heads, [0, 1, 2, 3]),
        (networks.bypass, [0, 1, 2, 3]),
        (networks.embedded, [0]),
    ],
)
@pytest.mark.parametrize("memory", [2**28, None], ids=["exact", "sketched"])
@pytest.mark.sample(4)
def test_gradients_are_those_of_the_shared_variables(
    structure, shared, memory, monkeypatch
):
    model = build(structure, run_eagerly=True)
    m = len(model.task_names)
    size = None
    if memory is None:  # fewer numbers than the gradients have
        size = 12
        memory = 4 * m * 8 * size
    monkeypatch.setattr(diagnosis, "MEMORY", memory)
    x, y = data(model)
    found = diagnose(model, (x, y), steps=8, batch_size=8)
    assert found.sketch_size == size
    variables = [model.trainable_variables[i].value for i in shared]
    order = np.random.default_rng(0).permutation(64).reshape(8, 8)
    rows = [
        shared_rows(model, x[i], {t: y[t][i] for t in y}, variables)
        for i in order
    ]
    expected = diagnosis_of(
        drawn.products(np.stack(rows, axis=1)), model.task_names
    )
    for task in model.task_names:  # within a batch nothing is sketched
        assert found.tasks[task].norm_in_batch == pytest.approx(
            expected.tasks[task].norm_in_batch, rel=1e-4
        )
        if size is None:
            assert found.tasks[task].norm == pytest.approx(
                expected.tasks[task].norm, rel=1e-3, abs=1e-4
            )
    np.testing.assert_allclose(
        found.cosines_in_batches, expected.cosines_in_batches, atol=1e-4
    )
    if size is None:
        np.testing.assert_allclose(
            found.intervals, expected.intervals, atol=1e-3
        )


def test_a_sketch_keeps_inner_products():
    """Their mean, with the variance that is stated; tables like the rest."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 40, 50)).astype("float32")
    x[1] += x[0]
    true = np.einsum("tij,sij->ts", x, x)
    indices = tf.constant([7, 3, 7], tf.int64)
    values = rng.normal(size=(2, 3, 50)).astype("float32")
    table = TableRows(indices, tf.constant(values), tf.TensorShape([40, 50]))

    def sketch(rows, offset):
        places, signed = sketches.places_and_entries(rows, offset, 64)
        return tf.math.unsorted_segment_sum(signed, places, 64).numpy()

    np.testing.assert_allclose(
        sketch(table, 5), sketch(table.dense(), 5), atol=1e-4
    )
    products = []
    for offset in range(0, 300 * 2000, 2000):  # other signs and places
        sketched = sketch(tf.constant(x), offset)
        products.append(sketched.T @ sketched)
    error = np.array(products) - true
    lengths = np.outer(np.diag(true), np.diag(true))
    variance = (lengths + true**2) / 64
    assert (np.abs(error.mean(0)) < 4 * np.sqrt(variance / 300)).all()
    np.testing.assert_allclose((error**2).mean(0) / variance, 1, atol=0.35)


def noisy_model(**options):
    """Dropout and batch normalization, whose state a forward pass moves."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,))
    h = layers.BatchNormalization()(layers.Dense(6)(x))
    z = SharedRepresentation()(layers.Dropout(0.5)(h))
    model = MGDAModel(x, networks.heads(z))
    model.compile(
        "adam", {"a": "mse", "b": "mae"}, metrics={"a": "mse", "b": "mse"},
        **options,
    )  # fmt: skip
    return model


def state(model):
    variables = [
        *model.variables,
        *model.optimizer.variables,
        *model.metrics_variables,
    ]
    for layer in model._descent.states.values():
        variables += layer.variables if layer is not None else []
    return [v.numpy() for v in variables]


def same(before, after):
    return len(before) == len(after) and all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize(
    "weighting", [pytest.param("mgda", marks=pytest.mark.slow), "famo"]
)
def test_nothing_changes(weighting):
    """Bit for bit, and the next steps are those of a model left alone."""
    looked_at, left_alone = (
        noisy_model(weighting=weighting, run_eagerly=True) for _ in range(2)
    )
    x, y = data(looked_at)
    for model in (looked_at, left_alone):
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    before = state(looked_at)
    numpy_state = np.random.get_state()[1].copy()
    diagnose(looked_at, (x, y), steps=8, batch_size=8)
    assert same(before, state(looked_at))
    assert (np.random.get_state()[1] == numpy_state).all()
    histories = [
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0).history
        for model in (looked_at, left_alone)
    ]
    assert histories[0] == histories[1]
    assert same(state(looked_at), state(left_alone))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_nothing_changes_when_it_is_interrupted(error):
    model = noisy_model(weighting="uniform", run_eagerly=True)
    x, y = data(model)
    model.fit(x, y, batch_size=16, verbose=0)
    before = state(model)

    def batches():
        for i in range(5):
            yield x[8 * i :][:8], {t: y[t][8 * i :][:8] for t in y}
        # Half way, when statistics have moved.
        assert not same(before, state(model))
        raise error

    with pytest.raises(error):
        diagnose(model, batches(), steps=8)
    assert same(before, state(model))


def test_a_plain_keras_model_is_diagnosed_and_left_as_it_is():
    keras.utils.set_random_seed(0)
    model = keras.Model(*networks.plain(layers.Identity))
    model.compile(
        "adam", {"a": "mse", "b": "mse"}, loss_weights={"a": 1.0, "b": 50.0}
    )
    x, y = data(model)
    optimizer, before = model.optimizer, model.get_weights()
    found = diagnose(model, (x, y), steps=8, batch_size=8)
    assert model.optimizer is optimizer
    assert same(before, model.get_weights())
    assert set(found.steps) == {"plain sum", "MGDA-UB"}
    # Loss weights are part of the gradients, and not of the losses.
    once = diagnose(
        model, (x, y), steps=8, batch_size=8, loss={"a": "mse", "b": "mse"}
    )
    assert found.tasks["b"].norm_in_batch == pytest.approx(
        50 * once.tasks["b"].norm_in_batch, rel=1e-4
    )
    assert found.tasks["b"].loss == pytest.approx(once.tasks["b"].loss)


@pytest.mark.parametrize(
    ("weighting", "gradients"),
    [
        ("uniform", "parameters"),
        pytest.param("mgda", "parameters", marks=pytest.mark.slow),
        pytest.param("mgda", "representation", marks=pytest.mark.slow),
    ],
)
def test_predicted_conflicts_are_those_that_verify_logs(weighting, gradients):
    """At the same point, over the same batches."""
    model = build(
        networks.three_tasks, weighting=weighting, gradients=gradients,
        verify=True,
    )  # fmt: skip
    model.optimizer.learning_rate = 0.0
    x, y = data(model)
    order = np.random.default_rng(0).permutation(64)
    logs = model.fit(
        x[order], {t: y[t][order] for t in y}, batch_size=8, shuffle=False,
        verbose=0,
    ).history  # fmt: skip
    found = diagnose(model, (x, y), steps=8, batch_size=8)
    own = list(found.steps)[-1]
    assert found.steps[own].conflicts == pytest.approx(logs["conflicts"][0])
    if gradients == "parameters" and weighting == "mgda":
        assert found.steps[own].harmful.value == 0


def test_half_precision_is_looked_at_before_it_trains():
    """Gradients overflow at the first loss scale, as they do in training."""
    found = {}
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(0)
        with dtype_policy(policy):
            model = keras.Model(*networks.plain(layers.Identity))
            loss = {"a": "mse", "b": "mse"}
            x, y = data(model)
            y = {task: 1e3 * np.asarray(of_task) for task, of_task in y.items()}
            found[policy] = diagnose(
                model, (x, y), steps=8, batch_size=8, loss=loss
            )
    half, single = found["mixed_float16"], found["float32"]
    for task in "ab":
        assert half.tasks[task].norm_in_batch == pytest.approx(
            single.tasks[task].norm_in_batch, rel=0.01
        )


def test_other_losses_leave_missing_labels_missing():
    model = build(unlabelled=-1e3)
    x, y = data(model)
    y["a"] = np.where(np.arange(64)[:, None] % 2, -1e3, y["a"])
    given = {"data": (x, y), "steps": 8, "batch_size": 8}
    own = diagnose(model, **given).tasks["a"]
    other = diagnose(model, loss={"a": "mse", "b": "mse"}, **given).tasks["a"]
    assert own.labelled == other.labelled == 0.5
    assert other.loss == pytest.approx(own.loss, rel=1e-5)


def of_losses(of_a, others_of_a):
    """A task of a small gradient, beside a large one."""
    gradients = np.repeat([[[1e-3, 0.0]], [[0.0, 1.0]]], 8, axis=1)
    return kinds(
        diagnosis_of(
            drawn.products(gradients),
            ["a", "b"],
            losses=np.tile([of_a, 1.0], (8, 1)),
            other_losses=np.tile([others_of_a, 2.0], (8, 1)),
        )
    )


def test_a_loss_below_zero_is_not_done():
    """A likelihood: small beside that of other predictions, and falling."""
    assert ("done", ("a",)) in of_losses(0.001, 1.0)
    assert ("done", ("a",)) not in of_losses(-0.5, 3.0)
    assert ("done", ("a",)) not in of_losses(0.001, -3.0)


def test_a_task_that_counts_nothing_is_unlabelled():
    model = build()
    x, y = data(model)
    weight = {"a": np.zeros(64), "b": np.ones(64)}
    found = diagnose(model, (x, y, weight), steps=8, batch_size=8)
    assert ("unlabelled", ("a",)) in kinds(found)
    assert ("done", ("a",)) not in kinds(found)


def linear(*args, **settings):
    model, data, batch_size = linear_problem(*args, **settings)
    return diagnose(model, data, batch_size=batch_size)


def linear_problem(
    targets, batch_size, noise=0.0, size=2048, scale=(1, 1), unlabelled=False
):
    """Two heads that are fixed, on a linear encoder: `y_t = <w_t, x>`."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,))
    z = SharedRepresentation()(layers.Dense(2, use_bias=False)(x))
    ones = keras.initializers.Constant([[1.0], [0.0]])
    model = MGDAModel(
        x,
        {
            t: layers.Dense(1, use_bias=False, kernel_initializer=ones)(z)
            for t in "ab"
        },
    )
    model.compile("sgd", "mse", **({"unlabelled": "nan"} if unlabelled else {}))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(size, 8)).astype("float32")
    y = {
        t: s
        * (inputs @ w + noise * rng.normal(size=size)).astype("float32")[
            :, None
        ]
        for t, w, s in zip("ab", targets, scale, strict=True)
    }
    if unlabelled:
        y["b"][:] = np.nan
    return model, (inputs, y), batch_size


E = np.eye(8, dtype="float32")


def kinds(found):
    return {(f.kind, f.tasks) for f in found.findings}


def advised(found, kind):
    """The arguments of `compile` in the advice of the first such finding."""
    advice = next(f.advice for f in found.findings if f.kind == kind)
    return dict(re.findall(r"(\w+)='(\w+)'", advice))


def test_the_advice_against_conflict_raises_no_loss():
    problem = [30 * E[0] + 40 * E[1], 60 * E[0] - 180 * E[1]], 64
    model, data, batch_size = linear_problem(*problem)
    found = diagnose(model, data, batch_size=batch_size)
    assert found.steps["plain sum"].harmful.value > 0.9
    model.compile("sgd", "mse", **advised(found, "conflict"))
    found = diagnose(model, data, batch_size=batch_size)
    assert found.steps["UPGrad, gradients='verified'"].harmful.value == 0


@pytest.mark.parametrize("kind", ["scale", "starves"])
@pytest.mark.sample(1)
def test_the_advice_against_scales_trains_the_other_task(kind):
    """What one step brings to 'a', whose loss is in the smaller unit."""
    problem = [30 * E[0], 30 * E[1]], 256

    def loss_after_steps(**compiled):
        model, (x, y), batch_size = linear_problem(
            *problem, size=8192, scale=(1.0, 1000.0)
        )
        # Of `a` the best that an encoder does that `b` decides is to be silent.
        model.compile(keras.optimizers.Adam(0.5), "mse", **compiled)
        model.fit(x, y, batch_size=batch_size, epochs=3, verbose=0)
        return model.evaluate(x, y, verbose=0, return_dict=True)["a_loss"]

    found = linear(*problem, size=8192, scale=(1.0, 1000.0))
    by_sum = loss_after_steps(weighting="uniform")
    assert loss_after_steps(**advised(found, kind)) < 0.5 * by_sum


def test_findings_of_real_models():
    conflict = linear([30 * E[0], -30 * E[0]], 64)
    assert ("conflict", ("a", "b")) in kinds(conflict)
    assert conflict.cosines[0, 1] < -0.9
    scale = linear([30 * E[0], 30 * E[1]], 256, scale=(1.0, 1000.0), size=8192)
    assert {("scale", ("b",)), ("starves", ("a",))} <= kinds(scale)
    same_twice = linear([30 * E[0], 30 * E[0]], 64)
    assert ("same", ("a", "b")) in kinds(same_twice)
    noise = linear([E[0] * 3, E[0] * 3], 8, noise=20.0)
    assert ("noise", ("a", "b")) in kinds(noise)
    assert "conflict" not in {kind for kind, _ in kinds(noise)}
    unlabelled = linear([30 * E[0], 30 * E[1]], 64, unlabelled=True)
    assert kinds(unlabelled) == {("unlabelled", ("b",))}
    assert unlabelled.tasks["b"].labelled == 0


def test_a_task_that_was_learnt_is_done():
    keras.utils.set_random_seed(0)
    model = build()
    x, y = data(model, size=512)
    y["a"] = model.predict(x, verbose=0)["a"]  # what it says already
    found = diagnose(model, (x, y), batch_size=16)
    assert ("done", ("a",)) in kinds(found)
    assert "a" not in {t for k, ts in kinds(found) if k != "done" for t in ts}


def test_it_reads_all_kinds_of_data():
    model = build(run_eagerly=True)
    x, y = data(model)
    y["a"], y["b"] = (y[t].astype("float32") for t in "ab")
    x = x.astype("float32")
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat()

    class Sequence(keras.utils.PyDataset):
        num_batches = 8

        def __getitem__(self, i):
            return x[8 * i :][:8], {t: y[t][8 * i :][:8] for t in y}

    first = diagnose(model, endless, steps=8).to_json()
    assert diagnose(model, Sequence(), steps=9).to_json() == first
    assert diagnose(model, iter(endless), steps=8).to_json() == first


def test_a_model_that_was_never_trained_trains_as_without():
    histories = []
    for looked_at in (False, True):
        model = noisy_model(weighting="uniform")
        x, y = data(model)
        if looked_at:
            diagnose(model, (x, y), steps=8, batch_size=8)
        history = model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        histories.append(history.history)
    assert histories[0] == histories[1]


def test_several_replicas_are_refused(strategy):
    with strategy.scope():
        model = build()
    x, y = data(model)
    with pytest.raises(ValueError, match=r"one replica.*Received: one of 2"):
        diagnose(model, (x, y))


def frozen():
    return build(networks.frozen_encoder)


def not_finite():
    model = build()
    model.layers[1].bias.assign(np.full(4, np.nan))
    return model


REFUSED = {
    "one task": (lambda: build(networks.one_task), {}, "two tasks"),
    "a frozen encoder": (frozen, {}, "Unfreeze the encoder"),
    "NaN": (not_finite, {}, r"batch 1 the loss of \['a', 'b'\]"),
    "one batch": (build, {"batch_size": 64}, "`batch_size` smaller"),
    "few steps": (build, {"steps": 2}, "at least 8"),
    "inputs alone": (build, {"data": np.ones([64, 8])}, "hold labels"),
    "batches of inputs": (
        build, {"data": [np.ones([8, 8])] * 8}, "inputs alone"
    ),
    "few batches": (
        build,
        {"data": [(np.ones([8, 8]), dict.fromkeys("ab", np.ones([8, 1])))] * 3},
        "Received: 3",
    ),
    "no batches": (build, {"data": []}, "none"),
    "no losses": (
        lambda: MGDAModel(*networks.plain(SharedRepresentation)),
        {},
        "give `loss=",
    ),
    "loss weights alone": (
        build, {"loss_weights": {"a": 1.0, "b": 2.0}}, "come with `loss`"
    ),
    "a model that is not ours": (
        lambda: keras.Sequential([keras.Input((8,)), layers.Dense(1)]),
        {"loss": "mse"}, "compiled `MGDAModel`, or functional",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_diagnosed_is_refused(name):
    make, arguments, message = REFUSED[name]
    model = make()
    if "data" not in arguments:
        arguments = {"data": data(build()), "batch_size": 8, **arguments}
    before = model.get_weights()
    with pytest.raises(ValueError, match=message) as refused:
        diagnose(model, **arguments)
    assert "Received" in str(refused.value)
    assert same(before, model.get_weights())


# What is shown.


def some_diagnosis():
    gradients, more = drawn.scaled(np.random.default_rng(0))
    return diagnosis_of(drawn.products(gradients), ["left", "right"], **more)


def test_words_name_every_task_and_finding():
    found = some_diagnosis()
    text = str(found)
    for finding in found.findings:
        assert f"- {finding.kind}: {', '.join(finding.tasks)}" in text
        assert finding.advice in text
    assert "left" in text
    assert "nan" not in text.split("Findings")[0].replace("nan  ", "")


def test_json_holds_all_and_no_nan():
    found = some_diagnosis()
    read = json.loads(
        found.to_json(), parse_constant=lambda name: pytest.fail(name)
    )
    assert read["tasks"]["left"]["loss"] is None  # was not given
    assert (
        read["tasks"]["left"]["share"]["value"]
        == found.tasks["left"].share.value
    )
    np.testing.assert_allclose(read["cosines"], found.cosines)
    assert [f["kind"] for f in read["findings"]] == [
        f.kind for f in found.findings
    ]


def test_plot_greys_what_is_not_certain():
    pytest.importorskip("matplotlib")
    found = some_diagnosis()
    figure = found.plot()
    shown = figure.axes[0].images[0].get_array()
    assert (
        np.ma.getmaskarray(shown) == ~(found.certain | np.eye(2, dtype=bool))
    ).all()
    assert not found.certain[0, 1]
    lengths = [bar.get_width() for bar in figure.axes[1].patches]
    assert lengths == [r.share.value for r in found.tasks.values()]


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        some_diagnosis().plot()
