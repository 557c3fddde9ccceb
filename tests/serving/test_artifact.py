"""Exported models are read from the files, whoever wrote them."""

import numpy as np
import pytest
import tensorflow as tf

import keras_mgda
from keras_mgda import serving
from tests.support.serving.saved_functions import ask, problems
from tests.support.serving.served_models import mlp, only


def save_by_tensorflow_1(path, answer, weights=True):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        w = tf.constant(3.0)
        if weights:
            w = tf.compat.v1.get_variable("w", initializer=3.0)
            session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(
            session, str(path), {"x": x}, {"y": answer(x * w)}
        )
    rows = np.ones((3, 4), "float32")
    ask(path, *({"x": rows[:size]} for size in (1, 3)))
    return path


@pytest.mark.parametrize("weights", [True, False])
def test_a_saved_model_of_tensorflow_1_passes(weights, tmp_path):
    path = save_by_tensorflow_1(tmp_path / "1", tf.identity, weights)
    found = serving.read(path)
    assert serving.problems(found) == []
    # To ask for the initializer that it lacks would add it.
    assert list(found.meta_graph.signature_def) == ["serving_default"]


def test_a_sparse_answer(tmp_path):
    path = save_by_tensorflow_1(tmp_path / "1", tf.sparse.from_dense)
    assert "output 'y': it must be dense. Found: " in problems(path)


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xff"], ids=["none", "empty", "garbage"]
)
def test_a_folder_without_a_saved_model(content, tmp_path):
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"folder with a saved_model.pb|must be a SavedModel|tagged",
    ):
        serving.read(tmp_path)


def test_the_sizes_are_those_of_the_files(tmp_path):
    model, rows = mlp()
    published = keras_mgda.export_saved_model(
        model, tmp_path, warmup=only(rows)
    )
    sizes = {
        file.relative_to(published.path).as_posix(): file.stat().st_size
        for file in published.path.rglob("*")
        if file.is_file()
    }
    assert published.graph_bytes == sizes["saved_model.pb"]
    assert published.total_bytes == sum(sizes.values())
    assert published.weights_bytes == sum(
        variable.numpy().nbytes for variable in model.variables
    )


def test_a_version_without_its_index_is_refused(tmp_path):
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path)
    (published.path / "variables" / "variables.index").unlink()
    with pytest.raises(ValueError, match="An exported model has weights"):
        serving.read(published.path)


def test_a_version_with_half_of_its_weights_does_not_load(tmp_path):
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path)
    (data,) = (published.path / "variables").glob("variables.data*")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    assert "It must load. Found: " in problems(published.path)
    data.unlink()
    assert "It must load. Found: " in problems(published.path)
