"""Whose each variable of an optimizer is, for the optimizers of Keras."""

import random

import keras
import numpy as np
import pytest
from keras import layers

from keras_mgda.internals import global_seed_state, variables_of_slots

OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "accumulation": lambda: keras.optimizers.SGD(
        0.1, gradient_accumulation_steps=2
    ),
    "adam": lambda: keras.optimizers.Adam(0.1, amsgrad=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.1, momentum=0.9),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "lion": lambda: keras.optimizers.Lion(0.1),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Nadam(0.1)
    ),
}


def submodel():
    """Both of them hold layers, and so variables, of the same path."""
    x = keras.Input((4,))
    h = layers.Dense(4, name="fc")(x)
    return keras.Model(x, layers.Dense(4, name="fc_out")(h))


@pytest.fixture(scope="module")
def variables():
    x = keras.Input((4,))
    model = keras.Model(x, [submodel()(x), submodel()(x)])
    paths = [v.path for v in model.trainable_variables]
    assert len(set(paths)) == len(paths) / 2
    return model.trainable_variables


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_slots_that_move_are_those_of_the_variable_with_a_gradient(
    make, variables
):
    optimizer = make()
    optimizer.build(variables)
    zeros = [np.zeros(v.shape, "float32") for v in variables]
    owners = variables_of_slots(optimizer.variables, variables)
    assert {i for i in owners if i is not None} == {*range(len(variables))}
    initial = [v.numpy() for v in optimizer.variables]
    any_moved = set()
    for i in range(len(variables)):
        before = [v.numpy() for v in optimizer.variables]
        gradients = list(zeros)
        gradients[i] = zeros[i] + 1.0
        optimizer.apply(gradients, variables)
        # Of what did not move yet, which stays under a zero gradient.
        moved = {
            owner
            for slot, first, old, owner in zip(
                optimizer.variables, initial, before, owners, strict=True
            )
            if (old == first).all() and (slot.numpy() != old).any()
        }
        assert moved <= {i, None}
        any_moved |= moved
    assert any_moved - {None}


def test_a_path_that_begins_like_another():
    x = keras.Input((2,))
    y = layers.Dense(1, name="a_kernel_b")(layers.Dense(2, name="a")(x))
    variables = keras.Model(x, y).trainable_variables
    optimizer = keras.optimizers.SGD(momentum=0.9)
    optimizer.build(variables)
    owners = variables_of_slots(optimizer.variables, variables)
    assert owners[-4:] == [0, 1, 2, 3]


def test_what_is_drawn_without_a_seed_is_drawn_from_this_state():
    before = random.getstate()
    state = global_seed_state()
    assert random.getstate() == before
    value = state.numpy()
    first = keras.random.normal((3,)).numpy()
    assert (state.numpy() != value).any()
    state.assign(value)
    np.testing.assert_array_equal(keras.random.normal((3,)), first)
