"""Where the tasks of real models part."""

import keras
import numpy as np
import pytest

from keras_mgda import MGDAModel, SharedRepresentation
from keras_mgda.descent.forward import record_forward_pass
from keras_mgda.description import describe
from keras_mgda.functional.marks import mark
from tests.support import zoo
from tests.support.dtype_policy import dtype_policy

# The layers of which the output is marked, once for each marked tensor.
FOUND = {
    zoo.shared_bottom: ["bottom_2"],
    zoo.mmoe: ["stack"],
    zoo.mmoe_in_one_layer: ["stem"],
    zoo.cross_stitch: ["a_1", "b_1"],
    zoo.esmm: ["click_head", "features"],
    zoo.bigru: ["encoder"],
    zoo.lstm_with_states: ["encoder", "encoder"],
    zoo.lstm_of_tokens: ["embedding"],
    zoo.two_tower: ["item_1", "user_2"],
    zoo.siamese: ["encoder_2", "encoder_2"],
    zoo.siamese_and_one: ["encoder_2", "encoder_2"],
    zoo.one_task_for_each_domain: ["encoder_2", "encoder_2"],
    zoo.siamese_model: ["encoder", "encoder"],
    zoo.autoencoder: ["code"],
    zoo.vae: ["code"],
    zoo.unet: ["joined"],
    zoo.detection: ["c4", "p5"],
    zoo.pyramid_model: ["backbone/c4"],
    zoo.mobilenet: ["mobilenetv2_0.35_32"],
    zoo.frozen_mobilenet: ["mobilenetv2_0.35_32"],
    zoo.point_set: ["pooled"],
    zoo.text: ["z"],
    zoo.ragged: ["z"],
    zoo.variable_length: ["filter"],
    zoo.bert: ["backbone/transformer_layer_0"],
    zoo.vit: ["backbone"],
    zoo.resnet_pyramid: ["backbone/stack0_block0_out"],
}

# Of these, no tensor of `Z` serves two tasks.
DIAGONAL = (
    zoo.lstm_with_states,
    zoo.one_task_for_each_domain,
    zoo.siamese_model,
)

SLOW = (zoo.frozen_mobilenet, zoo.resnet_pyramid)

specimens = pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, marks=[pytest.mark.slow] * (build in SLOW))
        for build in zoo.ZOO
    ],
    ids=lambda build: build.__name__,
)
diagonal = pytest.mark.parametrize(
    "build", DIAGONAL, ids=lambda build: build.__name__
)


def from_model(model, **kwargs):
    return MGDAModel.from_model(model, **kwargs)


def same(a, b):
    assert set(a) == set(b)
    for task in a:
        np.testing.assert_array_equal(a[task], b[task])


def test_no_model_is_left_out():
    assert set(FOUND) == set(zoo.ZOO)


@specimens
@pytest.mark.filterwarnings("ignore:No tensor of the shared representation")
@pytest.mark.sample(7)
def test_finds_the_cut_and_changes_nothing_else(build, tmp_path):
    # An operation without a name is numbered from here, and not from whatever
    # this process built before.
    keras.utils.clear_session(free_memory=False)
    plain, x, *_ = build()
    marked = from_model(plain)
    cut = mark(plain).cut
    assert sorted(part.name for part in cut.parts) == FOUND[build]
    assert cut.is_diagonal == (build in DIAGONAL)

    # The values, also of a training step, in which nested models are marked.
    expected = plain(x)
    same(marked(x), expected)
    with record_forward_pass() as recording:
        same(marked(x), expected)
    assert len(recording.representations) == len(cut.parts)

    # The variables and their order; and that in which files hold them.
    assert [id(v) for v in marked.weights] == [id(v) for v in plain.weights]
    assert [id(v) for v in marked.trainable_variables] == [
        id(v) for v in plain.trainable_variables
    ]
    weights = plain.get_weights()
    for writer, reader in ((plain, marked), (marked, plain)):
        writer.save_weights(tmp_path / "of.weights.h5")
        for variable in plain.weights:
            variable.assign(variable + 1)
        reader.load_weights(tmp_path / "of.weights.h5")
        for now, before in zip(plain.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(now, before)


@specimens
@pytest.mark.filterwarnings("ignore:No tensor of the shared representation")
@pytest.mark.sample(7)
def test_description_counts_every_variable_once(build):
    plain, *_ = build()
    found = describe(from_model(plain))
    of_rows = [row.num_variables for row in found.rows]
    parameters = [row.num_parameters for row in found.rows]
    for layer in plain.layers:
        layer.trainable = True
    assert sum(of_rows) == len(plain.trainable_variables)
    assert sum(parameters) == sum(
        int(np.prod(v.shape)) for v in plain.trainable_variables
    )
    for row in found.rows:
        assert (row.role == "head") == (
            len(row.tasks) == 1
        ) or row.role.startswith("encoder")
        assert row.name in str(found)


@diagonal
@pytest.mark.filterwarnings("ignore:No two tasks read")
def test_says_where_tasks_are_apart_and_the_advice_works(build):
    plain, x, y, loss = build()
    with pytest.warns(UserWarning, match="is read by two tasks") as warned:
        marked = from_model(plain)
    assert "`gradients='parameters'` or 'verified'" in str(warned[0].message)
    assert "is read by two tasks" in str(describe(marked))
    for gradients in ("parameters", "verified", "representation"):
        marked.compile("sgd", loss=loss, gradients=gradients, run_eagerly=True)
        marked.train_on_batch(x, y)
        assert sum(marked.task_weights.values()) == pytest.approx(1)


@diagonal
@pytest.mark.filterwarnings("ignore:No two tasks read")
def test_weights_of_parameters_differ_where_tasks_are_apart(build):
    """MGDA-UB weighs by the norms alone; the exact Gram matrix by more."""
    plain, x, y, loss = build()
    start = plain.get_weights()
    weights = {}
    for gradients in ("parameters", "representation"):
        with pytest.warns(UserWarning, match="is read by two tasks"):
            marked = from_model(plain)
        marked.set_weights(start)
        marked.compile("sgd", loss=loss, gradients=gradients, run_eagerly=True)
        marked.train_on_batch(x, y)
        weights[gradients] = marked.task_weights
        assert sum(marked.task_weights.values()) == pytest.approx(1)
    assert weights["parameters"] != pytest.approx(
        weights["representation"], abs=1e-3
    )


@pytest.mark.filterwarnings("ignore:No two tasks read")
@pytest.mark.parametrize(
    "build",
    [zoo.pyramid_model, zoo.bert, zoo.siamese_and_one, zoo.lstm_with_states],
    ids=lambda build: build.__name__,
)
@pytest.mark.filterwarnings(
    "ignore:No tensor of the shared representation",
    "ignore:What the model was compiled with stays behind",
)
@pytest.mark.sample(4)
def test_marks_survive_copies_and_files(build, tmp_path):
    plain, x, y, loss = build()
    marked = from_model(plain)
    marked.compile("sgd", loss=loss, run_eagerly=True)
    marked.save(tmp_path / "model.keras")
    copies = {
        "file": keras.models.load_model(tmp_path / "model.keras"),
        "clone": keras.models.clone_model(marked),
        "config": MGDAModel.from_config(marked.get_config()),
        "again": from_model(marked),
    }
    paths = [v.path for v in marked.weights]
    marked.train_on_batch(x, y)
    for how, copy in copies.items():
        assert describe(copy) == describe(marked), how
        if how == "file":
            copy.run_eagerly = True  # which files do not keep
            copy.train_on_batch(x, y)
            assert [v.path for v in copy.weights] == paths
            for a, b in zip(copy.weights, marked.weights, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6)


def test_layer_in_a_nested_model_is_named_by_its_path():
    plain, x, y, loss = zoo.pyramid_model()
    by_name = from_model(plain, shared="backbone/c3")
    assert [part.name for part in describe(by_name).cut.parts] == [
        "backbone/c3"
    ]
    by_name.compile("sgd", loss=loss)
    by_name.fit(x, y, verbose=0)
    assert sum(by_name.task_weights.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"are not among .*'backbone/c3'"):
        from_model(plain, shared="backbone/c6")


def test_model_of_models():
    """The tensor is two models deep; precision is that of the layers."""
    with dtype_policy("mixed_bfloat16"):
        h = keras.Input((8,), name="inner_input")
        z = zoo.dense(4, "z")(h)
        inner = keras.Model(h, [z, zoo.dense(3, "of_a")(z)], name="inner")
        g = keras.Input((8,), name="outer_input")
        u, v = inner(g)
        outer = keras.Model(g, {"u": u, "v": v}, name="outer")
        x = keras.Input((8,), name="features")
        found = outer(x)
        plain, x, y, loss = zoo.specimen(
            x,
            {"a": zoo.head("a")(found["v"]), "b": zoo.head("b")(found["u"])},
            zoo.normal(4, 8),
        )
        marked = from_model(plain)
        (part,) = describe(marked).cut.parts
        assert part == ("outer/inner/z", (None, 4), ("a", "b"))
        marked.compile("sgd", loss=loss, run_eagerly=True)
        with record_forward_pass():
            same(marked(x), plain(x))
        marked.train_on_batch(x, y)


def test_mark_inside_of_what_has_no_graph_is_refused():
    x = keras.Input((8,))
    z = keras.Sequential([zoo.dense(4)])(x)
    z = SharedRepresentation(inside="dense")(z)
    with pytest.raises(ValueError, match="must be what a nested functional"):
        MGDAModel(x, {"a": zoo.head("a")(z), "b": zoo.head("b")(z)})
