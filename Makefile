# Each command sets up .venv itself; it needs Python 3.11+ and pip.
PYTHON ?= python3
VENV ?= .venv
CUDA ?= cuda13
BIN = $(abspath $(VENV))/bin

.PHONY: help demo test test-slow test-gpu lint types clean

help:
	@echo "make demo        train on the bundled GDELT sample, then measure it beside the baselines"
	@echo "make test        ruff, mypy and the tests"
	@echo "make test-slow   the tests that take minutes"
	@echo "make test-gpu    the tests of an NVIDIA GPU; CUDA=cuda12 for an older driver"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "geopol-tkg needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "geopol-tkg needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	rm -rf demo && mkdir demo
	cd demo && $(BIN)/geopol-tkg train --patience 15
	cd demo && $(BIN)/geopol-tkg eval
	cd demo && $(BIN)/geopol-tkg compare models/tkg/counts_best recurrency frequency --pass-threshold -100

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow and not gpu'

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(CUDA)]'
	JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m pytest -m gpu

clean:
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
