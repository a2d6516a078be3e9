# `make repro` and `make test` set everything up by themselves: they need Python >= 3.11, git and make.
PYTHON ?= python3
BIN := .venv/bin
export DVC_NO_ANALYTICS := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: repro test test-slow docs docs-check lint setup lock clean

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "memoir needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@if test -e .git; then $(BIN)/memoir data install-merge; fi
	@touch $@

# From raw photographs to published, evaluated checkpoints and report/index.html.
repro: setup
	@test -e datasets || $(BIN)/memoir sample
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/memoir with-ray dvc repro

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m "not slow and not docs" --numprocesses=logical --maxprocesses=8 --dist=loadfile

# The tests that take minutes: kills and restarts of whole runs.
test-slow: setup
	$(BIN)/pytest -m slow --timeout=1200 --numprocesses=logical --maxprocesses=4 --dist=loadfile

# The documentation as a site, and every command in it from a fresh clone.
docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --quiet --strict

docs-check: setup
	$(BIN)/pytest -m docs --timeout=2000 -rP

# Exact versions of everything, transitive too; torch without its build tag, so that a GPU machine takes its own build.
lock: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	echo 'torch==2.13.0' | $(BIN)/uv pip compile --quiet --no-header --upgrade-package torch --extra dev --constraint - \
	  $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) --output-file requirements.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock

clean:
	rm -rf .venv .cache data runs report store site
