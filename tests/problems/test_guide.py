"""The guide's first listing runs as it stands."""

import pytest
import tensorflow as tf

from tests.support.pages import python_blocks
from tests.support.processes import ROOT


@pytest.mark.slow
def test_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(python_blocks(ROOT / "docs" / "text.md")[0].code, {})
    served = tf.saved_model.load("saved_models/text/1").signatures
    answer = served["predict_tone"](text=tf.constant(["不好", ""]))
    assert answer["tone"].shape == (2, 2)
