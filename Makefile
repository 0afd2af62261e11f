# Every target makes and reuses .venv by itself; `make help` lists them.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
# one process per core, one thread in each: two pools of threads on the same cores only wait for each other
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false
# compiled tests and modules are kept: every worker and every process that a test starts would compile them anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-latest test-lowest lock lint format bench docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# torch first, alone and by pip: the exact version lets pip choose a CPU build where one is offered.
# Nothing is compiled ahead: a tenth of the modules are ever imported, and those are compiled at their first import.
TORCH := torch==2.13.0
PIP := -m pip --disable-pip-version-check

$(STAMP): pyproject.toml requirements.lock tools/install.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 is needed: install it, or call make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "1/4  creating .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@echo "2/4  installing $(TORCH), the largest download"
	@$(BIN)/python $(PIP) install --no-compile $(TORCH)
	@echo "3/4  installing the packages of requirements.lock"
	@$(BIN)/python tools/install.py --no-deps -r requirements.lock
	@echo "4/4  installing dln itself"
	@$(BIN)/python $(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

# Environments of their own, made afresh: the newest versions that pyproject.toml allows, and the lowest.
.PHONY: newest lowest
newest:
	rm -rf .venv-latest
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python $(PIP) install --no-compile $(TORCH)
	.venv-latest/bin/python tools/install.py --upgrade -e '.[dev]'

lowest:
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tools/lowest_versions.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/python $(PIP) install --no-compile $(TORCH)
	.venv-lowest/bin/python tools/install.py --upgrade -c .venv-lowest/lowest.txt -e '.[dev]'

lock: newest  ## write requirements.lock anew, from the newest versions that pyproject.toml allows
	@echo "# Exact versions of everything that \`make test\` and \`make demo\` install; written by \`make lock\`." > requirements.lock
	.venv-latest/bin/python $(PIP) freeze --exclude-editable | sed 's/+[^ ;]*$$//' >> requirements.lock

test-latest: newest  ## the tests with the newest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 .venv-latest/bin/pytest -n 2 --dist worksteal -W default

test-lowest: lowest  ## the tests with every direct dependency at its lowest version
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n 2 --dist worksteal -W default

demo: $(STAMP)  ## train a network on the bundled task with the embedded model, offline
	$(BIN)/dln train --task questions --set ensemble=1

test: $(STAMP)  ## the tests
	$(PYTEST)

test-all: $(STAMP)  ## the same, with the tests that take longer
	$(BIN)/python tools/install.py --no-deps -r requirements-dspy.lock -r requirements-clusters.lock
	$(PYTEST) -m 'slow or not slow' --hypothesis-profile=thorough

lint: $(STAMP)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)  ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure the engine in one process (BENCH="--quick" or other flags)
	$(BIN)/python -m benchmarks $(BENCH)

docs: $(STAMP)  ## run every example of the documentation
	$(BIN)/pytest tests/test_docs.py -m 'not model'

clean:  ## remove the environment, caches and build products
	rm -rf .venv .venv-latest .venv-lowest build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
