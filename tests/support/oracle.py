"""What a training step must do, worked out by plain tapes and by NumPy.

Each task's gradient comes from a backward pass of its own through the whole
network; what is shared, and what goes around a marker, is read off which of
these gradients exist. Variables are counted in `trainable_variables` order.
"""

import itertools
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tests.support.networks import leaves, losses


class Cut(keras.layers.Layer):
    """A marker that stops gradients and adds a zero, whose gradient is dL/dZ.

    `tape` and `zeros` belong to the one backward pass that is under way.
    """

    tape = None
    zeros = ()

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs):
        return keras.tree.map_structure(self._cut, inputs)

    def _cut(self, z):
        if Cut.tape is None:
            return z
        zero = tf.zeros_like(z)
        Cut.tape.watch(zero)
        Cut.zeros.append(zero)
        return tf.stop_gradient(z) + zero


class Gradients(NamedTuple):
    """`[task][variable]`, `None` where a task does not reach.

    Attributes:
        full: of the network.
        around: of the network cut at its markers.
        at_cut: `dL_t/dZ`, `[task][marker]`.
    """

    full: list
    around: list
    at_cut: list


def task_gradients(model, structure, x, y):
    """The gradients of every task of an `MGDAModel` made from `structure`."""
    cut = keras.Model(*structure(Cut))
    cut.set_weights(model.get_weights())
    full, _ = _gradients(model, x, y)
    around, at_cut = _gradients(cut, x, y)
    return Gradients(full, around, at_cut)


def _gradients(model, x, y):
    with tf.GradientTape(persistent=True) as tape:
        Cut.tape, Cut.zeros = tape, []
        outputs = model(x, training=True)
        cut, Cut.tape = Cut.zeros, None
        task_losses = [
            tf.reduce_mean((p - t) ** 2)
            for p, t, loss in zip(
                leaves(outputs), leaves(y), leaves(losses(y)), strict=True
            )
            if loss
        ]
    sources = [variable.value for variable in model.trainable_variables]
    found = [tape.gradient(loss, [sources, cut]) for loss in task_losses]
    return [_numpy(g) for g, _ in found], [_numpy(g) for _, g in found]


def _numpy(gradients):
    return [
        None if g is None else tf.convert_to_tensor(g).numpy().astype("float64")
        for g in gradients
    ]


def reaching(gradients):
    """For each variable the tasks that reach it."""
    return [
        [t for t, g in enumerate(of_tasks) if g is not None]
        for of_tasks in zip(*gradients, strict=True)
    ]


def direction(full, task_weights):
    """Heads plain, shared variables weighted."""
    found = []
    for i, tasks in enumerate(reaching(full)):
        weights = task_weights if len(tasks) > 1 else [1.0] * len(full)
        found.append(sum(weights[t] * full[t][i] for t in tasks))
    return found


def gram_of_parameters(gradients):
    """Over all variables that two tasks reach."""
    shared = [i for i, t in enumerate(reaching(gradients.full)) if len(t) > 1]
    return _gram(gradients.full, shared)


def gram_of_representation(gradients):
    """Over `Z`, and the shared variables that some task reaches around it."""
    around = [
        i
        for i, tasks in enumerate(reaching(gradients.full))
        if len(tasks) > 1 and reaching(gradients.around)[i]
    ]
    return _gram(gradients.at_cut, range(len(gradients.at_cut[0]))) + _gram(
        gradients.around, around
    )


GRAM = {
    "representation": gram_of_representation,
    "parameters": gram_of_parameters,
}


def _gram(gradients, leaves):
    m = len(gradients)
    gram = np.zeros((m, m))
    for t, s, i in itertools.product(range(m), range(m), leaves):
        if gradients[t][i] is not None and gradients[s][i] is not None:
            gram[t, s] += np.vdot(gradients[t][i], gradients[s][i])
    return gram
