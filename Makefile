# `make demo` and `make test` need python3 with venv, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Material for MkDocs advertises its successor in every build otherwise.
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: demo docs docs-server test test-slow test-all lint wheel clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[cpu,examples]"
	touch $@

$(VENV)/ready-for-tests: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable ".[cpu,examples,serving-tests,docs,dev]"
	$(BIN)/python -m pip install --quiet --no-deps tensorflow-serving-api \
		keras-hub kagglehub kagglesdk regex tokenizers
	touch $@

$(VENV)/ready-for-docs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

# Into build/site; `make docs-server` shows it while you write.
docs: $(VENV)/ready-for-docs
	$(BIN)/mkdocs build

docs-server: $(VENV)/ready-for-docs
	$(BIN)/mkdocs serve

demo: $(VENV)/ready
	$(BIN)/python -m examples.multi_mnist
	$(BIN)/python -m examples.serve

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

# The mathematics and the conformance with Keras, within six minutes.
test: lint
	$(PYTEST)

# What `make test` leaves out: whole matrices, replicas, workers, processes, the
# C loader and the long runs of the examples. In three runs, for TensorFlow keeps
# every program that it has compiled: one process of all would need 12 GB.
LARGE := tests/conformance tests/descent tests/weightings
OTHERS := tests/zoo tests/distribution
test-slow: $(VENV)/ready-for-tests
	$(PYTEST) -m slow $(OTHERS)
	$(PYTEST) -m slow $(LARGE)
	$(PYTEST) -m slow $(patsubst %,--ignore %,$(OTHERS) $(LARGE))

test-all: test test-slow

lint: $(VENV)/ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Builds the wheel, or takes WHEEL=, and uses it where neither this folder nor
# what tests need is.
wheel:
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel/venv
	$(if $(WHEEL),cp $(WHEEL) build/wheel,build/wheel/venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .)
	build/wheel/venv/bin/python .ci/contents.py build/wheel/*.whl
	build/wheel/venv/bin/python -m pip install --quiet "$$(ls build/wheel/*.whl)[cpu]"
	cd build/wheel && venv/bin/python -I ../../.ci/wheel.py

clean:
	rm -rf $(VENV) build
