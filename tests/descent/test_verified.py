"""Directions by chosen layers, and those that are verified.

The oracle has the exact gradient of every task.
"""

import itertools

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation, weightings
from keras_mgda.linalg import gram_update as products
from tests.support import networks, oracle
from tests.support.dtype_policy import dtype_policy
from tests.support.refusal import refused

LOOKED_AT = ("conflicts", "corrections", "min_cosine")
# Those whose encoder moves.
STRUCTURES = [
    structure
    for structure in networks.STRUCTURES
    if structure not in (networks.frozen_encoder, networks.no_encoder)
]
each_structure = pytest.mark.parametrize("structure", STRUCTURES)


def normalized(mark):
    x = keras.Input((8, 8, 2))
    z = layers.Conv2D(4, 3, use_bias=False)(x)
    z = layers.ReLU()(layers.BatchNormalization()(z))
    z = layers.MaxPooling2D()(z)
    z = layers.Conv2D(4, 2)(z)
    z = layers.Flatten()(layers.ReLU()(layers.BatchNormalization()(z)))
    return x, networks.heads(mark()(z), "abcde")


def recurrent(mark):
    x = keras.Input((6, 3))
    return x, networks.heads(mark()(layers.GRU(5)(x)), "abcde")


def skipping(mark):
    """Five tasks, two of which read around the representation, too."""
    x = keras.Input((8,))
    h = networks.dense(6)(x)
    z = mark()(networks.dense(5)(h))
    around = layers.Concatenate()([z, h])
    return x, networks.heads(z, "abc") | networks.heads(around, "de")


def perceptron(mark):
    x = keras.Input((8,))
    h = networks.dense(6)(networks.dense(6)(x))
    return x, networks.heads(mark()(networks.dense(5)(h)), "abcdefgh")


def deep(mark):
    """Many tasks, of which neither `Z` nor the last layer tells all."""
    z = x = keras.Input((8,))
    for _ in range(4):
        z = networks.dense(12)(z)
    z = mark()(z)
    return x, {f"task{t:02}": layers.Dense(1)(z) for t in range(20)}


MANY_TASKS = (perceptron, normalized, recurrent, skipping, deep)


def step(structure, seed=1, b=6, **compile_args):
    """One step along the direction: the exact gradients, it, and the logs."""
    keras.utils.set_random_seed(seed)
    model = networks.mgda_model(
        structure, keras.optimizers.SGD(1.0), **compile_args
    )
    x, y = networks.data(model, b, seed)
    exact = oracle.task_gradients(model, structure, x, y)
    before = [v.numpy() for v in model.trainable_variables]
    logs = model.train_on_batch(x, y, return_dict=True)
    change = [
        old - v.numpy()
        for old, v in zip(before, model.trainable_variables, strict=True)
    ]
    return model, exact, change, logs


def cosines(exact, change):
    """Between the shared part of the direction and each task's gradient."""
    shared = [
        i
        for i, tasks in enumerate(oracle.reaching(exact.full))
        if len(tasks) > 1
    ]
    d = np.concatenate([change[i].ravel() for i in shared])
    found = []
    for of_task in exact.full:
        g = np.concatenate(
            [
                np.zeros(change[i].size)
                if of_task[i] is None
                else of_task[i].ravel()
                for i in shared
            ]
        )
        product = np.linalg.norm(g) * np.linalg.norm(d)
        found.append(np.vdot(g, d) / product if product > 1e-12 else 0.0)
    return np.array(found)


@pytest.mark.parametrize(
    "weighting",
    [pytest.param("mgda", marks=pytest.mark.slow), (0.9, 0.05, 0.05)],
    ids=["mgda", "given"],
)
@each_structure
@pytest.mark.sample(5)
def test_derivatives_are_those_of_the_true_gradients(structure, weighting):
    """With exact gradients the norms are exact, so the cosines are."""
    m = len([loss for loss in networks.task_losses(structure) if loss])
    if weighting != "mgda":
        weighting = networks.Constant(weighting[:m])
    _, exact, change, logs = step(
        structure,
        weighting=weighting,
        gradients="parameters",
        verify=True,
        run_eagerly=True,
    )
    expected = cosines(exact, change)
    assert logs["min_cosine"] == pytest.approx(expected.min(), abs=2e-3)
    assert logs["corrections"] == 0
    clear = np.abs(expected) > 1e-3
    assert (expected[clear] < 0).sum() == logs["conflicts"]


@networks.each_structure(
    always=(networks.plain, networks.bypass_of_all, networks.tied_embedding),
    structures=STRUCTURES,
)
@pytest.mark.sample(5)
def test_looking_changes_nothing(structure):
    for gradients in ("representation", "parameters"):
        looked, blind = (
            step(
                structure,
                gradients=gradients,
                verify=verify,
                run_eagerly=True,
            )
            for verify in (True, False)
        )
        for a, b in zip(looked[2], blind[2], strict=True):
            np.testing.assert_array_equal(a, b)
        assert set(looked[3]) - set(blind[3]) == set(LOOKED_AT)


@pytest.mark.parametrize(
    ("structure", "seed"),
    [(structure, 0) for structure in STRUCTURES]
    + [(structure, 0) for structure in MANY_TASKS]
    + [
        pytest.param(structure, seed, marks=pytest.mark.slow)
        for structure, seed in itertools.product(MANY_TASKS, (1, 2))
    ],
)
@pytest.mark.sample(5)
def test_verified_direction_conflicts_with_no_task(structure, seed):
    _, exact, change, logs = step(
        structure, seed, gradients="verified", verify=True, run_eagerly=True
    )
    assert cosines(exact, change).min() > -2e-4
    assert logs["min_cosine"] > -2e-4


def test_there_is_something_to_correct():
    """Else the test above would not test it."""
    num_corrections = [
        step(
            deep,
            seed,
            b=24,
            gradients="verified",
            verify=True,
            run_eagerly=True,
        )[3]["corrections"]
        for seed in range(4)
    ]
    assert max(num_corrections) > 0


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
    m=st.integers(2, 8),
    widths=st.lists(st.integers(2, 7), min_size=1, max_size=3),
    scale=st.integers(-2, 2),
    seed=st.integers(0, 10**6),
)
@pytest.mark.slow
def test_verified_keeps_the_promise_of_exact_mgda(m, widths, scale, seed):
    def structure(mark):
        z = x = keras.Input((4,))
        for width in widths:
            z = networks.dense(width)(z)
        z = mark()(z)
        # Labels cannot differ in scale here, so the outputs do.
        return x, {
            str(t): layers.Dense(
                1,
                kernel_initializer=keras.initializers.RandomNormal(
                    stddev=10.0 ** (scale * t / m), seed=seed + t
                ),
            )(z)
            for t in range(m)
        }

    _, exact, change, _ = step(
        structure, seed, gradients="verified", run_eagerly=True
    )
    assert cosines(exact, change).min() > -5e-4


def test_the_search_starts_from_z_and_the_last_layer_together():
    seen = {
        name: gram_seen(three_layers, gradients, max_corrections=0)[0]
        for name, gradients in {
            "z": "representation",
            "last": ["third"],
            "start": "verified",
        }.items()
    }
    scale = np.trace(seen["z"]) / np.trace(seen["last"])
    expected = (seen["z"] + scale * seen["last"]) / 2
    np.testing.assert_allclose(seen["start"], expected, rtol=1e-5)


def test_corrected_gram_matrix_knows_the_product():
    rng = np.random.default_rng(0)
    for m in (2, 5, 20):
        for scale in (1e-6, 1.0, 1e6):
            true = scale * _gram(rng, m)
            guess, w = _gram(rng, m), rng.dirichlet(np.ones(m))
            p = true @ w
            guess = products.scaled(*map(tf.constant, (guess, w, p)))
            assert w @ guess.numpy() @ w == pytest.approx(w @ p, rel=1e-12)
            found = products.corrected(guess, w, p).numpy()
            np.testing.assert_allclose(found @ w, p, rtol=1e-10)
            np.testing.assert_allclose(found, found.T)
            least = np.linalg.eigvalsh(found).min()
            assert least > -1e-12 * np.trace(found)


@pytest.mark.parametrize("m", [2, 5, 12])
def test_after_as_many_products_as_tasks_the_gram_matrix_is_known(m):
    rng = np.random.default_rng(m)
    true = np.cov(rng.normal(size=(m, 30))) + 1.0
    gram, known = tf.eye(m, dtype=tf.float64), tf.zeros([m, m], tf.float64)
    tried = made = known
    for k, w in enumerate(rng.dirichlet(np.ones(m), size=m)):
        u, Gu = products.conjugate(w, true @ w, tried, made)
        gram = products.corrected(gram, u, Gu)
        here = tf.one_hot(k, m, dtype=tf.float64)[:, None]
        tried, made = tried + here * u, made + here * Gu
        # This one, and all before.
        np.testing.assert_allclose(
            gram @ tf.transpose(tried), tf.transpose(made)
        )
    np.testing.assert_allclose(gram, true, rtol=1e-6)


def test_product_that_was_made_before_has_nothing_new():
    true, w = np.array([[2.0, -1.0], [-1.0, 3.0]]), np.array([0.3, 0.7])
    seen = tf.constant([w, [0.0, 0.0]]), tf.constant([true @ w, [0.0, 0.0]])
    for again in (w, w * (1 + 1e-9)):
        u, Gu = products.conjugate(again, true @ again, *seen)
        assert not np.any(u)
        assert not np.any(Gu)


def test_cosines_where_the_direction_is_rounded_to_nothing():
    p = tf.constant([1e-20, -1e-20], tf.float64)
    w = tf.constant([0.4, 0.6], tf.float64)
    found = products.cosines(tf.eye(2, dtype=tf.float64), w, p)
    assert np.isfinite(found).all()


def test_nothing_to_divide_by():
    zeros = tf.zeros([2, 2], tf.float64), *[tf.zeros([2], tf.float64)] * 2
    for function in (products.scaled, products.corrected):
        assert not function(*zeros).numpy().any()


def test_a_task_without_gradient_is_not_made_to_pay():
    gram = tf.constant(np.diag([2.0, 0.0, 1.0]))
    w, p = tf.constant([0.5, 0.0, 0.5], tf.float64), [1.0, 0.0, -0.25]
    found = products.cosines(gram, w, tf.constant(p, tf.float64))
    assert found[0] > 0 > found[2]
    assert found[1] == 1
    zeros = tf.zeros([2, 2], tf.float64), *[tf.zeros([2], tf.float64)] * 2
    np.testing.assert_array_equal(products.cosines(*zeros), [1.0, 1.0])


def _gram(rng, m):
    rows = rng.normal(size=(m, 7)) + rng.normal(size=7)
    return rows @ rows.T


# Layers


def three_layers(mark):
    x = keras.Input((8,))
    h = layers.Dense(6, "tanh", name="first")(x)
    part = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, "tanh", name="inner")],
        name="part",
    )
    relu = layers.ReLU(name="relu")(part(h))
    z = mark()(layers.Dense(4, "tanh", name="third")(relu))
    return x, {task: layers.Dense(1, name=f"head_{task}")(z) for task in "abcd"}


def gram_seen(structure, gradients, **compile_args):
    weighting = networks.Constant([0.1, 0.2, 0.3, 0.4])
    _, exact, change, _ = step(
        structure,
        weighting=weighting,
        gradients=gradients,
        run_eagerly=True,
        **compile_args,
    )
    ((gram, _),) = weighting.calls
    given = oracle.direction(exact.full, [0.1, 0.2, 0.3, 0.4])
    for a, b in zip(change, given, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    return gram.numpy(), exact


@pytest.mark.parametrize(
    ("gradients", "variables"),
    [
        (["third"], [4, 5]),
        (["first"], [0, 1]),
        (["first", "third"], [0, 1, 4, 5]),
        (["part"], [2, 3]),
        (["inner"], [2, 3]),
        ("last", [2, 3, 4, 5]),
        (["first", "part", "third"], range(6)),
    ],
)
def test_gram_matrix_is_that_of_the_layers(gradients, variables):
    gram, exact = gram_seen(three_layers, gradients)
    expected = oracle._gram(exact.full, variables)
    np.testing.assert_allclose(gram, expected, rtol=1e-4, atol=1e-7)


def of_blocks(names, choose):
    """The Gram matrix that is seen in an encoder of three like blocks."""
    keras.utils.set_random_seed(0)
    x = z = keras.Input((5,))
    blocks = []
    for name in names:
        h = keras.Input((5,))
        y = layers.Dense(5, "tanh", name=f"{name}first")(h)
        blocks.append(keras.Model(h, layers.Dense(5, name=f"{name}second")(y)))
        z = blocks[-1](z)
    z = SharedRepresentation()(z)
    model = MGDAModel(x, {t: layers.Dense(1)(z) for t in "ab"})
    weighting = networks.Constant([0.5, 0.5])
    model.compile(
        "sgd",
        {"a": "mse", "b": "mae"},
        weighting=weighting,
        gradients=choose(blocks),
        run_eagerly=True,
    )
    model.train_on_batch(*networks.data(model))
    return weighting.calls[0][0]


@pytest.mark.parametrize(
    "choose",
    [
        lambda blocks: [blocks[1].layers[2]],
        lambda blocks: [blocks[0].layers[1], blocks[2]],
        lambda blocks: "last",
    ],
    ids=["layer", "layer and block", "last"],
)
def test_submodels_may_hold_layers_of_the_same_name(choose):
    np.testing.assert_allclose(
        of_blocks(("", "", ""), choose), of_blocks("uvw", choose), rtol=1e-5
    )


def test_a_name_of_several_layers_is_refused():
    with refused("that of one layer. Received: 'second', of which"):
        of_blocks(("", ""), lambda _: ["second"])


def test_what_comes_around_the_representation_is_seen():
    weighting = networks.Constant([1.0] * 5)
    _, exact, _, _ = step(
        skipping, weighting=weighting, gradients="last", run_eagerly=True
    )
    ((gram, _),) = weighting.calls
    expected = oracle._gram(exact.full, range(4))
    np.testing.assert_allclose(gram, expected, rtol=1e-4, atol=1e-7)


def test_last_layers_are_named(caplog):
    with caplog.at_level("INFO", "keras_mgda"):
        step(three_layers, gradients="last", run_eagerly=True)
    assert "Task gradients: those of part/inner, third." in caplog.messages


def layers_and_their_normalizations(mark):
    """Normalizations hold vectors only, of the layers that they follow."""
    x = keras.Input((8,))
    z = layers.Dense(6, name="first")(x)
    z = layers.LayerNormalization(name="first_norm")(z)
    z = layers.Dense(5, name="second", use_bias=False)(z)
    z = layers.BatchNormalization(name="second_norm")(z)
    z = layers.Dense(4, name="third", use_bias=False)(z)
    z = layers.BatchNormalization(name="third_norm")(z)
    return x, networks.heads(mark()(z))


def test_normalizations_are_not_layers_on_their_own(caplog):
    model = networks.mgda_model(
        layers_and_their_normalizations, gradients="last", run_eagerly=True
    )
    with caplog.at_level("INFO", "keras_mgda"):
        model.train_on_batch(*networks.data(model))
    last = "second, second_norm, third, third_norm"
    assert f"Task gradients: those of {last}." in caplog.messages


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        (["head_a"], r"Received: 'head_a', which is in a head.*'first'"),
        (["relu"], r"Received: 'relu', which has none"),
        (["no such"], r"Received: 'no such', which has none"),
        ([layers.Dense(1, name="other")], r"Received: 'other', which has none"),
        ([], r"a list of layers of the encoder. Received: \[\]"),
        ("everything", "Received: 'everything'"),
    ],
)
def test_other_layers_are_refused(gradients, message):
    with refused(message):
        step(three_layers, gradients=gradients, run_eagerly=True)


def test_layers_are_kept_with_the_model(tmp_path):
    model = networks.mgda_model(three_layers)
    model.compile(
        "sgd",
        networks.losses(model.output),
        gradients=[model.get_layer("third"), "first"],
        verify=True,
        max_corrections=3,
        run_eagerly=True,
    )
    x, y = networks.data(model)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    config = loaded.get_compile_config()
    assert config["gradients"] == ["third", "first"]
    assert config["verify"] is True
    assert config["max_corrections"] == 3
    loaded.run_eagerly = True
    history = loaded.fit(x, y, verbose=0).history
    assert set(LOOKED_AT) < set(history)


# Where it runs


@pytest.mark.parametrize(
    ("structure", "gradients", "graph"),
    [
        pytest.param(
            *case,
            marks=()
            if case
            in ((skipping, "last", "graph"), (skipping, "verified", "xla"))
            else pytest.mark.slow,
        )
        for case in itertools.product(
            (normalized, skipping, recurrent),
            ("last", "verified"),
            ("graph", "xla"),
        )
    ],
)
@pytest.mark.sample(1)
def test_graphs_compute_what_eager_code_does(structure, gradients, graph):
    expected = step(structure, 2, gradients=gradients, run_eagerly=True)[2]
    change = step(
        structure, 2, gradients=gradients, jit_compile=graph == "xla"
    )[2]
    for a, b in zip(change, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.sample(1)
def test_mixed_precision(policy):
    with dtype_policy(policy):
        model = networks.mgda_model(
            perceptron,
            "adam",
            gradients="verified",
            verify=True,
            run_eagerly=True,
        )
        x, y = networks.data(model, 24)
        y = {task: of_task.astype("float32") for task, of_task in y.items()}
        history = model.fit(x, y, epochs=5, verbose=0).history
    for name in ("loss", *LOOKED_AT):
        assert np.isfinite(history[name]).all()
    assert min(history["min_cosine"][1:]) > -0.02


@pytest.mark.slow
def test_replicas_take_the_same_direction(strategy):
    found = []
    for where in (tf.distribute.get_strategy(), strategy):
        for gradients in ("verified", "last"):
            with where.scope():
                keras.utils.set_random_seed(3)
                model = networks.mgda_model(
                    perceptron,
                    keras.optimizers.SGD(0.1),
                    gradients=gradients,
                    verify=True,
                    max_corrections=3,
                )
            x, y = networks.data(model, 24)
            logs = model.fit(x, y, batch_size=24, shuffle=False, verbose=0)
            found.append((model.get_weights(), logs.history))
    for one, two in ((found[0], found[2]), (found[1], found[3])):
        for a, b in zip(one[0], two[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        for name in LOOKED_AT:
            assert one[1][name] == pytest.approx(two[1][name], abs=1e-4)


def test_evaluation_has_no_directions():
    model = networks.mgda_model(networks.plain, verify=True, run_eagerly=True)
    x, y = networks.data(model)
    history = model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0)
    names = set(history.history)
    assert set(LOOKED_AT) < names
    assert not {f"val_{name}" for name in LOOKED_AT} & names
    evaluated = model.evaluate(x, y, verbose=0, return_dict=True)
    assert set(evaluated) == {n[4:] for n in names if n.startswith("val_")}
    assert set(model.test_on_batch(x, y, return_dict=True)) == set(evaluated)


# Bad input


class NoSecondDerivative(layers.Layer):
    def call(self, x):
        return tf.nn.fractional_max_pool(x, [1, 1.5, 1.5, 1], seed=1)[0]


@pytest.mark.parametrize(
    "compile_args",
    [{"gradients": "verified"}, {"verify": True, "run_eagerly": True}],
)
def test_operation_without_second_derivative_is_named(compile_args):
    x = keras.Input((9, 9, 1))
    z = layers.Conv2D(2, 3)(x)
    z = layers.Flatten()(NoSecondDerivative()(z))
    model = MGDAModel(x, networks.heads(SharedRepresentation()(z)))
    model.compile("sgd", loss="mse", **compile_args)
    x, y = np.ones((4, 9, 9, 1)), np.ones((4, 1))
    before = model.get_weights()
    with refused("must have a second derivative.*FractionalMaxPoolGrad"):
        model.train_on_batch(x, {"a": y, "b": y})
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("where", ["graph", "eager"])
def test_nan_ends_the_corrections_and_is_seen(where):
    model = networks.mgda_model(
        perceptron,
        gradients="verified",
        verify=True,
        run_eagerly=where == "eager",
    )
    x, y = networks.data(model)
    y["c"][2] = np.nan
    logs = model.train_on_batch(x, y, return_dict=True)
    assert np.isnan(logs["min_cosine"])
    assert logs["corrections"] == 0
    assert all(map(np.isnan, model.task_weights.values()))


@pytest.mark.parametrize(
    "weighting", ["uniform", "pcgrad", "famo", weightings.CRMOGM()]
)
def test_weightings_that_cannot_weigh_again_are_refused(weighting):
    with refused("must have a weighting that chooses by the Gram matrix and"):
        networks.mgda_model(
            networks.plain, gradients="verified", weighting=weighting
        )


@pytest.mark.parametrize("max_corrections", [-1, 1.5, None, True])
def test_max_corrections_is_a_number(max_corrections):
    with refused("`max_corrections` must be a whole number"):
        networks.mgda_model(
            networks.plain,
            gradients="verified",
            max_corrections=max_corrections,
        )
