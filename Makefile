# Everything a person does with a checkout. Set-up happens by itself, once, in $(VENV).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# Pins for what is installed and for what builds it. Nothing is asked, nothing is said but errors.
PIP    := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 \
          $(BIN)/python -m pip install --quiet
NEEDS  := pyproject.toml constraints.txt
# Where it is set, each of the hundreds of programs that the tests start compiles everything anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test check test-engines bench docs clean
.DELETE_ON_ERROR:

help:
	@echo 'make run            a control plane and an agent on loopback, with a small real workload'
	@echo '                    (until Ctrl-C; ARGS=--once ends by itself)'
	@echo 'make test           the whole test suite, without what needs an engine (ARGS="-k name")'
	@echo 'make check          linters, types, import contracts, and the coverage gate of the core'
	@echo 'make test-engines   the tests that need bubblewrap or PostgreSQL (REQUIRE_ENGINES=1:'
	@echo '                    none may skip)'
	@echo 'make bench          tasks per second against xargs, and where the time goes'
	@echo 'make docs           write settings.toml and docs/settings.md anew from the models'
	@echo 'make clean          remove $(VENV) and everything that was built or cached'

run: $(VENV)/.run
	@$(BIN)/remotegpu demo $(ARGS)

test: $(VENV)/.test
	@AHEAD=4 $(BIN)/python -m pytest -q -n 3 --dist worksteal -m 'not engines' $(ARGS)

check: $(VENV)/.check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo 'run $(BIN)/ruff format'; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q -n 2 --dist worksteal -m 'not engines' tests/agent_core
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --skip-covered

test-engines: $(VENV)/.test
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m engines $(ARGS)

bench: $(VENV)/.test
	@$(BIN)/python -m tests.load.bench $(ARGS)

docs: $(VENV)/.run
	@$(BIN)/python docs/make_settings.py

clean:
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@rm -rf .coverage* *.egg-info
	@find . -name __pycache__ -prune -exec rm -rf {} +

# One stamp for each set of extras: a second run installs nothing.
$(VENV)/.run: $(BIN)/python $(NEEDS)
	@echo 'setting up $(VENV) (once) ...'
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(BIN)/python $(NEEDS)
	@echo 'setting up $(VENV) with the test tools (once) ...'
	@$(PIP) --editable '.[test]'
	@touch $(VENV)/.run $@

$(VENV)/.check: $(BIN)/python $(NEEDS)
	@echo 'setting up $(VENV) with the test tools and linters (once) ...'
	@$(PIP) --editable '.[test,check]'
	@touch $(VENV)/.run $(VENV)/.test $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'remotegpu needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...'; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo 'the venv module is missing: apt-get install python3-venv'; exit 1; }
