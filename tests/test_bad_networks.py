"""Networks that no training step fits are refused before one changes them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import MGDAModel, SharedRepresentation
from tests.support import networks, oracle
from tests.support.networks import heads
from tests.support.refusal import refused


def plain(mark=SharedRepresentation):
    return networks.plain(mark)


class Returning(MGDAModel):
    """A subclassed model that returns what `make` makes of two outputs."""

    def __init__(self, make):
        super().__init__()
        self.make = make
        self.encoder = networks.dense(4)
        self.shared = SharedRepresentation()
        self.a, self.b = layers.Dense(1), layers.Dense(1)

    def call(self, x):
        z = self.shared(self.encoder(x))
        return self.make(self.a(z), self.b(z))


def list_of_outputs():
    x, outputs = plain()
    return MGDAModel(x, list(outputs.values()))


def list_of_outputs_by_keyword():
    x, outputs = plain()
    return MGDAModel(inputs=x, outputs=list(outputs.values()))


def single_output():
    x, outputs = plain()
    return MGDAModel(x, outputs["a"])


def from_model_of_a_sequence():
    return MGDAModel.from_model(keras.Sequential([keras.Input((8,))]))


def from_model_of_a_list():
    x, outputs = plain(networks.unmarked)
    return MGDAModel.from_model(keras.Model(x, list(outputs.values())))


def from_model_of_unknown_layer():
    stock = networks.stock_model(networks.plain)
    return MGDAModel.from_model(stock, shared=["no_such_layer"])


def from_model_of_no_layer():
    stock = networks.stock_model(networks.plain)
    return MGDAModel.from_model(stock, shared=[])


def from_model_of_layer_in_submodel():
    x, h = keras.Input((8,)), keras.Input((8,))
    encoder = keras.Model(h, layers.Dense(3, name="inside")(h))
    stock = keras.Model(x, heads(encoder(x)))
    return MGDAModel.from_model(stock, shared="inside")


def from_model_that_shares_nothing():
    x = keras.Input((8,))
    stock = keras.Model(x, heads(x, "a") | heads(x, "b"))
    return MGDAModel.from_model(stock)


BUILDING = {
    list_of_outputs: "`outputs` must be a dict.*Received: list",
    list_of_outputs_by_keyword: "`outputs` must be a dict.*Received: list",
    single_output: "`outputs` must be a dict.*Received: KerasTensor",
    from_model_of_a_sequence: "takes a functional model. Received: Sequential",
    from_model_of_a_list: "outputs of the model must be a dict.*list",
    from_model_of_unknown_layer: "`shared` must name layers.*'no_such_layer'",
    from_model_of_no_layer: r"`shared` must name layers.*Received: \[\]",
    from_model_of_layer_in_submodel: "`shared` must name layers.*'inside'",
    from_model_that_shares_nothing: "representation must exist.*'a', 'b'",
}


@pytest.mark.parametrize("build", BUILDING)
def test_building(build):
    with refused(BUILDING[build]):
        build()


def no_marker():
    return MGDAModel(*plain(networks.unmarked))


def task_around_the_marker():
    x = keras.Input((8,))
    z = SharedRepresentation()(networks.dense(4)(x))
    return MGDAModel(x, heads(z, "a") | heads(networks.dense(4)(x), "b"))


def task_without_variables():
    x = keras.Input((8,))
    z = SharedRepresentation()(networks.dense(4)(x))
    return MGDAModel(
        x, heads(z, "a") | {"b": layers.Cropping1D()(x[..., None])}
    )


def task_behind_a_stopped_gradient():
    x = keras.Input((8,))
    z = SharedRepresentation()(networks.dense(4)(x))
    return MGDAModel(x, heads(z, "a") | heads(keras.ops.stop_gradient(z), "b"))


def marker_of_one_task():
    x = keras.Input((8,))
    z = SharedRepresentation()(networks.dense(4)(x))
    only = SharedRepresentation()(networks.dense(3)(z))
    return MGDAModel(x, heads(only, "a") | heads(z, "b"))


def marker_of_no_task():
    x = keras.Input((8,))
    z = SharedRepresentation()(networks.dense(4)(x))
    aside = SharedRepresentation()(networks.dense(3)(x))
    return MGDAModel(x, heads(z) | heads(aside, ["aside"]))


def representation_of_integers():
    x = keras.Input((8,))
    ids = SharedRepresentation()(keras.ops.cast(x > 0, "int32"))
    z = SharedRepresentation()(networks.dense(4)(x))
    embedded = layers.GlobalAveragePooling1D()(layers.Embedding(2, 4)(ids))
    return MGDAModel(x, heads(z + embedded))


class Cell(layers.Layer):
    state_size = output_size = 4

    def __init__(self):
        super().__init__()
        self.dense, self.shared = layers.Dense(4), SharedRepresentation()

    def build(self, shape):
        self.dense.build((None, shape[-1] + 4))

    def call(self, x, states):
        h = keras.ops.concatenate([x, states[0]], axis=-1)
        h = self.shared(self.dense(h))
        return h, [h]


def marker_in_a_loop():
    """Its tensors belong to the loop, and have no gradient outside of it."""
    x = keras.Input((8,))
    z = layers.RNN(Cell())(layers.Reshape((4, 2))(x))
    return MGDAModel(x, heads(z))


def list_that_is_returned():
    return Returning(lambda a, b: [a, b])


def tensor_that_is_returned():
    return Returning(lambda a, b: a)


def other_names_that_are_returned():
    return Returning(lambda a, b: {"a": a, "c": b})


def one_name_that_is_returned():
    return Returning(lambda a, b: {"a": a})


class OwnTotal(MGDAModel):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return keras.ops.mean(y_pred["a"] ** 2)


class OneTask(MGDAModel):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        super().compute_loss(x, y, y_pred, sample_weight)
        return keras.ops.mean(y_pred["a"] ** 2)


def loss_that_is_not_called():
    return OwnTotal(*plain())


def loss_that_is_not_returned():
    return OneTask(*plain())


TRAINING = {
    no_marker: "must mark where the tasks part.*calls none.*from_model",
    task_around_the_marker: "must run through.*'b' passes none of the 1",
    task_without_variables: "must run through.*'b' passes none of the 1",
    task_behind_a_stopped_gradient: "must run through.*'b' passes none",
    marker_of_one_task: r"by at least two tasks.*number 2 of 2.*\['a'\]",
    marker_of_no_task: "by at least two tasks.*number . of 2.*by none",
    representation_of_integers: "must be floating point.*int32",
    marker_in_a_loop: "SharedRepresentation` must|through a `Shared",
    list_that_is_returned: r"must return a dict.*Received: list",
    tensor_that_is_returned: "must return a dict.*Received: .*Tensor",
    other_names_that_are_returned: "must name every output.*'a', 'c'",
    one_name_that_is_returned: r"must name every output.*outputs \['a'\]",
    loss_that_is_not_called: r"must call the compiled loss.*for \[\]",
    loss_that_is_not_returned: "must return a sum that contains every task",
}


# What exact MGDA, which needs no shared representation, trains.
WITHOUT_REPRESENTATION = (
    no_marker,
    task_around_the_marker,
    task_behind_a_stopped_gradient,
    marker_of_one_task,
    marker_of_no_task,
    marker_in_a_loop,
)


@pytest.mark.parametrize("build", WITHOUT_REPRESENTATION)
def test_parameters_need_no_representation(build):
    model = build()
    model.compile(
        "sgd",
        loss=dict.fromkeys("ab", "mse")
        | ({"aside": None} if build is marker_of_no_task else {}),
        gradients="parameters",
        run_eagerly=True,
    )
    x, y = np.ones((4, 8), "float32"), {t: np.ones((4, 1)) for t in "ab"}
    sources = model.trainable_variables
    before = [v.numpy() for v in sources]
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(x, training=True)
        losses = [tf.reduce_mean((outputs[t] - 1.0) ** 2) for t in "ab"]
    gradients = [
        [g if g is None else g.numpy() for g in tape.gradient(loss, sources)]
        for loss in losses
    ]
    (aa, ab), (_, bb) = oracle.gram_of_parameters(
        oracle.Gradients(gradients, gradients, [])
    )
    w = np.clip((bb - ab) / (aa + bb - 2 * ab), 0, 1) if aa + bb else 0.5
    expected = oracle.direction(gradients, [w, 1 - w])
    model.train_on_batch(x, y)
    for old, new, step in zip(before, sources, expected, strict=True):
        np.testing.assert_allclose(
            new.numpy(), old - 0.01 * step, rtol=1e-4, atol=1e-6
        )


IN_A_GRAPH = (marker_in_a_loop, loss_that_is_not_returned)


@pytest.mark.parametrize("gradients", ["representation", "parameters"])
@pytest.mark.parametrize("build", TRAINING)
@pytest.mark.sample(8)
def test_training(build, gradients):
    if gradients == "parameters" and build in WITHOUT_REPRESENTATION:
        pytest.skip("trained above")
    model = build()
    model.compile(
        "adam",
        loss=dict.fromkeys("ab", "mse")
        | ({"aside": None} if build is marker_of_no_task else {}),
        gradients=gradients,
        run_eagerly=gradients == "parameters" or build not in IN_A_GRAPH,
    )
    before = [v.numpy() for v in model.variables]
    y = {t: np.ones((4, 1)) for t in "ab"}
    message = TRAINING[build]
    if build is task_without_variables and gradients == "parameters":
        message = "must depend on a trainable variable.*'b' depends on none"
    with refused(message):
        model.train_on_batch(np.ones((4, 8)), y)
    for old, new in zip(before, model.variables, strict=False):
        np.testing.assert_array_equal(old, new.numpy())
    assert model.optimizer.iterations.numpy() == 0
