import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mgda import GradientFork, MGDAModel, SharedRepresentation
from keras_mgda.description import describe
from tests.support import networks
from tests.support.networks import heads

x8 = (8,)


def found_by(model, **kwargs):
    """The marked model, and the tensors that are marked, by their layer."""
    marked = MGDAModel.from_model(model, **kwargs)
    return marked, [part.name for part in describe(marked).cut.parts]


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
def test_finds_where_the_tasks_part(graph):
    inputs, outputs, expected = graph()
    stock = keras.Model(inputs, outputs, name="mine")
    marked, places = found_by(stock)
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
        networks.no_encoder,
        networks.tied_embedding,
    )
]


@pytest.mark.parametrize("structure", SAME_CUT)
@pytest.mark.sample(7)
def test_trains_as_the_model_that_was_marked_by_hand(structure):
    """With masks, submodels, layers that are called twice."""
    by_hand = networks.mgda_model(structure, "sgd", run_eagerly=True)
    stock = networks.stock_model(structure)
    stock.set_weights(by_hand.get_weights())
    marked, _ = found_by(stock)
    marked.compile("sgd", loss=networks.losses(marked.output), run_eagerly=True)
    x, y = networks.data(by_hand)
    for model in (by_hand, marked):
        model.train_on_batch(x, y)
    assert marked.task_weights == pytest.approx(by_hand.task_weights, abs=1e-5)
    for a, b in zip(marked.weights, by_hand.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_takes_the_layers_that_it_is_told():
    inputs, outputs, _ = one_after_the_other()
    stock = keras.Model(inputs, outputs)
    for shared, expected in (
        ("h", ["h"]),
        (["h"], ["h"]),
        (["h", "z"], ["h", "z"]),
        (("z",), ["z"]),
    ):
        marked, places = found_by(stock, shared=shared)
        assert places == expected
        marked.compile("sgd", loss="mse", run_eagerly=True)
        marked.train_on_batch(*networks.data(marked))


def test_encoder_that_is_frozen_for_now_is_found():
    inputs, outputs, _ = one_after_the_other()
    stock = keras.Model(inputs, outputs)
    encoder = [stock.get_layer(name) for name in "hz"]
    for layer in encoder:
        layer.trainable = False
    marked, places = found_by(stock)
    assert places == ["z"]
    roles = {row.name: (row.role, row.frozen) for row in describe(marked).rows}
    assert roles["h"] == roles["z"] == ("encoder", True)
    for frozen in (True, False):
        for layer in encoder:
            layer.trainable = not frozen
        marked.compile("sgd", loss="mse", run_eagerly=True)
        before = encoder[0].kernel.numpy()
        marked.train_on_batch(*networks.data(marked))
        assert (encoder[0].kernel.numpy() == before).all() == frozen


def test_marks_all_outputs_of_a_layer_and_all_its_calls():
    x = keras.Input((5, 8))
    _, h, c = layers.LSTM(4, return_state=True, name="lstm")(x)
    again = dense("again")
    z = layers.Concatenate()([again(h), again(c)])
    stock = keras.Model(x, heads(z))
    for shared, expected in (("lstm", 2), ("again", 2)):
        _, places = found_by(stock, shared=shared)
        assert places == [shared] * expected


def test_subclass_stays_a_subclass():
    class Mine(MGDAModel):
        pass

    inputs, outputs, _ = one_after_the_other()
    marked, _ = found_by(keras.Model(inputs, outputs))
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


# The order of the layers.


def branches_of_two_lengths():
    x = keras.Input(x8)
    trunk = dense("trunk", 8)(x)
    click = dense("click_2", 8)(dense("click_1", 8)(trunk))
    buy = dense("buy_2", 8)(dense("buy_1", 8)(trunk))
    both = layers.Concatenate()([click, buy])
    return keras.Model(x, heads(click, ["click"]) | heads(both, ["buy"]))


def any_graph(seed):
    """Layers that read whichever tensors there are, some of them twice."""
    rng = np.random.default_rng(seed)

    def any_of(tensors):
        return tensors[rng.integers(len(tensors))]

    inputs = [keras.Input(x8, name=f"x{k}") for k in range(1 + seed % 2)]
    trunk = layers.Dense(8)
    tensors, shared = [trunk(x) for x in inputs], [trunk]
    for _ in range(rng.integers(2, 10)):
        kind = rng.integers(4)
        if kind == 0:
            tensor = layers.Add()([any_of(tensors), any_of(tensors)])
        else:
            if kind > 1:
                shared.append(layers.Dense(8))
            tensor = any_of(shared)(any_of(tensors))
        tensors.append(tensor)
    outputs = {}
    for task in "abc"[: rng.integers(2, 4)]:
        tensor = any_of(tensors)
        for _ in range(rng.integers(1, 4)):
            tensor = layers.Dense(8)(tensor)
        outputs[task] = layers.Dense(1)(
            layers.Concatenate()([tensor, any_of(tensors)])
        )
    return keras.Model(inputs, outputs)


def any_layers(model, seed):
    """Where the marks stand: where they belong, or anywhere."""
    if seed < 0 or seed % 3 == 0:
        return None
    names = [layer.name for layer in model.layers if layer.weights]
    rng = np.random.default_rng(seed)
    return list(rng.choice(names, size=2, replace=False))


def orders(model):
    """What holds weights, in the order of the layers and of their files."""
    return [layer.name for layer in model.layers if layer.weights], [
        v.path for v in model.weights
    ]


@pytest.mark.parametrize(
    "seeds",
    [
        range(-1, 6),
        pytest.param(range(6, 60), marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:No tensor of the shared representation",
    "ignore:The structure of `inputs` does",
)
def test_weights_keep_their_order(seeds, tmp_path):
    changed = 0
    for seed in seeds:
        stock = branches_of_two_lengths() if seed < 0 else any_graph(seed)
        marked = MGDAModel.from_model(stock, shared=any_layers(stock, seed))
        deeper = keras.Model(marked.input, marked.output)
        changed += orders(deeper) != orders(stock)
        clone = keras.models.clone_model(marked)
        again = MGDAModel.from_config(marked.get_config())
        for model in (
            marked,
            clone,
            again,
            MGDAModel(stock.input, stock.output),
        ):
            assert orders(model) == orders(stock), seed
        x = [np.ones((2, 8), "float32") for _ in stock.inputs]
        clone.set_weights(stock.get_weights())
        stock.save_weights(tmp_path / "stock.weights.h5")
        again.load_weights(tmp_path / "stock.weights.h5")
        for model in (clone, again):
            for task, expected in stock(x).items():
                np.testing.assert_array_equal(model(x)[task], expected)
    # The test would see it: the marks move layers in the eyes of Keras.
    assert changed > len(seeds) / 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_files_of_a_trained_model_fit_the_plain_one(tmp_path, optimizer):
    stock = branches_of_two_lengths()
    marked = MGDAModel.from_model(stock)
    other = keras.models.clone_model(stock)
    marked.compile(optimizer, loss="mse", run_eagerly=True)
    x, y = networks.data(marked)
    marked.train_on_batch(x, y)
    marked.save(tmp_path / "marked.keras")
    marked.save_weights(tmp_path / "marked.weights.h5")
    loaded = keras.models.load_model(tmp_path / "marked.keras")
    other.load_weights(tmp_path / "marked.weights.h5")
    for model in (loaded, other):
        for a, b in zip(model.weights, marked.weights, strict=True):
            np.testing.assert_array_equal(a, b)
    # And the other way round, of a plain model that is compiled.
    other.compile(optimizer, loss="mse", run_eagerly=True)
    other.train_on_batch(x, y)
    other.save_weights(tmp_path / "other.weights.h5")
    marked.load_weights(tmp_path / "other.weights.h5")
    for a, b in zip(other.weights, marked.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_are_found_by_name_and_index_and_in_the_summary():
    stock = branches_of_two_lengths()
    marked = MGDAModel.from_model(stock, shared="trunk")
    names = [layer.name for layer in stock.layers]
    (mark,) = (n.name for n in marked.layers if n.name not in names)
    found = [layer.name for layer in marked.layers]
    assert found.index(mark) == found.index("trunk") + 1
    found.remove(mark)
    assert found == names
    assert marked.get_layer("buy_2") is stock.get_layer("buy_2")
    assert marked.get_layer(index=1) is stock.get_layer("trunk")
    lines = []
    marked.summary(print_fn=lines.append)
    assert all(name in "".join(lines) for name in found)
    with pytest.raises(AttributeError, match="attribute is reserved"):
        marked.layers = []


# What the user's model had.


def test_inputs_stay_what_they_were():
    a = keras.Input((3,), name="a")
    b = keras.Input((3,), name="b", optional=True)
    c = keras.Input((3,), name="c", sparse=True)
    d = keras.Input((None, 3), name="d", ragged=True)

    @keras.saving.register_keras_serializable("keras_mgda_tests")
    class Encoder(layers.Layer):
        def build(self, *shapes):
            self.kernel = self.add_weight(shape=(3, 4))

        def call(self, a, b, c, d):
            x = a + tf.sparse.to_dense(c) + tf.reduce_mean(d, axis=1)
            return (x if b is None else x + b) @ self.kernel

        def compute_output_shape(self, *shapes, **more):
            return (None, 4)

    z = Encoder(name="z")(a, b, c, d)
    stock = keras.Model({"a": a, "b": b, "c": c, "d": d}, heads(z))
    marked = MGDAModel.from_model(stock)
    assert list(marked.input) == ["a", "b", "c", "d"]
    for mine, theirs in zip(marked.inputs, stock.inputs, strict=True):
        assert mine is theirs
    assert marked.get_layer("b").optional
    assert marked.get_layer("c").sparse
    x = {
        "a": tf.ones((2, 3)),
        "b": None,
        "c": tf.sparse.from_dense(tf.eye(2, 3)),
        "d": tf.ragged.constant([[[1.0] * 3], [[2.0] * 3] * 2], ragged_rank=1),
    }
    for task, expected in stock(x).items():
        np.testing.assert_array_equal(marked(x)[task], expected)


def test_names_what_to_compile_with():
    inputs, outputs, _ = one_after_the_other()
    stock = keras.Model(inputs, outputs)
    stock.compile("adam", loss="mse", metrics={"a": ["mae"]})
    with pytest.warns(UserWarning, match="compiled with stays behind") as seen:
        marked = MGDAModel.from_model(stock)
    assert "pass `optimizer`, `loss`, `metrics` again" in str(seen[0].message)
    assert not marked.compiled
    assert stock.compiled


def test_names_the_methods_that_stay_behind():
    class Theirs(keras.Model):
        def train_step(self, data):
            raise NotImplementedError

    class Ours(MGDAModel):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    inputs, outputs, _ = one_after_the_other()
    with pytest.warns(UserWarning, match=r"stays behind: \['train_step'\]"):
        MGDAModel.from_model(Theirs(inputs, outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(Ours.from_model(keras.Model(inputs, outputs))) is Ours


# Why there is no shared representation, and what to do then.


def refusal(model, **kwargs):
    with pytest.raises(ValueError, match="Received: ") as caught:
        MGDAModel.from_model(model, **kwargs)
    return str(caught.value)


def test_no_variables():
    x = keras.Input(x8)
    outputs = {t: layers.Activation("tanh")(x) for t in "ab"}
    assert "no output depends on variables" in refusal(keras.Model(x, outputs))


def test_nothing_in_common():
    """Only what has no variables leads to both tasks."""
    x = keras.Input(x8)
    stock = keras.Model(x, heads(layers.Rescaling(2.0)(x)))
    assert "no variables in common, and so no conflict" in refusal(stock)
    stock.compile("sgd", loss="mse", run_eagerly=True)
    stock.train_on_batch(*networks.data(stock))


def test_groups_of_tasks_with_nothing_in_common():
    x = keras.Input(x8)
    u, v = dense("u")(x), dense("v")(x)
    outputs = heads(u, "ab") | heads(v, "cd")
    model = keras.Model(x, outputs)
    text = refusal(model)
    groups = [["a", "b"], ["c", "d"]]
    assert f"no variables in common: {groups}" in text
    assert "from_model(keras.Model(model.input, {task: model.output" in text
    for group, place in zip(groups, "uv", strict=True):
        marked = MGDAModel.from_model(
            keras.Model(
                model.input, {task: model.output[task] for task in group}
            )
        )
        assert [part.name for part in describe(marked).cut.parts] == [place]


def test_no_gradient():
    x = keras.Input(x8)
    h = dense("h")(x)

    def model(pass_on):
        z = pass_on(h)
        return keras.Model(x, {t: layers.Dense(1)(z) for t in "ab"})

    blocked = model(
        lambda h: keras.ops.cast(
            keras.ops.argmax(h, axis=-1, keepdims=True), "float32"
        )
    )
    text = refusal(blocked)
    assert "no gradient passes ['argmax" in text
    assert "such as a softmax instead" in text
    free = MGDAModel.from_model(model(lambda h: keras.ops.softmax(h, axis=-1)))
    free.compile("sgd", loss="mse", run_eagerly=True)
    free.train_on_batch(*networks.data(free))


def test_outputs_that_are_no_dict_of_tensors():
    x = keras.Input(x8)
    z = dense("z")(x)
    stock = keras.Model(x, [layers.Dense(1)(z), layers.Dense(1)(z)])
    assert "must be a dict" in refusal(stock)
    named = dict(zip("ab", stock.outputs, strict=True))
    MGDAModel.from_model(keras.Model(stock.inputs, named))
    stock = keras.Model(x, {"a": [layers.Dense(1)(z), layers.Dense(1)(z)]})
    text = refusal(stock)
    assert "Each output of the model must be one tensor" in text
    assert "`{task: {name: tensor}}`" in text
    named = {"a": dict(zip("uv", stock.outputs, strict=True))}
    assert MGDAModel.from_model(keras.Model(x, named)).output.keys() == {"a"}


def test_model_that_is_not_its_graph():
    class Other(keras.Model):
        def call(self, x):
            return super().call(2 * x)

    inputs, outputs, _ = one_after_the_other()
    assert "overrides `call`" in refusal(Other(inputs, outputs))
    assert "takes a functional model" in refusal(keras.Sequential())


def test_layers_that_are_not_there_or_have_no_gradient():
    x = keras.Input((), dtype="string")
    ids = layers.StringLookup(vocabulary=["u"], name="ids")(x)
    z = layers.Embedding(3, 4, name="z")(ids)
    stock = keras.Model(x, heads(z))
    assert "of which ['y'] are not among ['ids', 'z'" in refusal(
        stock, shared="y"
    )
    assert "Name a layer that reads them" in refusal(stock, shared="ids")
    assert describe(MGDAModel.from_model(stock, shared="z")).cut.parts


def test_output_that_is_no_task_leaves_the_cut_where_it_is():
    """What has no variables before it cannot be trained."""
    x = keras.Input(x8)
    outputs = heads(dense("z")(x)) | {"copy": layers.Identity()(x)}
    marked = MGDAModel.from_model(keras.Model(x, outputs))
    (part,) = describe(marked).cut.parts
    assert part == ("z", (None, 4), ("a", "b"))


# What is shared by variables, not by tensors.


def test_tasks_that_share_in_pairs():
    """No variable serves all three; each is marked where its pair parts."""
    x = keras.Input(x8)
    u, v = dense("u")(x), dense("v")(x)
    both = layers.Concatenate()([u, v])
    outputs = heads(u, "a") | heads(both, "b") | heads(v, "c")
    marked = MGDAModel.from_model(keras.Model(x, outputs))
    cut = describe(marked).cut
    assert {part.name: part.tasks for part in cut.parts} == {
        "u": ("a", "b"),
        "v": ("b", "c"),
    }
    assert cut.apart == []  # `a` and `c` have no variables in common
    marked.compile("sgd", loss="mse", run_eagerly=True)
    marked.train_on_batch(*networks.data(marked))


def test_layer_of_two_models():
    """One layer in two nested models, each for a task of its own."""
    common = dense("common")
    towers = []
    for name in "ab":
        h = keras.Input(x8)
        towers.append(keras.Model(h, common(h), name=f"of_{name}"))
    x = keras.Input(x8)
    outputs = {
        t: layers.Dense(1)(f(x)) for t, f in zip("ab", towers, strict=True)
    }
    stock = keras.Model(x, outputs)
    with pytest.warns(UserWarning, match="is read by two tasks"):
        marked = MGDAModel.from_model(stock)
    parts = describe(marked).cut.parts
    assert {part.name for part in parts} == {"of_a", "of_b"}


def test_nested_model_that_passes_the_representation_on():
    """One head reads it of the encoder, the other of the nested model."""
    h = keras.Input((4,))
    nested = keras.Model(h, [h, dense("tower")(h)], name="nested")
    x = keras.Input(x8)
    z = dense("z")(x)
    same, tower = nested(z)
    b = layers.Concatenate()([same, tower])
    marked = MGDAModel.from_model(keras.Model(x, heads(z, "a") | heads(b, "b")))
    assert [part.name for part in describe(marked).cut.parts] == ["z"]
    marked.compile("sgd", loss="mse", run_eagerly=True)
    marked.train_on_batch(*networks.data(marked))


def test_describes_marked_inputs_and_no_other_kind_of_model():
    model = networks.mgda_model(networks.no_encoder)
    (part,) = describe(model).cut.parts
    assert part.name == model.inputs[0].name
    for other in (networks.EncoderAndHeads(), keras.Sequential()):
        with pytest.raises(ValueError, match="Only a functional model"):
            describe(other)
    inner = networks.EncoderAndHeads()
    x = keras.Input(x8)
    found = describe(keras.Model(x, inner(x)))
    assert [row.name for row in found.rows] == [inner.name]


def test_describes_every_role():
    x = keras.Input(x8)
    h = dense("h")(x)
    z = dense("z", trainable=False)(h)
    common = dense("common")(z)
    outputs = heads(common) | {
        "c": dense("of_c")(layers.Concatenate()([z, dense("skip")(h)]))
    }
    plain = keras.Model(x, outputs)
    found = describe(MGDAModel.from_model(plain, shared="z"))
    rows = {row.name: row for row in found.rows}
    assert rows["h"][1:] == (
        "encoder, around Z",
        2,
        36,
        tuple("abc"),
        ("c",),
        False,
    )
    assert rows["z"][1:] == ("encoder", 2, 20, tuple("abc"), (), True)
    assert rows["common"].role == "shared, not through Z"
    assert rows["common"].tasks == ("a", "b")
    assert rows["skip"].role == rows["of_c"].role == "head"
    text = str(found)
    assert "encoder (frozen)" in text
    assert "all tasks; around Z by c" in text
    assert "the output of 'z' (None, 4), read by all tasks." in text
    unmarked = describe(plain)
    assert unmarked.cut is None
    assert {row.role for row in unmarked.rows} == {"shared", "head"}
    assert "No shared representation is marked." in str(unmarked)


@pytest.mark.parametrize("together", [True, False])
def test_describes_each_tensor_of_a_mark_alone(together):
    """What two tasks read of one mark they do not have in common."""
    x = keras.Input(x8)
    h = dense("h")(x)
    z = [dense("u")(h), dense("v")(h)]
    if together:
        u, v = SharedRepresentation()(z)
    else:
        u, v = (SharedRepresentation()(part) for part in z)
    found = describe(MGDAModel(x, heads(u, "a") | heads(v, "b")))
    assert [part.tasks for part in found.cut.parts] == [("a",), ("b",)]
    assert found.cut.apart == [("a", "b")]
    assert "is read by two tasks" in str(found)
    assert {row.name: row.tasks for row in found.rows}["u"] == ("a",)


def test_copies_of_a_gradient_fork_part_where_it_stands():
    x = keras.Input(x8)
    za, zb = GradientFork(2)(dense("z")(x))
    marked = MGDAModel.from_model(
        keras.Model(x, heads(za, "a") | heads(zb, "b"))
    )
    (part,) = describe(marked).cut.parts
    assert part.name == "z"


def two_layers(name="second"):
    x = keras.Input((4,))
    h = layers.Dense(3, activation="tanh", name="first")(x)
    z = layers.Dense(3, activation="tanh", name=name)(h)
    return keras.Model(x, {t: layers.Dense(1, name=t)(z) for t in "ab"})


def test_a_marked_model_is_marked_elsewhere():
    plain = two_layers()
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    y = {"a": x[:, :1], "b": x[:, 1:2] - x[:, 2:3]}
    before, grams = plain.get_weights(), []
    for model in (plain, MGDAModel.from_model(plain)):
        plain.set_weights(before)
        moved = MGDAModel.from_model(model, shared="first")
        (only,) = [
            layer
            for layer in moved.layers
            if isinstance(layer, SharedRepresentation)
        ]
        assert only.input.name == plain.get_layer("first").output.name
        moved.compile("sgd", loss="mse", run_eagerly=True)
        moved.train_on_batch(x, y)
        grams.append(list(moved.task_weights.values()))
    assert grams[0] == pytest.approx(grams[1], rel=1e-5)


def test_a_mark_takes_a_name_that_is_free():
    keras.backend.clear_session()
    named = MGDAModel.from_model(two_layers("shared_representation"))
    keras.backend.clear_session()
    marked = MGDAModel.from_model(two_layers())
    keras.backend.clear_session()
    again = MGDAModel.from_model(marked, shared="first")
    for model in (named, again):
        names = [layer.name for layer in model.layers]
        assert len(set(names)) == len(names)
        assert any(isinstance(m, SharedRepresentation) for m in model.layers)
