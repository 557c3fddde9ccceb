"""The guide's first listing runs as it stands."""

import re
from pathlib import Path

import tensorflow as tf

GUIDE = Path(__file__).parents[2] / "docs" / "text.md"


def test_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"(?ms)^```python\n(.*?)^```", GUIDE.read_text())[1]
    exec(code, {})
    served = tf.saved_model.load("saved_models/text/1").signatures
    answer = served["predict_tone"](text=tf.constant(["不好", ""]))
    assert answer["tone"].shape == (2, 2)
