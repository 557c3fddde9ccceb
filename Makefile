# `make demo` and `make test` need python3 with venv, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test lint clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[cpu,examples]"
	touch $@

$(VENV)/ready-for-tests: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable ".[cpu,examples,serving-tests,dev]"
	$(BIN)/python -m pip install --quiet --no-deps tensorflow-serving-api
	touch $@

demo: $(VENV)/ready
	$(BIN)/python -m examples.multi_mnist
	$(BIN)/python -m examples.serve

# In two parts: XLA keeps memory mapped for all that it compiles, and Linux lets
# a process have 65530 maps.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

test: lint
	$(PYTEST) tests/serving tests/test_[a-m]*.py
	$(PYTEST) tests/test_[n-z]*.py

lint: $(VENV)/ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
