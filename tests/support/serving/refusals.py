"""That nothing is published."""

import pytest

import keras_mgda


def refused(match, model, directory, **options):
    with pytest.raises(ValueError, match=match):
        keras_mgda.export_saved_model(model, directory / "mtl", **options)
    assert not list(directory.glob("mtl/*"))
