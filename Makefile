# make help lists what can be made. One virtual environment, .venv, for everything.
.DEFAULT_GOAL := help
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))) python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install demo test test-all lint format types check settings docs build lock audit bench notebooks reproduce reproduce-smoke clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# Made anew only when the dependencies change.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "kegnet_pl needs Python 3.11, 3.12 or 3.13; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $(READY)

install: $(READY) ## Create the virtual environment and install kegnet_pl into it

demo: $(READY) ## Compress a network for handwritten digits, without its data: one to two minutes
	$(BIN)/python -m kegnet_pl

test: $(READY) ## Run the test suite (real data: see docs/contributing/tests.md)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not gpu"

test-all: $(READY) ## Run all tests, those that need a GPU too
	$(BIN)/python -m pytest -n auto

lint: $(READY) ## Check style and formatting
	$(BIN)/ruff check src tests benchmarks examples reproduction docs/hooks.py
	$(BIN)/ruff format --check src tests benchmarks examples reproduction docs/hooks.py
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile; fi

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix src tests benchmarks examples reproduction docs/hooks.py
	$(BIN)/ruff format src tests benchmarks examples reproduction docs/hooks.py

types: $(READY) ## Check types (not of tests)
	$(BIN)/mypy

check: lint types test ## Check style and types, and run the tests

settings: $(READY) ## Write the reference pages of all settings and of results.json
	$(BIN)/python -m kegnet_pl.settings > docs/settings.md
	$(BIN)/python -m kegnet_pl.reporting > docs/reference/results_json.md

docs: $(READY) ## Build the documentation: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'site/index.html; with search: $(BIN)/python -m http.server --directory site'

build: $(READY) ## Build the wheel and the source distribution, and check them: dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

lock: $(READY) ## Write the installed versions of all dependencies: constraints.txt
	$(BIN)/python -m reproduction.dependencies lock > constraints.new
	mv constraints.new constraints.txt

audit: $(READY) ## List the licences of the dependencies, and known vulnerabilities where pip-audit is installed
	$(BIN)/python -m reproduction.dependencies audit

notebooks: $(READY) ## Run the notebooks again, and keep what they show
	PYTHONWARNINGS='ignore:IProgress not found' $(BIN)/jupyter execute --inplace notebooks/*.ipynb

bench: $(READY) ## Measure speed and memory against a direct implementation: results/bench.json, half an hour; DEVICE=cuda: ten minutes, again to continue
ifeq ($(DEVICE),cuda)
	$(BIN)/python -m benchmarks.variants
else
	$(BIN)/python -m benchmarks.bench
	$(BIN)/python -m benchmarks.bench --choices
endif

reproduce: $(READY) ## Run what is missing of the paper's tables; CELL=mnist_lenet/option3 RECIPE=paper TRAINER=gpu JOBS=2
	$(BIN)/python -m reproduction $(CELL) $(RECIPE:%=--recipe %) $(TRAINER:%=--trainer %) $(JOBS:%=--jobs %)

reproduce-smoke: $(READY) ## One tiny cell of each kind, end to end: minutes
	$(BIN)/python -m reproduction --smoke $(JOBS:%=--jobs %)

clean: ## Remove what builds and tests leave behind; results and the virtual environment stay
	rm -rf build dist site *.egg-info src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	find src tests conf -name __pycache__ -type d -prune -exec rm -rf {} +
