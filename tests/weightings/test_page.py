"""What docs/weightings.md says is what the tests check, and its code runs."""

import re

import keras
import numpy as np

from keras_mgda import weightings
from tests.support import networks
from tests.support.pages import check_printed, python_blocks
from tests.support.processes import ROOT
from tests.support.weighting_cases import IDENTIFIERS, PROMISES

PATH = ROOT / "docs" / "weightings.md"
PAGE = PATH.read_text()
PROPERTIES = {
    "non_conflicting": "non-conflicting",
    "simplex": "on the simplex",
    "scale": "scale-invariant",
    "permutation": "permutation-equivariant",
    "linear": "linear under scaling",
}


def tables():
    """Each as `[{column: cell}]`."""
    found = []
    for block in re.findall(r"(?m)(?:^\|.*\n)+", PAGE):
        cells = [
            [cell.strip() for cell in line.strip()[1:-1].split("|")]
            for line in block.splitlines()
        ]
        header, _, *rows = cells
        found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found


def by_name(column):
    """The rows of the table that has this column, by identifier."""
    (table,) = (t for t in tables() if column in t[0])
    return {row["identifier"].strip("`"): row for row in table}


def test_all_weightings_are_there():
    rows = by_name("class")
    assert list(rows) == IDENTIFIERS
    for name, row in rows.items():
        weighting = weightings.get(name)
        assert row["class"] == f"`{type(weighting).__name__}`"
        looks_at = [
            what
            for what, looks in [
                ("G", weighting.uses_gram),
                ("L", weighting.uses_losses),
                ("state", weighting.state is not None),
            ]
            if looks
        ]
        assert row["looks at"] == (", ".join(looks_at) or "nothing")


def test_promises_are_those_that_are_tested():
    rows = by_name("on the simplex")
    assert list(rows) == sorted(PROMISES)
    for name, promises in PROMISES.items():
        for promise, column in PROPERTIES.items():
            expected = "yes" if promise in promises.split() else ""
            if f"{promise}_of_line" in promises.split():
                expected = "up to length"
            assert rows[name][column] == expected, (name, column)


def test_sources_are_those_of_the_docstrings():
    for name, row in by_name("source").items():
        (link,) = re.findall(r"\((https://.*)\)", row["source"]) or [""]
        assert link in type(weightings.get(name)).__doc__, name


def test_the_code_runs(capsys):
    blocks = python_blocks(PATH)
    namespace = {"__name__": "mine"}
    exec("\n".join(block.code for block in blocks), namespace)
    check_printed(capsys.readouterr().out, blocks)

    for name in ("OneLength", "LargestSoFar"):
        own = namespace[name]()
        config = keras.saving.serialize_keras_object(own)
        assert type(weightings.get(config)) is type(own)
        model = networks.mgda_model(networks.plain, weighting=own)
        model.train_on_batch(*networks.data(model))
        assert np.isfinite(list(model.task_weights.values())).all()
