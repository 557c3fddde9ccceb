"""Files that an earlier version wrote, `earlier/write.py`, load and go on."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mgda
from tests.conformance.earlier import write

FOLDER = pathlib.Path(write.__file__).parent
EXPECTED = np.load(FOLDER / "expected.npz")

each_case = pytest.mark.parametrize("name", write.CASES)


def assert_answers(model, name, when):
    """As the earlier version did, to what Keras's own kernels may round."""
    x, _ = write.data()
    for task, answer in model(x, training=False).items():
        np.testing.assert_allclose(
            answer, EXPECTED[f"{name}/{when}/{task}"], rtol=1e-4, atol=1e-5
        )


@each_case
@pytest.mark.sample(2)
def test_training_goes_on_from_a_keras_file(name):
    """With the states of the optimizer and of the weighting."""
    model = keras.models.load_model(FOLDER / f"{name}.keras")
    assert isinstance(model, keras_mgda.MGDAModel)
    assert_answers(model, name, "saved")
    model.run_eagerly = True
    write.train(model)
    assert model.optimizer.iterations.numpy() == 10
    assert_answers(model, name, "after")


@each_case
@pytest.mark.sample(4)
def test_training_goes_on_from_a_weights_file(name):
    model = write.model(**write.CASES[name])
    model.optimizer.build(model.trainable_variables)
    model.load_weights(FOLDER / f"{name}.weights.h5")
    assert_answers(model, name, "saved")
    model.run_eagerly = True
    write.train(model)
    assert_answers(model, name, "after")


def test_a_saved_model_answers():
    served = tf.saved_model.load(str(FOLDER / "served" / "1")).signatures
    x, _ = write.data()
    expected = {task: EXPECTED[f"mgda/saved/{task}"] for task in ("a", "b")}
    answers = served["serving_default"](features=tf.constant(x))
    assert answers.keys() == expected.keys()
    for task, answer in expected.items():
        np.testing.assert_allclose(answers[task], answer, rtol=1e-4, atol=1e-6)
