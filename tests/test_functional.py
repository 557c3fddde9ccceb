import keras
import numpy as np
import pytest
from keras import layers

from keras_mgda import MGDAModel
from keras_mgda.functional import describe
from tests.support import networks
from tests.support.networks import heads

x8 = (8,)


def found_by(model, capsys, **kwargs):
    """The marked model, and the tensors that are marked, by their layer."""
    marked = MGDAModel.from_model(model, **kwargs)
    places = [part.name for part in describe(marked).cut.parts]
    printed = capsys.readouterr().out
    if "shared" in kwargs:
        assert printed == ""
    else:
        assert printed.startswith("Shared representation: the output of '")
        assert all(f"'{place}' (None, " in printed for place in places)
    return marked, places


def dense(name, units=4, **kwargs):
    return layers.Dense(units, activation="tanh", name=name, **kwargs)


def one_after_the_other():
    x = keras.Input(x8)
    return x, heads(dense("z")(dense("h")(x))), ["z"]


def after_a_convolution():
    x = keras.Input((6, 6, 1))
    z = layers.Flatten(name="z")(layers.Conv2D(2, 3)(x))
    return x, heads(layers.Dropout(0.5, name="dropout")(z)), ["dropout"]


def around_the_last_layer():
    x = keras.Input(x8)
    h = dense("h")(x)
    z = dense("z")(h)
    outputs = heads(layers.Concatenate()([z, h]), "a") | heads(z, "b")
    return x, outputs, ["h", "z"]


def from_the_raw_inputs():
    """What a task reads of the inputs themselves holds nothing to train."""
    x = keras.Input(x8)
    z = dense("z")(x)
    outputs = heads(layers.Concatenate()([z, x]), "a") | heads(z, "b")
    return x, outputs, ["z"]


def two_inputs():
    u, v = keras.Input(x8, name="u"), keras.Input((3,), name="v")
    z = layers.Add(name="z")([dense("of_u")(u), dense("of_v")(v)])
    return {"u": u, "v": v}, heads(z), ["z"]


def shared_by_two_of_three():
    x = keras.Input(x8)
    z = dense("z")(x)
    return x, heads(dense("common")(z)) | heads(z, "c"), ["z"]


def layer_called_by_each_head():
    x, common = keras.Input(x8), dense("common")
    z = dense("z")(x)
    return x, {t: layers.Dense(1)(common(z)) for t in "ab"}, ["z"]


def frozen_backbone():
    x = keras.Input(x8)
    h = dense("backbone", trainable=False)(x)
    return x, heads(dense("adapter")(h)), ["adapter"]


def branches():
    """All tasks read both branches, but not what comes of them."""
    x = keras.Input(x8)
    u, v = dense("u")(x), dense("v")(x)
    outputs = {t: layers.Dense(1)(layers.Concatenate()([u, v])) for t in "ab"}
    return x, outputs, ["u", "v"]


def nested_encoder():
    x, h = keras.Input(x8), keras.Input(x8)
    encoder = keras.Model(h, dense("inside")(h), name="encoder")
    return x, heads(encoder(x)), ["encoder"]


def operation_of_keras():
    x = keras.Input((5, 8))
    z = keras.ops.mean(layers.Dense(4)(x), axis=1)
    return x, heads(z), [z._keras_history.operation.name]


def output_that_is_the_representation():
    x = keras.Input(x8)
    z = dense("z")(x)
    return x, {"z": z} | heads(z), ["z"]


def one_task():
    x = keras.Input(x8)
    return x, {"a": dense("head", 1)(dense("h")(x))}, ["head"]


FOUND = (
    one_after_the_other,
    after_a_convolution,
    around_the_last_layer,
    from_the_raw_inputs,
    two_inputs,
    shared_by_two_of_three,
    layer_called_by_each_head,
    frozen_backbone,
    branches,
    nested_encoder,
    operation_of_keras,
    output_that_is_the_representation,
    one_task,
)


@pytest.mark.parametrize("graph", FOUND)
def test_finds_where_the_tasks_part(graph, capsys):
    inputs, outputs, expected = graph()
    stock = keras.Model(inputs, outputs, name="mine")
    marked, places = found_by(stock, capsys)
    assert sorted(places) == sorted(expected)
    assert marked.name == "mine"
    assert list(marked.output) == list(outputs)

    # It trains, and so does the model that it came of: they share variables.
    assert list(map(id, marked.variables)) == list(map(id, stock.variables))
    x = keras.tree.map_structure(lambda i: np.ones((4, *i.shape[1:])), inputs)
    before = keras.tree.map_structure(np.array, stock(x))
    marked.compile("sgd", loss="mse", run_eagerly=True)
    y = {t: np.ones((4, *z.shape[1:])) for t, z in outputs.items()}
    marked.train_on_batch(x, y)
    after = keras.tree.map_structure(np.array, stock(x))
    assert all(not np.allclose(before[task], after[task]) for task in outputs)


# Where the marker that is found stands elsewhere, so does `Z`.
SAME_CUT = [
    structure
    for structure in networks.STRUCTURES
    if structure
    not in (
        networks.bypass,
        networks.bypass_with_variables,
        networks.bypass_of_all,
        networks.partly_shared_branches,
        networks.chained,
        networks.frozen_encoder,
        networks.no_encoder,
    )
]


@pytest.mark.parametrize("structure", SAME_CUT)
def test_trains_as_the_model_that_was_marked_by_hand(structure, capsys):
    """With masks, submodels, layers that are called twice."""
    by_hand = networks.mgda_model(structure, "sgd", run_eagerly=True)
    stock = networks.stock_model(structure)
    stock.set_weights(by_hand.get_weights())
    marked, _ = found_by(stock, capsys)
    marked.compile("sgd", loss=networks.losses(marked.output), run_eagerly=True)
    x, y = networks.data(by_hand)
    for model in (by_hand, marked):
        model.train_on_batch(x, y)
    assert marked.task_weights == pytest.approx(by_hand.task_weights, abs=1e-5)
    for a, b in zip(marked.weights, by_hand.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_takes_the_layers_that_it_is_told(capsys):
    inputs, outputs, _ = one_after_the_other()
    stock = keras.Model(inputs, outputs)
    for shared, expected in (
        ("h", ["h"]),
        (["h"], ["h"]),
        (["h", "z"], ["h", "z"]),
        (("z",), ["z"]),
    ):
        marked, places = found_by(stock, capsys, shared=shared)
        assert places == expected
        marked.compile("sgd", loss="mse", run_eagerly=True)
        marked.train_on_batch(*networks.data(marked))


def test_encoder_that_is_frozen_for_now_is_named(capsys):
    inputs, outputs, _ = one_after_the_other()
    stock = keras.Model(inputs, outputs)
    encoder = [stock.get_layer(name) for name in "hz"]
    for layer in encoder:
        layer.trainable = False
    with pytest.raises(ValueError, match="frozen for now, name the last one"):
        MGDAModel.from_model(stock)
    marked, _ = found_by(stock, capsys, shared="z")
    for frozen in (True, False):
        for layer in encoder:
            layer.trainable = not frozen
        marked.compile("sgd", loss="mse", run_eagerly=True)
        before = encoder[0].kernel.numpy()
        marked.train_on_batch(*networks.data(marked))
        assert (encoder[0].kernel.numpy() == before).all() == frozen


def test_marks_all_outputs_of_a_layer_and_all_its_calls(capsys):
    x = keras.Input((5, 8))
    _, h, c = layers.LSTM(4, return_state=True, name="lstm")(x)
    again = dense("again")
    z = layers.Concatenate()([again(h), again(c)])
    stock = keras.Model(x, heads(z))
    for shared, expected in (("lstm", 2), ("again", 2)):
        _, places = found_by(stock, capsys, shared=shared)
        assert places == [shared] * expected


def test_subclass_stays_a_subclass(capsys):
    class Mine(MGDAModel):
        pass

    inputs, outputs, _ = one_after_the_other()
    marked, _ = found_by(keras.Model(inputs, outputs), capsys)
    assert type(Mine.from_model(marked)) is Mine
    assert isinstance(Mine(inputs, outputs), Mine)


def test_model_that_is_marked_already_stays_right():
    model = networks.mgda_model(networks.plain, run_eagerly=True)
    twice = MGDAModel.from_model(model)
    twice.compile("sgd", loss="mse", run_eagerly=True)
    weights = model.get_weights()
    x, y = networks.data(model)
    model.train_on_batch(x, y)
    expected = model.get_weights()
    model.set_weights(weights)
    twice.train_on_batch(x, y)
    for a, b in zip(twice.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert twice.task_weights == pytest.approx(model.task_weights, abs=1e-5)


def test_names_of_variables_and_outputs_stay():
    inputs, outputs, _ = one_after_the_other()
    stock = keras.Model(inputs, outputs)
    marked = MGDAModel.from_model(stock, "z")
    assert [v.path for v in marked.weights] == [v.path for v in stock.weights]
    assert marked.output_names == stock.output_names
