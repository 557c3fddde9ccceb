"""The site builds without a warning, and nothing is missing on it."""

import html.parser
import importlib
import os
import re
import subprocess
import sys
import types
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml

import keras_mgda
from tests.support.processes import ROOT

DOCS = ROOT / "docs"
MODULES = [
    name
    for name in [*keras_mgda.__all__, "diagnosis"]
    if isinstance(
        getattr(keras_mgda, name, None)
        or importlib.import_module(f"keras_mgda.{name}"),
        types.ModuleType,
    )
]
pytestmark = pytest.mark.slow


class Page(html.parser.HTMLParser):
    """The tags, anchors and links of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.anchors, self.links = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.anchors.add(attributes.get("id"))
        self.links |= {attributes.get("href"), attributes.get("src")} - {None}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """`{path of a page on the site: what is on it}`, and the folder."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {
        f"/{path.relative_to(folder).parent}/".replace("/./", "/"): Page(
            path.read_text()
        )
        for path in folder.rglob("index.html")
    }
    return folder, pages


def test_every_page_is_in_the_navigation(site):
    _, pages = site
    _, nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")
    listed = re.findall(r"(\S+\.(?:md|ipynb))$", nav.split("\n\n")[0], re.M)
    assert sorted(listed) == sorted(
        str(path.relative_to(DOCS))
        for kind in ("*.md", "*.ipynb")
        for path in DOCS.rglob(kind)
        if "checkpoint" not in path.name
    )
    assert len(pages) == len(listed)


def test_links_lead_somewhere(site):
    folder, pages = site
    reached = set()
    for address, page in pages.items():
        for link in page.links:
            to = urlsplit(urljoin(f"http://site{address}", link))
            if to.hostname != "site" or to.scheme != "http":
                continue
            path = unquote(to.path)
            if path in pages:
                reached.add(path)
                anchor = unquote(to.fragment)
                assert not anchor or anchor in pages[path].anchors, link
            else:
                assert (folder / path.lstrip("/")).is_file(), link
    assert reached == set(pages)


def test_a_page_loads_nothing_from_elsewhere(site):
    folder, _ = site
    loads = r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"?(https?:[^\" >]*)"
    for path in folder.rglob("*.html"):
        assert not re.findall(loads, path.read_text()), path


def test_no_formula_is_taken_for_a_tag(site):
    """As `<g_t, d>` is, in text that is not marked as code."""
    _, pages = site
    for address, page in pages.items():
        wrong = [tag for tag in page.tags if not re.fullmatch("[a-z0-9]+", tag)]
        # The button beside the cells of a notebook.
        assert set(wrong) <= {"clipboard-copy"}, address


def test_public_names_are_in_the_reference(site):
    _, pages = site
    reference = {
        anchor
        for address, page in pages.items()
        if address.startswith("/api/")
        for anchor in page.anchors
    }
    public = {f"keras_mgda.{name}" for name in keras_mgda.__all__}
    for name in MODULES:
        module = importlib.import_module(f"keras_mgda.{name}")
        of_module = getattr(module, "__all__", None) or [
            thing
            for thing, value in vars(module).items()
            if not thing.startswith("_")
            and getattr(value, "__module__", "") == module.__name__
            and callable(value)
        ]
        assert of_module
        for thing in of_module:
            path = f"{module.__name__}.{thing}"
            # A module of that name hides it; then it is where it is defined.
            public.add(f"{path}.{thing}" if path in sys.modules else path)
    assert sorted(public - reference) == []


def test_sections_of_docstrings_are_sections(site):
    """None is left as a paragraph, and no example as a quotation."""
    folder, pages = site
    titles = "Args|Raises|Returns|Example|Examples|References|Attributes|Yields"
    for address, page in pages.items():
        if address.startswith("/api/"):
            text = (folder / address.lstrip("/") / "index.html").read_text()
            assert not re.search(f"<p>({titles}):", text), address
            assert "blockquote" not in page.tags, address
    text = (folder / "api" / "index.html").read_text()
    assert "(Eq. 3 of the paper)" in text
    formula = re.search(r"<code>min_w .*?</code>", text, re.S)
    assert formula
    assert "subject to" in formula[0]


@pytest.mark.parametrize(
    "path", [*DOCS.rglob("*.md"), ROOT / "README.md"], ids=str
)
def test_files_that_a_page_names_are_there(path):
    named = re.findall(
        r"\b((?:tests|examples|benchmarks|keras_mgda)/[\w/]+\.\w+)",
        path.read_text(),
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    if path.stem == "how-it-works":
        inside = re.findall(r"`((?:\w+/)*\w+\.py)`", path.read_text())
        assert inside
        for name in inside:
            if not name.startswith("keras_mgda/"):
                assert (ROOT / "keras_mgda" / name).exists(), name


def test_versions_are_those_that_are_allowed_and_tested():
    page = (DOCS / "versions.md").read_text()
    lowest = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", page, re.M))
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={lowest["Python"]}"' in project
    assert f'"keras>={lowest["Keras"]}"' in project
    for name in ("tensorflow-cpu", "tensorflow[and-cuda]", "tensorflow-tpu"):
        assert f'["{name}>={lowest["TensorFlow"]}"]' in project
    constraints = (ROOT / ".ci" / "lowest.txt").read_text()
    assert f"keras=={lowest['Keras']}.0" in constraints
    assert f"tensorflow-cpu=={lowest['TensorFlow']}.*" in constraints
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    tested = yaml.safe_load(workflow)["jobs"]["test"]["strategy"]["matrix"]
    said = re.search(r"^\| Python \|.*\| (.*) \|$", page, re.M)[1]
    assert [case["python"] for case in tested["include"]] == said.split(" and ")


def test_one_version():
    version = re.search(
        r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M
    )[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == version
    newest = re.search(r"(?m)^## (.*)$", (ROOT / "CHANGELOG.md").read_text())[1]
    assert newest in ("Unreleased", version)
