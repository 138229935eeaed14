# Two commands set everything up on a fresh clone: `make demo` and `make test`.
# Both create .venv from requirements.lock themselves; `make setup` does just that. What only tests or checks need is in
# locks of its own, and `make test` and `make lint` add it to the same .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
CHECK_STAMP := $(VENV)/.installed-check
BEGAN := $(shell date +%s)
UV_VERSION := $(shell sed -n 's/^uv==//p' requirements.lock)
# A machine may keep wheels of its own (a CPU build of torch, for example): pip reads its variable, uv needs the flag.
FIND_LINKS := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)")
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python $(FIND_LINKS)

# No telemetry leaves the machine; stages/project/command.py sets the same values for direct calls of Python.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false

# Some machines turn off Python's bytecode cache. Each stage, flow and server is a process of its own and would then
# compile thousands of modules on every start: 14 s instead of 7 s for MLflow and Great Expectations.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-thorough lint format lock clean

help:
	@sed -n 's/^## //p' Makefile

## make setup    create .venv from requirements.lock and install the yolov7 command
setup: $(STAMP)

# torch's wheel holds the programs of its own C++ tests, 88 MB that nothing runs.
$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	$(INSTALL) -r requirements.lock
	$(INSTALL) --no-deps --editable .
	@rm -rf $(VENV)/lib/python3*/site-packages/torch/test
	@echo "$(VENV): $$(($$(du -sk $(VENV) | cut -f1) * 1024 / 1000000)) MB, set up in $$(($$(date +%s) - $(BEGAN))) s"
	@touch $@

$(TEST_STAMP): requirements-test.lock $(STAMP)
	$(INSTALL) -r requirements.lock -r requirements-test.lock
	@touch $@

$(CHECK_STAMP): requirements-check.lock $(STAMP)
	$(INSTALL) -r requirements.lock -r requirements-check.lock
	@touch $@

## make demo     run the whole pipeline on the embedded data: DVC stages, Prefect flow, MLflow registry
demo: $(STAMP)
	@$(BIN)/python -m flows.demo

## make test     run the tests (no GPU, no network)
test: $(TEST_STAMP)
	@$(BIN)/python -m pytest -m "not thorough"

## make test-thorough  the tests that take minutes more: S3, events, sign-in, on real servers
test-thorough: $(TEST_STAMP)
	@$(BIN)/python -m pytest -m thorough

## make lint     formatting, rules, types, import contracts, declared dependencies
lint: $(CHECK_STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/deptry yolov7 stages flows

## make format   format the sources
format: $(CHECK_STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

## make lock     resolve requirements*.in into their locks; pins stay where they still fit (UPGRADE="-P NAME" or -U)
# One resolution of all three makes the versions; each lock then takes what its own packages need, and the locks of tests
# and checks leave out what runs. torch's accelerator packages are in none: each build of torch pins its own, and a CPU
# build has none.
COMPILE = $(BIN)/uv pip compile --universal --python-version 3.11 $(FIND_LINKS) --no-annotate --no-header --quiet
lock: $(STAMP)
	@rm -rf $(VENV)/locks && mkdir $(VENV)/locks && cat requirements*.lock > $(VENV)/locks/all
	@$(COMPILE) requirements*.in $(UPGRADE) --output-file $(VENV)/locks/all
	@$(COMPILE) requirements.in --constraint $(VENV)/locks/all --output-file $(VENV)/locks/requirements.lock
	@for part in test check; do \
		$(COMPILE) requirements.in requirements-$$part.in --constraint $(VENV)/locks/all --output-file $(VENV)/locks/$$part || exit; \
		awk -F '[= ]' 'NR == FNR {runs[$$1]; next} !($$1 in runs)' $(VENV)/locks/requirements.lock $(VENV)/locks/$$part \
			> $(VENV)/locks/requirements-$$part.lock; \
	done
	@sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/; /^nvidia-\|^cuda-\|^triton/d' $(VENV)/locks/*.lock
	@mv $(VENV)/locks/*.lock . && rm -r $(VENV)/locks

## make clean    remove .venv and tool caches; data, models and runs stay
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
