"""The figures in README and docs are those of the files under benchmarks/."""

import json
import math
import re

import pytest

from benchmarks import tables


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_tables_are_as_measured(page):
    text = page.read_text()
    assert tables.filled(text) == text, "run `python -m benchmarks.tables`"


def test_a_changed_figure_is_noticed():
    text = tables.filled("<!-- table step_cost -->\n<!-- end -->")
    figure = re.search(r"\d\.\d\d", text)[0]
    changed = text.replace(figure, "9.87", 1)
    assert tables.filled(changed) == text


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_shown(name):
    shown = "".join(page.read_text() for page in tables.PAGES)
    assert f"<!-- table {name} -->" in shown


def run_of(seed, rate, validation, test, epochs=10, search=False):
    both = ("left", "right")
    return {
        "method": "uniform",
        "learning_rate": rate,
        "seed": seed,
        "epochs": epochs,
        "search": search,
        "validation": dict.fromkeys(both, validation),
        "test": dict.fromkeys(both, test),
    }


@pytest.fixture
def results(tmp_path):
    """Of which the rate that is worse on validation is better on test."""
    found = [
        run_of(0, 0.1, validation=90.0, test=80.0),
        run_of(0, 0.2, validation=85.0, test=99.0),
        run_of(1, 0.1, validation=80.0, test=82.0),
        run_of(2, 0.1, validation=99.0, test=87.0),
        run_of(0, 0.1, validation=95.0, test=95.0, epochs=4, search=True),
    ]
    lines = "".join(json.dumps(run) + "\n" for run in found)
    (tmp_path / "accuracy.jsonl").write_text(lines)
    return tmp_path


def test_learning_rate_is_chosen_without_the_test_split(results):
    runs = tables.accuracy_runs(results)
    assert list(runs) == [10]  # 4 epochs are only a search
    assert {
        seed: run["test"]["left"] for seed, run in runs[10]["uniform"].items()
    } == {0: 80.0, 1: 82.0, 2: 87.0}


def test_interval_by_hand(results):
    """Of 80, 82 and 87: mean 83, deviation sqrt(13), Student's t 4.3027."""
    mean, half = tables.accuracy_rows(results)[10]["uniform"]["left"]
    assert mean == pytest.approx(83)
    assert half == pytest.approx(4.30265 * (13 / 3) ** 0.5, rel=1e-5)
    _, unknown = tables.interval([80.0])  # one seed tells no interval
    assert math.isnan(unknown)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


SCRIPTS = [
    path
    for folder in ("benchmarks", "examples")
    for path in sorted((tables.ROOT / folder).glob("**/*.py"))
]


@pytest.mark.parametrize(
    "path",
    [*tables.PAGES, tables.ROOT / "Makefile", *SCRIPTS],
    ids=lambda path: path.name,
)
def test_commands_run_what_is_there(path):
    text = path.read_text()
    for module in re.findall(r"python -m ((?:benchmarks|examples)\S+\w)", text):
        script = tables.ROOT / (module.replace(".", "/") + ".py")
        if script.with_suffix("").is_dir():
            script = script.with_suffix("") / "__main__.py"
        assert module.endswith("NAME") or 'if __name__ == "__main__"' in (
            script.read_text()
        )
    assert not re.search(r"python (benchmarks|examples)/", text)
    assert "sys.path" not in text
