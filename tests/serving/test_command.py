"""`python -m keras_mgda.serving` shows what was published."""

import subprocess
import sys

import keras
import pytest

import keras_mgda
from keras_mgda.serving import __main__ as command
from keras_mgda.serving import warmup
from tests.support.serving.served_models import convolutional, mlp, only


def test_the_newest_version_is_shown(tmp_path, capsys):
    model, rows = mlp()
    for _ in range(2):
        keras_mgda.export_saved_model(
            model, tmp_path / "mtl", warmup=only(rows)
        )
    assert command.main([str(tmp_path / "mtl")]) == 0
    shown = capsys.readouterr().out
    assert "versions 1, 2" in shown
    assert f"{tmp_path}/mtl/2: " in shown
    assert "predict_left(features: float32(None, 4)) -> left: float32" in shown
    assert "It passes the checks" in shown
    assert command.main([str(tmp_path / "mtl" / "1")]) == 0
    shown = capsys.readouterr().out
    assert "versions" not in shown
    assert f"{tmp_path}/mtl/1: " in shown


def test_what_keras_exported_does_not_pass(tmp_path, capsys):
    model, _ = convolutional()
    model.export(tmp_path / "mtl" / "1", verbose=False)
    assert command.main([str(tmp_path / "mtl")]) == 1
    shown = capsys.readouterr().out
    assert "- Weights must be stored once." in shown
    assert "passes" not in shown


def test_what_was_not_compared_is_told(tmp_path, capsys):
    features = keras.Input((4,), name="features")
    large = keras.layers.Dense(2**14 + 1)(features)
    model = keras.Model(features, {"small": 2 * features, "large": large})
    published = keras_mgda.export_saved_model(model, tmp_path)
    assert command.main([str(published.path)]) == 0
    assert (
        "Not compared with the model's answers, which are stored up to 64 KiB: "
        "predict_large, serving_default.\nIt passes" in capsys.readouterr().out
    )


def test_a_model_without_requests_does_not_pass(tmp_path, capsys):
    published = keras_mgda.export_saved_model(mlp()[0], tmp_path)
    (published.path / warmup.PATH).unlink()
    assert command.main([str(tmp_path)]) == 1
    assert "Received: no such file. Publish it with" in capsys.readouterr().out


def test_a_folder_without_a_model_does_not_pass(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 1
    assert "a folder with a saved_model.pb" in capsys.readouterr().out
    (tmp_path / "3").mkdir()
    assert command.main([str(tmp_path)]) == 1
    assert "versions 3" in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_a_command(tmp_path):
    keras_mgda.export_saved_model(mlp()[0], tmp_path / "mtl")
    found = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "keras_mgda.serving",
            tmp_path / "mtl",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "It passes the checks" in found.stdout
