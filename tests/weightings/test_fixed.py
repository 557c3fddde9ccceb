"""Task weights that a user changes while a model trains."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda import GradientFork, weightings
from keras_mgda.weightings import CRMOGM, Fixed, Normalized, Uniform
from tests.support import networks

EYE = tf.eye(2)


def ramp(end=2.0):
    return keras.optimizers.schedules.PolynomialDecay(0.0, 4, end)


@keras.saving.register_keras_serializable("tests")
def doubling(step):
    return 2.0 ** tf.cast(step, tf.float32)


def built(task_weights, tasks=("a", "b")):
    weighting = Fixed(task_weights)
    weighting.build(tasks)
    return weighting


@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_an_assignment_takes_effect_without_tracing_anew(jit_compile):
    weighting = built({"b": 1.0, "a": 2.0})
    weigh = weighting
    if jit_compile is not None:
        weigh = tf.function(weighting, jit_compile=jit_compile)
    assert weigh(EYE).numpy().tolist() == [2.0, 1.0]
    weighting.assign({"a": 0.5})
    assert weigh(EYE).numpy().tolist() == [0.5, 1.0]
    weighting.assign([3.0, 4.0])  # in the order of the tasks
    assert weigh(EYE).numpy().tolist() == [3.0, 4.0]
    weighting.task_weights = {"b": 5.0}
    assert weigh(EYE).numpy().tolist() == [3.0, 5.0]
    assert weighting.task_weights == {"b": 5.0, "a": 3.0}
    if jit_compile is not None:
        assert weigh.experimental_get_tracing_count() == 1


@pytest.mark.slow
def test_an_assignment_compiles_nothing(count_compilations):
    script = """
import tensorflow as tf
from keras_mgda import weightings
weighting = weightings.Fixed([1.0, 2.0])
weighting.build(["a", "b"])
weigh = tf.function(weighting, jit_compile=True)
for step in range(3):
    weigh(tf.eye(2))
    weighting.assign([3.0, float(step)])
"""
    assert count_compilations(script) == 1


def test_editing_in_place_is_an_error():
    weighting = Fixed({"a": 1.0, "b": 1.0})
    with pytest.raises(TypeError):
        weighting.task_weights["a"] = 2.0
    with pytest.raises(TypeError):
        Fixed([1.0, 2.0]).task_weights[0] = 2.0


def test_without_weights_all_are_one_until_assigned():
    weighting = built(None)
    assert weighting(EYE).numpy().tolist() == [1.0, 1.0]
    weighting.assign({"b": 2.0})
    assert weighting(EYE).numpy().tolist() == [1.0, 2.0]
    assert weighting.get_config() == {"task_weights": [1.0, 2.0]}


@pytest.mark.parametrize("jit_compile", [None, True])
def test_schedules_count_the_steps(jit_compile):
    weighting = built({"a": ramp(), "b": doubling})
    weigh = weighting
    if jit_compile is not None:
        weigh = tf.function(weighting, jit_compile=jit_compile)
    found = [weigh(EYE).numpy().tolist() for _ in range(6)]
    assert found == [[min(k, 4) / 2, 2.0**k] for k in range(6)]


def test_a_variable_is_read_at_every_step():
    variable = keras.Variable(1.0)
    weighting = weightings.get({"a": variable, "b": 3.0})
    weighting.build(["a", "b"])
    weigh = tf.function(weighting, jit_compile=True)
    assert weigh(EYE).numpy().tolist() == [1.0, 3.0]
    variable.assign(0.25)
    assert weigh(EYE).numpy().tolist() == [0.25, 3.0]
    assert weighting.get_config() == {"task_weights": {"a": 0.25, "b": 3.0}}


def test_schedules_survive_json():
    weighting = Fixed({"a": ramp(), "b": doubling, "c": 0.5})
    config = keras.saving.serialize_keras_object(weighting)
    same = weightings.get(json.loads(json.dumps(config)))
    for one in (weighting, same):
        one.build(["a", "b", "c"])
    for _ in range(5):
        np.testing.assert_array_equal(same(tf.eye(3)), weighting(tf.eye(3)))


def test_an_earlier_config_loads():
    config = {
        "module": "keras_mgda.weightings.scalarization",
        "class_name": "Fixed",
        "config": {"task_weights": {"a": 0.1, "b": 2}},
        "registered_name": "keras_mgda>Fixed",
    }
    assert weightings.get(config).task_weights == {"a": 0.1, "b": 2.0}


def compiled(weighting, **options):
    model = networks.mgda_model(
        networks.plain, weighting=weighting, run_eagerly=True, **options
    )
    return model, networks.data(model)


def test_the_weighting_that_was_given_sets_those_of_its_models():
    given = Fixed({"a": 1.0, "b": 1.0})
    (model, data), (other, _) = compiled(given), compiled(given)
    given.assign({"b": 4.0})
    for one in (model, other):
        one.train_on_batch(*data)
        assert one.task_weights == {"a": 1.0, "b": 4.0}
    # That of a model is its own.
    model._descent.weighting.assign({"a": 2.0})
    for one, a in ((model, 2.0), (other, 1.0)):
        one.train_on_batch(*data)
        assert one.task_weights == {"a": a, "b": 4.0}
    later, _ = compiled(given)
    later.train_on_batch(*data)
    assert later.task_weights == {"a": 1.0, "b": 4.0}


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_was_assigned_is_saved_and_cloned(wrapped, tmp_path):
    given = Fixed({"a": 1.0, "b": ramp()})
    model, data = compiled(CRMOGM(given, alpha=0.0) if wrapped else given)
    given.assign({"a": 0.1})
    for _ in range(2):
        model.train_on_batch(*data)
    assert model.task_weights == pytest.approx({"a": 0.1, "b": 0.5})
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        one.train_on_batch(*data)
        assert one.task_weights == pytest.approx({"a": 0.1, "b": 1.0})


def test_a_weight_file_without_weights_of_tasks_leaves_them(tmp_path):
    model, data = compiled("uniform")
    model.save_weights(tmp_path / "of.weights.h5")
    model, data = compiled({"a": 1.0, "b": 3.0})
    model.load_weights(tmp_path / "of.weights.h5")
    model.train_on_batch(*data)
    assert model.task_weights == {"a": 1.0, "b": 3.0}


def test_a_fork_takes_numbers_and_refuses_schedules():
    weighting = Fixed([0.5, 2.0])
    fork = GradientFork(2, weighting)
    GradientFork(2, weighting)  # which the first one has built
    z = tf.Variable([[1.0, 2.0]])

    def gradient():
        with tf.GradientTape() as tape:
            one, two = fork(z.value())
            loss = tf.reduce_sum(one) + 10 * tf.reduce_sum(two)
        return tape.gradient(loss, z).numpy().tolist()

    assert gradient() == [[20.5, 20.5]]
    fork.weighting.assign([0.0, 1.0])
    assert gradient() == [[10.0, 10.0]]
    same = GradientFork.from_config(fork.get_config())
    assert same.weighting.task_weights == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"keeps no state\. Received: Fixed"):
        GradientFork(2, Fixed([ramp(), 1.0]))


@pytest.mark.parametrize("of", ["built", "new"])
@pytest.mark.parametrize(
    ("given", "numbers", "match"),
    [
        ({"a": 1.0, "b": 1.0}, {"c": 1.0}, r"to the tasks.*Received: \{'c'"),
        ({"a": 1.0, "b": 1.0}, [1.0, 2.0, 3.0], r"to the tasks.*Received"),
        ([1.0, 1.0], [1.0], r"to the tasks.*Received: \[1\.0\] for"),
        ([1.0, 1.0], [1.0, -1.0], r"finite and not negative.*Received"),
        ({"a": 1.0, "b": 1.0}, {"a": np.nan}, r"finite and not.*Received"),
        ({"a": ramp(), "b": 1.0}, {"a": 1.0}, r"is a number.*which follows"),
    ],
)
def test_assignments_that_do_not_fit_change_nothing(given, numbers, match, of):
    weighting = built(given) if of == "built" else Fixed(given)
    before = weighting.task_weights
    with pytest.raises(ValueError, match=match):
        weighting.assign(numbers)
    assert weighting.task_weights == before


@pytest.mark.parametrize("bad", ["1", None, -1.0, np.nan, [1.0]])
def test_weights_that_are_none(bad):
    with pytest.raises(ValueError, match=r"finite and not negative\. Received"):
        Fixed({"a": bad, "b": 1.0})


def test_it_remembers_only_what_a_schedule_counts():
    assert not Fixed([1.0, 2.0]).remembers
    assert not built([1.0, 2.0]).remembers
    assert Fixed([1.0, ramp()]).remembers
    assert Normalized(weightings.PCGrad()).remembers
    assert not Uniform().remembers
