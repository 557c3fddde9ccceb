"""The notebooks run from top to bottom, and show what they print."""

import pytest

from tests.support.processes import ROOT, environment

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def kinds(cell):
    return [
        output.get("name") or sorted(output.get("data", ()))
        for output in cell.get("outputs", ())
        if output.get("name") != "stderr"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    shown = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=environment())
    assert [kinds(c) for c in notebook.cells] == [kinds(c) for c in shown.cells]
    # What the model is does not depend on the machine's arithmetic.
    if path.stem == "quick_start":
        assert notebook.cells[4].outputs == shown.cells[4].outputs
