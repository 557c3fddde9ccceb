"""The figures in README and docs are those of the files under benchmarks/."""

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tables  # noqa: E402


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_tables_are_as_measured(page):
    text = page.read_text()
    assert tables.filled(text) == text, "run `python benchmarks/tables.py`"


def test_a_changed_figure_is_noticed():
    text = tables.filled("<!-- table step_cost -->\n<!-- end -->")
    figure = re.search(r"\d\.\d\d", text)[0]
    changed = text.replace(figure, "9.87", 1)
    assert tables.filled(changed) == text


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_shown(name):
    shown = "".join(page.read_text() for page in tables.PAGES)
    assert f"<!-- table {name} -->" in shown


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
