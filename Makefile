# Two commands people need: `make demo` and `make test`. Both make .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test test-slow check bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## make .venv with everything the demo and the tests need

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## fit a planted half-life through a LoRA-tuned BERT, a few minutes on two cores
	$(BIN)/python train.py model=bert_lora decay=exponential

test: setup  ## the fast suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal

test-slow: setup  ## everything, the minutes-long proofs included
	$(BIN)/python -m pytest

check: setup  ## ruff, mypy and the import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

bench: setup  ## the figures of the README's speed table
	$(BIN)/python benchmarks/encoding.py

clean:  ## remove .venv and caches; runs/ and multirun/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
