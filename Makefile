# Every target sets up what it needs; on a fresh machine only git, make and
# python3.11 (with its venv module) are asked for. `make help` lists targets.

# Another interpreter of the same version: make PYTHON=/path/to/python3.11
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# xdist workers; each limits TensorFlow to its share (tests/conftest.py).
WORKERS ?= 2
# Of benchmarks/; the others write results of minutes to hours, and say how.
BENCHMARKS ?= conversion fake_quant input_pipeline search_step verification

export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow lint types bench clean

help:  ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(STAMP)  ## Make or update the environment in .venv.

# `test -x` and not a target: an environment that stands already is kept, and
# pip brings it to the versions of constraints.txt. pyproject.toml is not a
# prerequisite: it holds tool settings, which need no installation.
$(STAMP): setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
	    --constraint constraints.txt --editable '.[dev,demo]'
	touch $@

demo: $(STAMP)  ## Search formats for a small network on the embedded digits.
	$(BIN)/python -m fliqs_tf.bin.search --flagfile=flags/presets/digits.flags

test: lint types  ## Everything CI checks: lint, types, tests but the slow ones.
	$(BIN)/python -m pytest --numprocesses=$(WORKERS)

test-slow: $(STAMP)  ## Only the tests marked slow.
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) -m slow

lint: $(STAMP)  ## Style and import order (ruff).
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## Static types (mypy).
	$(BIN)/mypy

bench: $(STAMP)  ## Measure the speed of steps, kernel, conversion and input.
	@set -e; for name in $(BENCHMARKS); do \
	    echo "$$name"; $(BIN)/python benchmarks/$$name.py; done

clean:  ## Remove what tools wrote; the environment too.
	rm -rf $(VENV) out dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
