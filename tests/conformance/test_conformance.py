"""Every feature of Keras, with every kind of network, in both styles.

With `weighting="uniform"` an `MGDAModel` has to end with the variables, the
optimizer's variables and the logs of a stock `keras.Model` that is treated in
the same way. `test_keras.py` looks closer, at one network.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from tests.support import twins
from tests.support.dtype_policy import dtype_policy

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
SIZE, BATCH_SIZE = 8, 4


# The networks: layers of the encoder, a head for each task, and inputs.


@keras.saving.register_keras_serializable("keras_mgda_tests")
class Block(layers.Layer):
    """Of a Transformer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.attention = layers.MultiHeadAttention(2, 3, dropout=0.1)
        self.norms = [layers.LayerNormalization() for _ in range(2)]
        self.dense = layers.Dense(6, activation="gelu")

    def build(self, shape):
        self.attention.build(shape, shape)
        for layer in (*self.norms, self.dense):
            layer.build(shape)

    def call(self, x):
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.dense(x))


def mlp():
    encoder = [
        layers.Dense(6, activation="tanh", kernel_regularizer="l2"),
        layers.Dropout(0.2),
        layers.Dense(4, activation="tanh"),
    ]
    return encoder, [head(), head()], (8,)


def cnn():
    encoder = [
        layers.Conv2D(4, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(4, activation="tanh"),
    ]
    return encoder, [head(), head()], (6, 6, 1)


def rnn():
    """Its mask reaches the loss of the second task, on each token."""
    encoder = [
        layers.Embedding(10, 6, mask_zero=True),
        layers.LSTM(5, return_sequences=True),
    ]
    return encoder, [layers.GRU(1, dtype="float32"), head()], (5,)


def transformer():
    encoder = [
        layers.Embedding(10, 6, mask_zero=True),
        Block(),
        layers.GlobalAveragePooling1D(),
    ]
    return encoder, [head(), head()], (5,)


def embedding():
    """Its gradient is a `tf.IndexedSlices`."""
    encoder = [
        layers.Embedding(10, 6, mask_zero=True),
        layers.GlobalAveragePooling1D(),
    ]
    return encoder, [head(), head()], (5,)


def head():
    return layers.Dense(1, dtype="float32")


NETWORKS = {f.__name__: f for f in (mlp, cnn, rnn, transformer, embedding)}
TASKS = ("a", "b")


def functional(cls, network):
    encoder, heads, shape = NETWORKS[network]()
    x = keras.Input(shape)
    z = x
    for layer in [*encoder, marker(cls)]:
        z = layer(z)
    outputs = {t: of_task(z) for t, of_task in zip(TASKS, heads, strict=True)}
    return cls(x, outputs)


class Own:
    """The same as a class with a `call`."""

    def __init__(self, network, **kwargs):
        super().__init__(**kwargs)
        self.network = network
        encoder, self.heads, _ = NETWORKS[network]()
        self.encoder = [*encoder, marker(type(self))]

    def call(self, x):
        for layer in self.encoder:
            x = layer(x)
        return {t: of_task(x) for t, of_task in zip(TASKS, self.heads)}  # noqa: B905

    def get_config(self):
        return super().get_config() | {"network": self.network}


@keras.saving.register_keras_serializable("keras_mgda_tests")
class OwnStock(Own, keras.Model):
    pass


@keras.saving.register_keras_serializable("keras_mgda_tests")
class OwnMGDA(Own, MGDAModel):
    pass


def subclassed(cls, network):
    model = (OwnMGDA if cls is MGDAModel else OwnStock)(network)
    model(examples(network)[0][:1])
    return model


def marker(cls):
    if issubclass(cls, MGDAModel):
        return SharedRepresentation()
    return layers.Identity()


STYLES = {"functional": functional, "subclassed": subclassed}


def examples(network):
    """Tokens have 0, the mask, at their end."""
    rng = np.random.default_rng(0)
    _, _, shape = NETWORKS[network]()
    x = rng.normal(size=(SIZE, *shape)).astype("float32")
    if shape == (5,):
        lengths = rng.integers(1, 6, size=(SIZE, 1))
        x = rng.integers(1, 10, size=(SIZE, 5)) * (np.arange(5) < lengths)
    of_tokens = (5, 1) if network == "rnn" else (1,)
    return x, {
        "a": rng.normal(size=(SIZE, 1)),
        "b": rng.normal(size=(SIZE, *of_tokens)),
    }


# The features: how a model is trained that `make()` makes anew.


def momentum(**kwargs):
    return SGD(0.05, momentum=0.9, **kwargs)


def compiled(make, optimizer=momentum, **compile_args):
    keras.utils.set_random_seed(0)
    model = make()
    how = {"weighting": "uniform"} if isinstance(model, MGDAModel) else {}
    if "jit_compile" not in compile_args:
        how["run_eagerly"] = True  # graphs take longer to trace
    model.compile(
        optimizer(), dict.fromkeys(TASKS, "mse"), **(how | compile_args)
    )
    return model


def fitted(model, data, **fit_args):
    fit_args = {"epochs": 2, "shuffle": False, "verbose": 0} | fit_args
    history = model.fit(*data, batch_size=BATCH_SIZE, **fit_args)
    return model, history.history


def compile_with(**compile_args):
    def run(make, data, directory):
        return fitted(compiled(make, **compile_args), data)

    return run


def optimize_with(cls=SGD, **kwargs):
    return compile_with(optimizer=lambda: cls(0.05, **kwargs))


def sample_weight(make, data, directory):
    rng = np.random.default_rng(1)
    _, y = data  # with a mask, Keras takes weights in its shape only
    weights = {task: rng.uniform(size=y[task].shape[:-1]) for task in TASKS}
    model = compiled(make, weighted_metrics={t: ["mae"] for t in TASKS})
    return fitted(model, data, sample_weight=weights)


def callbacks(make, data, directory):
    return fitted(
        compiled(make),
        data,
        validation_data=data,
        epochs=3,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda _, rate: rate / 2),
            keras.callbacks.EarlyStopping("val_a_loss", mode="max", patience=1),
            keras.callbacks.ModelCheckpoint(directory / "{epoch}.keras"),
            keras.callbacks.CSVLogger(directory / "log.csv"),
        ],
    )


def of_policy(name, optimizer=momentum):
    def run(make, data, directory):
        with dtype_policy(name):
            return fitted(compiled(make, optimizer), data)

    return run


def scaled():
    return keras.optimizers.LossScaleOptimizer(momentum(), initial_scale=256.0)


def save_and_load(make, data, directory):
    model, _ = fitted(compiled(make), data)
    model.save(directory / "model.keras")
    loaded = keras.models.load_model(directory / "model.keras")
    loaded.run_eagerly = True
    for one, two in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    return fitted(loaded, data)


def weights_file(make, data, directory):
    model, _ = fitted(compiled(make), data)
    model.save_weights(directory / "model.weights.h5")
    other = compiled(make)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(directory / "model.weights.h5")
    return fitted(other, data)


def clone(make, data, directory):
    model, _ = fitted(compiled(make), data)
    keras.utils.set_random_seed(1)
    cloned = keras.models.clone_model(model)
    cloned(data[0][:1])
    cloned.run_eagerly = True
    cloned.set_weights(model.get_weights())
    return fitted(cloned, data)


def resume(make, data, directory):
    class Interruption(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(directory)
    with pytest.raises(KeyboardInterrupt):
        fitted(compiled(make), data, callbacks=[backup, Interruption()])
    return fitted(compiled(make), data, callbacks=[backup])


FEATURES = {
    "sample_weight": sample_weight,
    "masks, loss_weights": compile_with(loss_weights={"a": 2.0, "b": 0.3}),
    "metrics": compile_with(metrics={"a": ["mae"], "b": ["mae", "mape"]}),
    "callbacks": callbacks,
    "steps_per_execution": compile_with(
        jit_compile=False, steps_per_execution=2
    ),
    "jit_compile": compile_with(jit_compile=True),
    "mixed_float16": of_policy("mixed_float16", scaled),
    "mixed_bfloat16": of_policy("mixed_bfloat16"),
    "accumulation": optimize_with(gradient_accumulation_steps=2),
    "ema, clipnorm": optimize_with(
        use_ema=True, ema_overwrite_frequency=3, clipnorm=0.05
    ),
    "clipvalue, adam": optimize_with(Adam, clipvalue=0.01, epsilon=1e-3),
    "global_clipnorm, adam": optimize_with(
        Adam, global_clipnorm=0.1, epsilon=1e-3
    ),
    "save and load": save_and_load,
    "weights file": weights_file,
    "clone_model": clone,
    "resume": resume,
}


# What is costly, or runs always on one network in other tests.
ELSEWHERE = (
    "steps_per_execution",
    "jit_compile",
    "mixed_bfloat16",
    "ema, clipnorm",
    "clipvalue, adam",
    "accumulation",
)


def cells():
    """Each feature with each network, in one of the styles; those that always
    run hold each other feature once."""
    reduced = [feature for feature in FEATURES if feature not in ELSEWHERE]
    for (k, feature), (n, network) in itertools.product(
        enumerate(FEATURES), enumerate(NETWORKS)
    ):
        style = list(STYLES)[(k + n) % 2]
        always = feature in reduced and reduced.index(feature) % 5 == n
        yield pytest.param(
            feature, network, style, marks=() if always else pytest.mark.slow
        )


@pytest.mark.parametrize(("feature", "network", "style"), [*cells()])
@pytest.mark.sample(5)
def test_does_what_stock_keras_does(feature, network, style, tmp_path):
    for cls in (MGDAModel, keras.Model):
        (tmp_path / cls.__name__).mkdir()
    ours, stock = (
        FEATURES[feature](
            lambda cls=cls: STYLES[style](cls, network),
            examples(network),
            tmp_path / cls.__name__,
        )
        for cls in (MGDAModel, keras.Model)
    )
    tolerance = 2e-3 if feature.startswith("mixed") else 1e-5
    twins.assert_same(ours, stock, rtol=10 * tolerance, atol=tolerance)
