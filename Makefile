# Every target makes .venv itself when it is missing or its lock has changed. Support: Linux x86-64, Python 3.11.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := requirements/dev.lock
OLDEST := requirements/openai-oldest.lock
# torch's CPU build is not on the public package index. The places that pip is configured with come first (a wheel
# folder or a mirror may have it), then this index.
export TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

PYTEST    := $(BIN)/python -m pytest
# By file, because tests of one file share engines, workers and models.
ALL_CORES := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Engines, processes that install or serve, thousands of verdicts: 20 s and more a file.
SLOWER    := $(addprefix tests/,verifiers/test_sandbox.py verifiers/test_mathematics.py services/test_planning.py \
             services/test_supervisor.py test_packaging.py test_setup.py)
FAST      := $(filter-out $(SLOWER),$(wildcard tests/test_*.py)) \
             $(addprefix tests/,core data docs services theory verifiers) \
             $(addprefix --ignore ,$(SLOWER)) -k "not postgresql"

export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
# A test run starts some 200 processes that import the same modules.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-units test-stack test-fast test-slow test-pythons check serve bench clean lock

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/ready ## install everything into .venv (the other targets do it too)

demo: $(VENV)/ready ## run the main job on this machine and print what came of it
	$(BIN)/wmss demo

# One after the other: both keep two cores busy, and tests with a time limit fail on a machine that is more than busy.
test: $(VENV)/ready ## run the test suite: test-units, then test-stack
	@$(MAKE) --no-print-directory --keep-going test-units test-stack

test-units: $(VENV)/ready ## run what needs no running service
	$(PYTEST) --ignore tests/integration $(ALL_CORES)

test-stack: $(VENV)/ready ## run what needs a running service (Ray, vLLM), on two services at a time
	$(PYTEST) tests/integration --numprocesses 2 --dist loadfile

test-fast: $(VENV)/ready ## run the tests of a few seconds each: no engine, no service, no PostgreSQL
	$(PYTEST) $(FAST) $(ALL_CORES)

test-slow: $(VENV)/ready ## run the long tests as well
	$(PYTEST) -m "not gpu" --all-databases

test-pythons: $(VENV)/ready ## run the tests that need no torch on Python 3.12, 3.13 and 3.14, of those installed
	$(BIN)/python -m tests.pythons

check: $(VENV)/ready ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

serve: $(VENV)/ready ## run the service on this machine until Ctrl-C
	$(BIN)/wmss serve

bench: $(VENV)/ready ## run the benchmarks: one JSON line per arm, about half an hour
	$(BIN)/python -m benchmarks

clean: ## remove .venv and caches (not the service's home)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

lock: $(VENV)/ready ## resolve pyproject.toml and rewrite requirements/*.lock
	BIN=$(BIN) requirements/lock.sh

# The stamp holds the lock it was made from, so the environment is rebuilt when the lock has changed, and only then.
$(VENV)/ready: $(LOCK) $(OLDEST) pyproject.toml requirements/install.py
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; install it or say PYTHON=..."; exit 1; }
	@cmp -s $(LOCK) $@ || { echo "setup: $(VENV), 3 GB, in about two minutes"; rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV); }
	@$(BIN)/python requirements/install.py $(LOCK) $(OLDEST)
	@cp $(LOCK) $@
