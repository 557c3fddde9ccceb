"""The update: what stock Keras does for overridden methods and lost data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda import MGDAModel, SharedRepresentation, weightings
from tests.support import networks


def test_an_optimizer_that_overrides_apply_gradients_is_asked():
    class Counting(keras.optimizers.SGD):
        calls = 0

        def apply_gradients(self, grads_and_vars):
            self.calls += 1
            return super().apply_gradients(grads_and_vars)

    model = MGDAModel(*networks.plain(SharedRepresentation))
    optimizer = Counting()
    model.compile(optimizer, loss=dict.fromkeys("ab", "mse"), run_eagerly=True)
    model.train_on_batch(*networks.data(model))
    assert optimizer.calls == 1


def test_a_subclass_that_overrides_metrics_trains():
    """As the guides of Keras do it."""

    class WithMetrics(MGDAModel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.own = keras.metrics.Mean(name="own")

        @property
        def metrics(self):
            return [self.own]

        def train_step(self, data):
            logs = super().train_step(data)
            self.own.update_state(3.0)
            return logs

    model = WithMetrics(*networks.plain(SharedRepresentation))
    model.compile("sgd", loss=dict.fromkeys("ab", "mse"))
    before = [v.numpy() for v in model.trainable_variables]
    history = model.fit(*networks.data(model), verbose=0).history
    assert history == {"own": [3.0]}
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert np.abs(old - variable.numpy()).max() > 0


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": weightings.Random(seed=0)},
        {"weighting": weightings.FAMO()},
        pytest.param({"update_every": 3}, marks=pytest.mark.slow),
        {"update_every": 3, "weighting": weightings.Random(seed=0)},
    ],
)
@pytest.mark.sample(1)
def test_steps_without_data_leave_the_state_as_it_was(options):
    """An epoch of unknown size ends with a step whose data have ended."""

    def train(known):
        keras.utils.set_random_seed(0)
        model = MGDAModel(*networks.plain(SharedRepresentation))
        model.compile("sgd", loss=dict.fromkeys("ab", "mse"), **options)
        x, y = networks.data(model)
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(
            4, drop_remainder=True
        )
        if not known:
            batches = batches.filter(lambda *_: True)
        model.fit(batches, epochs=3, verbose=0)
        states = model._descent.states.values()
        return [
            v.numpy()
            for state in states
            if state is not None
            for v in state.variables
        ] + [v.numpy() for v in model.weights]

    for known, unknown in zip(train(True), train(False), strict=True):
        np.testing.assert_allclose(known, unknown, rtol=1e-6, atol=1e-7)


def test_a_list_of_train_on_batch_ends_as_it_does_without_verify():
    model = MGDAModel(*networks.plain(SharedRepresentation))
    found = []
    for verify in (False, True):
        model.compile(
            keras.optimizers.SGD(0.0),
            loss=dict.fromkeys("ab", "mse"),
            metrics={"b": "mae"},
            verify=verify,
            run_eagerly=True,
        )
        found.append(model.train_on_batch(*networks.data(model)))
    assert found[0] == pytest.approx(found[1])
    logs = model.train_on_batch(*networks.data(model), return_dict=True)
    assert {"conflicts", "corrections", "min_cosine"} <= logs.keys()


def test_an_h5_file_holds_the_model_alone(tmp_path):
    model = MGDAModel(*networks.plain(SharedRepresentation))
    model.compile("sgd", loss=dict.fromkeys("ab", "mse"))
    path = tmp_path / "model.h5"
    with pytest.warns(UserWarning, match="Save it as '.keras'"):
        model.save(path)
    with keras.saving.custom_object_scope({type(model).__name__: type(model)}):
        loaded = keras.models.load_model(path)
    assert not loaded.compiled
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_call_in_a_function_of_its_own_is_told():
    class Inside(MGDAModel):
        def __init__(self):
            super().__init__()
            self.encoder = networks.dense(4)
            self.shared = SharedRepresentation()
            self.a, self.b = keras.layers.Dense(1), keras.layers.Dense(1)

        @tf.function
        def call(self, x):
            z = self.shared(self.encoder(x))
            return {"a": self.a(z), "b": self.b(z)}

    model = Inside()
    model.compile("sgd", loss=dict.fromkeys("ab", "mse"))
    x = np.ones((4, 8), "float32")
    with pytest.raises(ValueError, match="Remove the decorator from `call`"):
        model.train_on_batch(x, {t: np.ones((4, 1)) for t in "ab"})


@pytest.mark.parametrize(
    "jit_compile", [pytest.param(False, marks=pytest.mark.slow), True]
)
@pytest.mark.parametrize("weighting", ["famo", "geometric_mean", "uncertainty"])
@pytest.mark.sample(1)
def test_losses_that_a_weighting_does_not_admit_change_nothing(
    weighting, jit_compile
):
    def negative(y_true, y_pred):
        return -tf.abs(y_pred) - 1.0

    model = MGDAModel(*networks.plain(SharedRepresentation))
    model.compile(
        keras.optimizers.Adam(0.1, weight_decay=0.1),
        loss={"a": "mse", "b": negative},
        weighting=weighting,
        jit_compile=jit_compile,
    )
    x, y = networks.data(model)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(ValueError, match=r"Received: {'a': .*, 'b': -1"):
        model.fit(x, y, verbose=0)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert model.optimizer.iterations.numpy() == 0
    with pytest.raises(ValueError, match=r"Received: {'a': .*, 'b': -1"):
        model.train_on_batch(x, y)
