"""What a reader copies from a page runs."""

import pytest

from tests.support.pages import PAGES, python_blocks, run_blocks
from tests.support.processes import ROOT

MODEL = """
import keras, keras_mgda, numpy as np, tensorflow as tf

def build():
    inputs = keras.Input((4,), name="features")
    z = keras.layers.Dense(3, activation="relu")(inputs)
    z = keras_mgda.SharedRepresentation()(z)
    outputs = {task: keras.layers.Dense(1)(z) for task in ("left", "right")}
    return keras_mgda.MGDAModel(inputs, outputs)

x = np.random.default_rng(0).normal(size=(1024, 4)).astype("float32")
y = {"left": x[:, :1], "right": x[:, 1:2]}
"""
# What the blocks of a page take for given.
GIVEN = {
    # One small search, in this process.
    "comparing": """
import functools
import numpy as np
from keras_mgda import comparison

for seed, name in enumerate(["train", "validation", "test"]):
    x = np.random.default_rng(seed).normal(size=(96, 64)).astype("float32")
    np.savez(f"{name}.npz", x=x, price=x[:, :1], demand=x[:, 1:2])

comparison.compare = functools.partial(
    comparison.compare,
    methods=["MGDA-UB"],
    learning_rates=[0.01],
    seeds=[0, 1],
    epochs=1,
    executor=comparison.InProcess(),
)
""",
    "columns": """
import numpy as np

rng = np.random.default_rng(0)
x = rng.normal(size=(32, 1024)).astype("float32")
y = rng.integers(0, 2, size=(32, 617)).astype("float32")
y[rng.random(y.shape) < 0.7] = np.nan
""",
    "conflict": MODEL
    + """
model = build()
model.compile("adam", loss="mse")
""",
    "directions": MODEL
    + """
model = build()
losses = {"left": "mse", "right": "mae"}
""",
    "distributed": MODEL
    + """
train = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
""",
    "watching": MODEL
    + """
model = build()
model.compile("adam", loss="mse")
""",
}
# Pages whose tests look at what the code makes.
ELSEWHERE = {
    "serving": "tests/serving/test_docs.py",
    "text": "tests/problems/test_guide.py",
    "weightings": "tests/weightings/test_page.py",
}
# Each of their blocks is another script: a process has one strategy.
SCRIPTS = ["distributed"]


def cases():
    for page in PAGES:
        if not python_blocks(page) or page.stem in ELSEWHERE:
            continue
        marks = [] if page.stem == "README" else [pytest.mark.slow]
        name = str(page.relative_to(ROOT))
        yield pytest.param(page, id=name, marks=marks)


@pytest.mark.parametrize("page", list(cases()))
def test_python_blocks_run(page, tmp_path):
    blocks = python_blocks(page)
    scripts = [[b] for b in blocks] if page.stem in SCRIPTS else [blocks]
    for number, script in enumerate(scripts):
        folder = tmp_path / str(number)
        folder.mkdir()
        # The folder of a cluster that the text speaks of.
        script = [
            b._replace(code=b.code.replace("/shared", str(folder)))
            for b in script
        ]
        run_blocks(page, folder, GIVEN.get(page.stem, ""), script)


@pytest.mark.parametrize("page", ELSEWHERE)
def test_others_are_run_elsewhere(page):
    test = (ROOT / ELSEWHERE[page]).read_text()
    assert "python_blocks(" in test
    assert f"{page}.md" in test


def test_a_mistake_is_found_on_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\na = 1\n```\n\n```python\n1 / 0\n```\n"
    )
    with pytest.raises(AssertionError, match=r"page\.py\", line 8"):
        run_blocks(page, tmp_path)


def test_output_that_is_not_printed_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="shows what is not printed"):
        run_blocks(page, tmp_path)
