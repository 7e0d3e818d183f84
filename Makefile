# Two commands do everything on a fresh machine with Python (3.10 or newer), git and make:
#   make demo    set up, then transcribe the example speech and let a painting say it
#   make test    set up, then lint, types, the site and the fast tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTED := $(VENV)/.tested
WEIGHTS := $(VENV)/.weights
# a path in place of an import hook: an interpreter starts in half the time, and the pool starts many
EDITABLE := --config-settings editable_mode=compat -e

# the tests start some thousand interpreters: each would compile everything anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-cluster test more lint docs rewritten slow chaos chaos-cluster bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "filepool needs Python 3.10 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) ".[all]"
	@touch $@

# what only the tests need: linters, pytest, mkdocs, and the packages of the optional backends
$(TESTED): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) ".[all,funasr,musetalk,dev,docs]"
	$(BIN)/python -m inference.weights install
	$(BIN)/python -m inference.weights install whisper-tiny.en
	@touch $@

$(WEIGHTS): $(READY) inference/manifest.py
	$(BIN)/python -m inference.weights install
	@touch $@

setup: $(READY) $(WEIGHTS)  ## virtual environment, packages, model weights

demo: setup  ## transcripts with speakers, and a painting that talks
	$(BIN)/python examples/demo.py

demo-cluster: setup  ## the same on three nodes behind a server, all of them on this machine
	$(BIN)/python examples/cluster.py

lint: $(TESTED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

docs: $(TESTED)  ## the site of docs/, with the reference, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# pytest rewrites the modules of the tests and keeps the result: here once, else in each process of `test` at a time
rewritten: $(TESTED)
	-@$(BIN)/pytest --collect-only -qq > /dev/null

test: setup $(TESTED)  ## lint, types, the site and the fast tests
	@$(MAKE) --no-print-directory -j 2 lint docs rewritten
	$(BIN)/pytest -m "not slow and not long" -n 4 --dist worksteal -q

more: setup $(TESTED)  ## a process killed at each of its steps, adapters, the console in a browser, what takes seconds
	$(BIN)/pytest -m "long and not slow" -n 4 --dist worksteal -q

slow: setup $(TESTED)  ## storms, floods and long runs; five hundred examples of each property
	$(BIN)/pytest -m slow -q
	$(BIN)/pytest -m "hypothesis and not slow" --hypothesis-profile thorough --timeout 900 -q

chaos: setup $(TESTED)  ## half an hour of killed and stopped processes; nothing may be lost or run twice
	$(BIN)/python tests/chaos --seconds 1800

MINUTES ?= 5
chaos-cluster: setup $(TESTED)  ## machines of a cluster killed, cut off, stopped, filled: MINUTES=5 SEED=1; root and ip
	$(BIN)/python tests/cluster_storm --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: setup $(TESTED)  ## every figure of docs/BENCH.md on this machine
	$(BIN)/python -m bench

clean:  ## remove what was built; weights stay
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache demo
