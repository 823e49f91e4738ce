# Every target works from a fresh clone: it first makes .venv and installs what it needs into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINI := runs/mini
# Tests run in parallel, with one thread each and one process more than cores, because some tests wait. A file stays in
# one process, because its tests share fixtures that take seconds. The longest files come first.
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(8, (os.cpu_count() or 1) + 1))')
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install mini test check lint format bench

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/dev.stamp  ## make .venv and install the package with its development tools

mini: $(VENV)/segment.stamp  ## the demo: two pretrainings and random weights through five transfers, 5 to 15 minutes on two CPU cores
	$(BIN)/python tools/reproduce.py configs/suites/mini.py --work-dir $(MINI) --jobs 2
	@echo "The same command continues after an interruption. To start again: rm -r $(MINI)"

test: lint  ## what CI runs: lint, types and every test that is not slow
	$(TEST)

check: lint  ## before each commit: lint, types and the fast tests
	$(TEST) tests/unit tests/policy

lint: install  ## ruff and mypy only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff format the code and repair what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/bench.stamp  ## time the training step against peers installed from PyPI
	$(BIN)/python tools/benchmark.py pretrain

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("mae_transfer needs Python 3.11 or newer, $(PYTHON) is %d.%d; name another: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/%.stamp: setup.py | $(BIN)/python
	@echo "Installing into $(VENV): minutes, and about 6 GB where pip brings torch with CUDA"
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
