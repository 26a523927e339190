# Everything needs Python 3.11 or newer and make; the rest is installed into .venv from requirements.lock.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
SHELL := /bin/sh

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
VENV := .venv
FRAMEWORKS := .venv-frameworks
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
PROJECTS := pyproject.toml clients/python/pyproject.toml
# So many tests run at a time: most wait for a daemon more than they compute.
WORKERS ?= 4

.PHONY: help run test test-js test-frameworks check generate bench bench-large bench-recall lock wheels clean

help:
	@echo 'witsd: the init system for AI agents'
	@echo
	@echo '  make run       start the daemon here, in the foreground (sets up .venv the first time)'
	@echo '  make test      every check and every test; what CI runs'
	@echo '  make test-frameworks  LangChain'\''s standard tests and agents of other frameworks, in an environment of their own'
	@echo '  make check     ruff, mypy --strict, import-linter, and whether generated files are fresh'
	@echo '  make generate  write protocol/ and the client types from the declarations in witsd/'
	@echo '  make bench     the figures of the README, each beside a floor measured in the same run'
	@echo '  make bench-large  memory with a million records, which takes a quarter of an hour to make and is kept'
	@echo '  make bench-recall  of what answers a question, how much memory finds; MINILM=fetch measures minilm, too'
	@echo '  make wheels    the two wheels, in dist/'
	@echo '  make lock      resolve requirements.lock anew'
	@echo '  make clean     remove what these targets made'

run: $(VENV)/.run
	@exec $(BIN)/witsd up

test: check
	@echo 'testing the daemon'
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
	@echo 'testing the client'
	@cd clients/python && ../../$(BIN)/python -m pytest
	@if command -v npm >/dev/null; then $(MAKE) test-js; else echo 'the JavaScript client is not tested: there is no npm'; fi

test-js: $(VENV)/.dev clients/js/node_modules
	@echo 'testing the JavaScript client'
	@cd clients/js && npm run --silent check && npm test --silent

clients/js/node_modules: clients/js/package-lock.json
	@cd clients/js && npm ci --silent && touch node_modules

# In an environment of their own: frameworks bring much, plugins of pytest among it.
test-frameworks: $(FRAMEWORKS)/.done
	@echo 'testing LangChain and other frameworks'
	@$(FRAMEWORKS)/bin/python -m pytest -c tests/frameworks/pytest.ini tests/frameworks

$(FRAMEWORKS)/.done: tests/frameworks/requirements.txt tests/frameworks/requirements.lock $(PROJECTS)
	@echo 'installing frameworks into $(FRAMEWORKS) (the first time this takes minutes)'
	@test -x $(FRAMEWORKS)/bin/python || $(PYTHON) -m venv $(FRAMEWORKS)
	@$(FRAMEWORKS)/bin/python -m pip --disable-pip-version-check --quiet --no-input install \
		--constraint tests/frameworks/requirements.lock --editable clients/python --editable . \
		--requirement tests/frameworks/requirements.txt
	@touch $@

check: $(VENV)/.dev
	@echo 'checking: ruff, mypy, imports, generated files'
	@$(BIN)/python -m ruff check --quiet --output-format concise
	@$(BIN)/python -m mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache > $(VENV)/imports.txt || { cat $(VENV)/imports.txt; exit 1; }
	@$(BIN)/python protocol/generate.py --check

generate: $(VENV)/.dev
	@$(BIN)/python protocol/generate.py

bench: $(VENV)/.dev
	@$(BIN)/python -m tests.bench

bench-large: $(VENV)/.dev
	@$(BIN)/python -m tests.bench --only memory_large

bench-recall: $(VENV)/.dev
	@$(BIN)/python -m tests.bench.recall $(if $(MINILM),--minilm $(MINILM))

wheels: $(VENV)/.dev
	@echo 'building both wheels into dist/'
	@rm -rf dist
	@$(BIN)/python -m build --wheel --outdir dist clients/python > $(VENV)/build.txt 2>&1 || { cat $(VENV)/build.txt; exit 1; }
	@$(BIN)/python -m build --wheel --outdir dist . > $(VENV)/build.txt 2>&1 || { cat $(VENV)/build.txt; exit 1; }
	@ls dist

# uv resolves for every Python and platform at once; it is needed for nothing else.
lock: $(VENV)/.dev
	@$(PIP) install uv
	@$(BIN)/python -m uv pip compile $(PROJECTS) --extra dev --universal --python-version 3.11 --upgrade --quiet \
		--no-emit-package witsd-client --custom-compile-command 'make lock' --output-file requirements.lock
	@$(BIN)/python -m uv pip compile $(PROJECTS) tests/frameworks/requirements.txt --universal --python-version 3.11 --upgrade --quiet \
		--no-emit-package witsd-client --custom-compile-command 'make lock' --output-file tests/frameworks/requirements.lock

clean:
	rm -rf $(VENV) $(FRAMEWORKS) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/js/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What `run` needs is a part of what `test` needs; the lock is a constraint, so each installs only its part.
$(VENV)/.run: requirements.lock $(PROJECTS) | $(BIN)/python
	@echo 'installing witsd into $(VENV) (the first time this takes a minute)'
	@$(PIP) install --constraint requirements.lock --editable clients/python --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo 'installing what tests and checks need'
	@$(PIP) install --constraint requirements.lock --editable clients/python --editable '.[dev]'
	@touch $@

$(BIN)/python:
	@if [ -z '$(PYTHON)' ]; then \
		echo 'witsd needs Python 3.11 or newer, and finds none in PATH.' >&2; \
		echo 'Install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3' >&2; \
		exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'witsd needs Python 3.11 or newer; $(PYTHON) is older, or no Python.' >&2; exit 1; }
	@echo 'creating $(VENV) with '"$$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'Python could not make an environment. Debian, Ubuntu: apt install python3-venv' >&2; exit 1; }
