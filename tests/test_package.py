import ast
import doctest
import importlib.util
import inspect
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import keras_mgda

PACKAGE = pathlib.Path(keras_mgda.__file__).parent
ROOT = PACKAGE.parent
MODULES = [
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "keras_mgda.")
    if not module.name.endswith("__main__")
]


# What functions return; their examples are those of the functions.
RESULTS = ("Diagnosis", "MinNormPoint")


def test_public_names_are_those_of_all():
    public = {
        name
        for name in dir(keras_mgda)
        if not name.startswith("_")
        and not inspect.ismodule(getattr(keras_mgda, name))
    }
    assert keras_mgda.__all__ == sorted(keras_mgda.__all__)
    modules = {
        name
        for name in keras_mgda.__all__
        if inspect.ismodule(getattr(keras_mgda, name))
    }
    assert set(keras_mgda.__all__) == public | modules
    assert "weightings" in modules
    assert {
        "MGDAModel",
        "MinNormPoint",
        "SharedRepresentation",
        "gram_matrix",
        "min_norm_point",
    } <= public


@pytest.mark.slow
def test_serving_is_loaded_when_it_is_asked_for():
    script = (
        "import sys, keras_mgda\n"
        "assert not [m for m in sys.modules if 'keras_mgda.serving' in m]\n"
        "keras_mgda.export_saved_model, keras_mgda.serving\n"
        "print(keras_mgda.__version__)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    version = re.search(
        r'version = "(.*)"', (ROOT / "pyproject.toml").read_text()
    )
    assert done.stdout.strip() == version[1]


@pytest.mark.parametrize("name", keras_mgda.__all__)
def test_public_names_are_documented(name):
    thing = getattr(keras_mgda, name)
    summary, _, rest = inspect.getdoc(thing).partition("\n")
    assert summary.endswith(".")
    if not inspect.ismodule(thing) and name not in RESULTS:
        assert ">>> " in rest


def imported_by(name):
    """The modules of the package that this one imports."""
    spec = importlib.util.find_spec(name)
    tree = ast.parse(pathlib.Path(spec.origin).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they go"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in MODULES else node.module)
    return found & set(MODULES)


def test_imports_run_one_way():
    imports = {name: imported_by(name) for name in MODULES}
    while imports:
        first = {name for name, others in imports.items() if not others}
        assert first, f"import each other: {imports}"
        imports = {
            name: others - first
            for name, others in imports.items()
            if name not in first
        }


def test_readme_lists_the_files_in_the_order_of_their_imports():
    listed = re.search(
        r"^keras_mgda/\n((?:  .*\n)+)", (ROOT / "README.md").read_text(), re.M
    )
    names = [line.split()[0] for line in listed[1].splitlines()]
    assert set(names) == {
        path.name + "/" * path.is_dir()
        for path in PACKAGE.iterdir()
        if not path.name.startswith("_") and path.name != "py.typed"
    }
    order = [f"keras_mgda.{re.sub('[.]py$|/$', '', name)}" for name in names]

    def top(module):
        return ".".join(module.split(".")[:2])

    for name in MODULES:
        for other in imported_by(name):
            if top(name) != top(other) and top(name) in order:
                assert order.index(top(other)) < order.index(top(name)), name


def test_mathematics_stands_on_its_own():
    """TensorFlow aside, `linalg` and `weightings` know nothing but `linalg`."""
    of_folder = {
        folder: {name for name in MODULES if f".{folder}" in name}
        for folder in ("linalg", "weightings")
    }
    for name in of_folder["linalg"]:
        assert imported_by(name) <= of_folder["linalg"]
    for name in of_folder["weightings"]:
        assert imported_by(name) <= set.union(*of_folder.values())


def test_serving_and_distribution_know_nothing_of_mgda():
    for folder in ("serving", "distribution"):
        for name in (name for name in MODULES if f".{folder}" in name):
            others = {
                module
                for module in imported_by(name)
                if f".{folder}" not in module
            }
            assert others <= {"keras_mgda.internals"}, name


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.sample(8)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    source = inspect.getsource(module)
    assert result.attempted == len(re.findall(r"^\s*>>> ", source, re.M))


def messages(name):
    """The text of what a module raises, where it is written out."""
    tree = ast.parse(inspect.getsource(importlib.import_module(name)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            parts = [
                part.value
                for part in ast.walk(node.exc)
                if isinstance(part, ast.Constant)
                and isinstance(part.value, str)
            ]
            yield node.exc.func, "".join(parts)


@pytest.mark.parametrize("name", MODULES)
def test_errors_say_what_was_received(name):
    for error, message in messages(name):
        if getattr(error, "id", "") in ("ValueError", "TypeError"):
            assert "Received: " in message, message


def python(code, cwd=None, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
    )


def refusal(process):
    """The one sentence that the import fails with."""
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    kind, _, sentence = last.partition(": ")
    assert kind == "ImportError"
    assert len(re.findall(r"\.( |$)", sentence)) == 1
    return sentence


def test_import_without_tensorflow_says_what_to_install():
    process = python(
        "import sys; sys.modules['tensorflow'] = None; import keras_mgda"
    )
    sentence = refusal(process)
    assert "TensorFlow" in sentence
    assert "pip install 'keras_mgda[cpu]'" in sentence


@pytest.mark.slow
def test_import_with_another_backend_says_what_to_set():
    process = python(
        "import keras; keras.backend.backend = lambda: 'torch'; "
        "import keras_mgda"
    )
    sentence = refusal(process)
    assert "'torch'" in sentence
    assert "KERAS_BACKEND=tensorflow" in sentence


def test_import_with_a_backend_that_is_not_installed_says_what_to_set():
    """Keras itself does not import then."""
    process = python(
        "import sys; sys.modules['jax'] = None; import keras_mgda",
        KERAS_BACKEND="jax",
    )
    assert "KERAS_BACKEND=tensorflow" in refusal(process)
