"""At which steps is looked, for both kinds of `verify`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda.descent.looks import Looks
from tests.support import networks
from tests.support.refusal import refused

METRIC = {True: "min_cosine", "step": "worst_change"}
each_kind = pytest.mark.parametrize("verify", METRIC)


def found(verify, steps=7, model=None, **kwargs):
    """The metric of each step, and the model."""
    if model is None:
        keras.utils.set_random_seed(0)
        model = networks.mgda_model(
            networks.three_tasks,
            keras.optimizers.SGD(0.1),
            verify=verify,
            **kwargs,
        )
    x, y = networks.data(model)
    values = []
    for _ in range(steps):
        model.reset_metrics()
        logs = model.train_on_batch(x, y, return_dict=True)
        values.append(float(logs[METRIC[verify]]))
    return values, model


@pytest.mark.parametrize("run_eagerly", [True, False])
@each_kind
@pytest.mark.sample(2)
def test_the_first_of_every_k_steps_is_looked_at(verify, run_eagerly):
    each, model = found(verify, run_eagerly=run_eagerly)
    some, other = found(verify, run_eagerly=run_eagerly, verify_every=3)
    expected = [v if i % 3 == 0 else np.nan for i, v in enumerate(each)]
    np.testing.assert_allclose(some, expected, rtol=1e-5)
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@each_kind
@pytest.mark.sample(1)
def test_metrics_are_means_over_the_steps_looked_at(verify):
    each, _ = found(verify)
    keras.utils.set_random_seed(0)
    model = networks.mgda_model(
        networks.three_tasks,
        keras.optimizers.SGD(0.1),
        verify=verify,
        verify_every=3,
    )
    x, y = networks.data(model)
    data = tf.data.Dataset.from_tensors((x, y)).repeat(7)
    logs = model.fit(data, verbose=0).history
    expected = np.mean([each[i] for i in (0, 3, 6)])
    assert logs[METRIC[verify]][0] == pytest.approx(expected, rel=1e-4)


@each_kind
def test_steps_are_counted_on_after_loading(verify, tmp_path):
    kwargs = {"verify_every": 3, "run_eagerly": True}
    whole, _ = found(verify, **kwargs)
    first, model = found(verify, steps=2, **kwargs)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    config = loaded.get_compile_config()
    assert (config["verify"], config["verify_every"]) == (verify, 3)
    second, _ = found(verify, steps=5, model=loaded)
    np.testing.assert_allclose(first + second, whole, rtol=1e-4)


@each_kind
@pytest.mark.sample(2)
def test_the_end_of_the_data_is_no_step(verify):
    """Of data of unknown cardinality it is found out by a step."""
    _, model = found(verify, steps=0, verify_every=3)
    x, y = networks.data(model)
    data = tf.data.Dataset.from_tensors((x, y)).repeat(2)
    data = data.filter(lambda *_: True)
    for epoch in range(3):
        model.fit(data, verbose=0)
        counted = model._looks_state.value("num_steps")
        assert counted == 2 * (epoch + 1)


@pytest.mark.sample(1)
def test_verified_directions_are_all_looked_at():
    values, _ = found(True, gradients="verified", verify_every=3)
    assert np.isfinite(values).all()


@each_kind
def test_a_weighting_that_looks_at_no_gradients(verify):
    values, _ = found(verify, weighting="uniform", verify_every=2)
    assert [np.isfinite(v) for v in values] == [True, False] * 3 + [True]


@pytest.mark.slow
@each_kind
def test_xla(verify):
    values, _ = found(verify, verify_every=3, jit_compile=True)
    each, _ = found(verify)
    expected = [v if i % 3 == 0 else np.nan for i, v in enumerate(each)]
    np.testing.assert_allclose(values, expected, rtol=1e-3)


def test_nothing_is_kept_where_nothing_is_looked_at():
    assert Looks(False, 5).state is None
    assert Looks("step", 1).state is None
    assert Looks(False, 5).metrics == []


def test_no_look_is_not_zero():
    (metric, *_) = Looks("step", 2).metrics
    assert np.isnan(metric.result())
    metric.update_state(0.0)
    assert metric.result() == 0.0


@pytest.mark.parametrize("every", [0, -1, 2.0, True, "2", None])
def test_other_numbers_of_steps_are_refused(every):
    with refused("`verify_every` must be a whole number of steps"):
        networks.mgda_model(networks.plain, verify=True, verify_every=every)
