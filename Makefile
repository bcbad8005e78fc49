# `make quickstart` and `make test` are all that one needs to start. Both keep to .venv; `make clean` removes it.
# Another interpreter: make test PYTHON=/path/to/python3.12

VENV ?= .venv
OLDEST := .venv-oldest
NEWEST := .venv-newest
BIN := $(VENV)/bin

# The first of these that runs and is new enough; a name alone proves neither.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$name && break; done)

# Tests in as many processes as there are cores, up to four: each holds a torch.
PROCESSES := --numprocesses auto --maxprocesses 4

# From Python 3.12 on, sys.monitoring counts the covered lines for nothing; the tracer of 3.11 makes a tiny run half as
# long again, so there it is asked for: make test COVERAGE=--cov
COVERAGE ?= $(shell $(BIN)/python -c 'import sys; print("--cov" * (sys.version_info >= (3, 12)))')

# What only a GPU can show is run where somebody has installed a torch for it.
PYTHON_HERE = $(or $(wildcard $(BIN)/python),python3)

GPU_ROW = $(PYTHON_HERE) -m tests.benchmarks.throughput --output tests/benchmarks/results/gpu-throughput.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart install test test-slow test-oldest test-newest gpu benchmark check format docs clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

quickstart: $(VENV)/.installed ## Make .venv, install the toolkit, train a small model in it
	$(BIN)/toolkit recipe run quickstart

install: $(VENV)/.installed-dev ## Make .venv with everything that development needs

test: check ## Make .venv, then check and test everything that takes seconds, with coverage
	$(BIN)/pytest $(PROCESSES) $(COVERAGE)

test-slow: $(VENV)/.installed-dev ## The tests that take minutes: whole runs, packaging, the README's commands
	$(BIN)/pytest -m slow $(PROCESSES)

test-oldest: $(OLDEST)/.installed-dev ## The tests with the oldest dependencies that pyproject.toml accepts
	@# datasets before 5.2 leaves an empty CSV file open, which nobody can catch. The anyio of these versions brings a
	@# plugin that imports a deprecated name from pytest.
	$(OLDEST)/bin/pytest $(PROCESSES) -p no:anyio -W ignore::pytest.PytestUnraisableExceptionWarning

test-newest: ## The tests with the newest releases on the package index, pyproject.toml's upper bounds aside
	$(call make-environment,$(NEWEST))
	@# No stamp: an index has new releases at any time. `pip check` says which bounds of ours they exceed.
	$(NEWEST)/bin/python -c "$$LOWER_BOUNDS" > $(NEWEST)/requirements.txt
	$(NEWEST)/bin/python -m pip install --upgrade --upgrade-strategy eager --requirement $(NEWEST)/requirements.txt
	$(NEWEST)/bin/python -m pip install --no-deps --editable .
	-$(NEWEST)/bin/python -m pip check
	$(NEWEST)/bin/pytest $(PROCESSES)

gpu: ## The tests and figures that need a GPU, into tests/benchmarks/results/gpu-*.txt; with the environment at hand
	$(PYTHON_HERE) -m pytest tests/gpu --numprocesses 6
	$(GPU_ROW)
	$(GPU_ROW) --model gpt2-350M --micro-batch-size 16
	$(GPU_ROW) --model llama-1B --block-size 2048 --micro-batch-size 4 --document-length 300
	$(GPU_ROW) --model llama-1B --block-size 8192 --micro-batch-size 1 --document-length 300
	$(PYTHON_HERE) -m pytest tests/benchmarks/test_muon.py tests/benchmarks/test_loss.py --benchmark-only --benchmark-columns=min,median,rounds
	$(PYTHON_HERE) -m tests.benchmarks.planned_memory --parallel 6 --output tests/benchmarks/results/gpu-planned-memory.txt

benchmark: $(VENV)/.installed-dev ## What is fast, against a baseline in the same run
	$(BIN)/pytest tests/benchmarks --benchmark-only --benchmark-columns=min,median,rounds
	$(BIN)/python -m tests.benchmarks.throughput
	$(BIN)/python -m tests.benchmarks.throughput --model gpt2-1M --steps 60 --baseline "bare, not compiled" \
		--contenders "bare, not compiled" Trainer toolkit

check: $(VENV)/.installed-dev ## Style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Put the code into its form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-docs ## The documentation as a website, in build/docs; a dead link is an error
	@# Everything anew: a page that did not change would keep its warnings to itself.
	$(BIN)/sphinx-build -W --keep-going --fresh-env -q -c docs/site -d build/doctrees . build/docs
	@echo build/docs/index.html

clean: ## Remove the environments, not the runs
	rm -rf $(VENV) $(OLDEST) $(NEWEST)

# A stamp is newer than what it was made from, or pip runs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(call make-environment,$(VENV))
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(call make-environment,$(VENV))
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt
	$(call make-environment,$(VENV))
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[docs]'
	@touch $@ $(VENV)/.installed

$(OLDEST)/.installed-dev: pyproject.toml constraints-oldest.txt
	$(call make-environment,$(OLDEST))
	$(OLDEST)/bin/python -m pip install --constraint constraints-oldest.txt --editable '.[dev]'
	@touch $@

# pyproject.toml's requirements without their upper bounds.
define LOWER_BOUNDS
import re, tomllib
project = tomllib.load(open('pyproject.toml', 'rb'))['project']
for requirement in project['dependencies'] + project['optional-dependencies']['dev']:
    print(re.sub(r',<[^,;]+', '', requirement))
endef
export LOWER_BOUNDS

define make-environment
@test -n "$(PYTHON)" || { echo "This needs Python 3.11 or later, and there is none on PATH; give one: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "This needs Python 3.11 or later, and $(PYTHON) is none" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef
