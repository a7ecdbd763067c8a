# Everything is run through make, in CI too. Each target does its own set-up in .venv; nothing needs to be installed
# beforehand but Python 3.11 or newer and make.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The first interpreter on PATH that Airflow 3.3 supports (3.11 to 3.14); `make PYTHON=/path/to/python3 …` overrides.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.12 python3.13 python3.11 python3.14; do \
	if "$$p" -c '$(SUPPORTED)' 2>/dev/null; then echo "$$p"; break; fi; done)
endif

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements-dev.txt)
PYTEST := $(PY) -m pytest
# Two more than there are cores: many tests wait for a server.
JOBS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 2 )))

export PYTHONPATH := $(CURDIR):$(CURDIR)/include
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---------------------------------------------------------------------------------------------------- set-up

.PHONY: install
install: $(READY) ## the virtual environment .venv (every other target does this by itself)

$(PY):
	@if [ -z "$(PYTHON)" ]; then \
		echo "This project needs Python 3.11 to 3.14, and none is on PATH (python3 is: $$(python3 --version 2>&1))." >&2; \
		echo "Install one (Debian, Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12 …" >&2; \
		exit 1; fi
	@"$(PYTHON)" -c '$(SUPPORTED)' || { echo "$(PYTHON) is not Python 3.11 to 3.14." >&2; exit 1; }
	@echo "Creating $(VENV) with $$("$(PYTHON)" --version)"
	@if "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then "$(PYTHON)" -m venv --clear $(VENV); \
	elif command -v uv >/dev/null; then uv venv --quiet --clear --seed --python "$(PYTHON)" $(VENV); \
	else \
		echo "$(PYTHON) cannot create virtual environments: its venv or ensurepip module is missing." >&2; \
		echo "Debian and Ubuntu ship them apart: apt install python3-venv (or python3.X-venv), then run make again." >&2; \
		exit 1; fi

# uv installs in seconds what takes pip minutes; pip stays the fallback, as its settings (a company mirror, a
# certificate) are more often in place.
#
# Bytecode is made at once: where PYTHONDONTWRITEBYTECODE is set, each of Airflow's many processes would otherwise compile
# all of Airflow again, a quarter of the tests' time. (pip does it by itself.)
#
# The project itself is installed too, as a link to this folder (editable): Airflow finds the connection type only by an
# entry point, and nothing has to be installed anew after a change of code.
VERSION_FILE := include/physionet_mirror/__init__.py
$(READY): requirements.txt requirements-dev.txt constraints.txt pyproject.toml $(VERSION_FILE) | $(PY)
	@echo "Installing Airflow and the project's libraries into $(VENV)"
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) \
		&& $(PY) -m uv pip install --quiet --compile-bytecode --python $(PY) -r requirements-dev.txt -c constraints.txt \
		|| { echo "uv could not install them; falling back to pip, which takes a few minutes" >&2; \
			$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt; }
	@$(PY) -m uv pip install --quiet --python $(PY) --no-deps --editable . \
		|| $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

.PHONY: lock
lock: $(READY) ## renew constraints.txt from the two requirements files
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --upgrade \
		requirements-dev.txt --output-file constraints.txt

# ------------------------------------------------------------------------------------------------------ run

.PHONY: demo
demo: $(READY) ## the main job on embedded parts: look-alike, S3 server, Airflow (KEEP=1 leaves it up)
	@exec $(PY) -m demo $(if $(KEEP),--keep)

.PHONY: bench
bench: $(READY) ## measured comparisons with what users would run instead; writes bench/results.md
	$(PY) -m bench $(if $(SHORT),--short)

bench-%: $(READY) ## one part of it: bench-streaming, bench-planning, … (SHORT=1 only tries it out)
	$(PY) -m bench $* $(if $(SHORT),--short)

# Looked up when a target needs it: Compose as a plugin of Docker, or as a command of its own.
COMPOSE = $(shell if docker compose version >/dev/null 2>&1; then echo docker compose; else echo docker-compose; fi)

.PHONY: up down logs
up: ## the compose stack: Airflow on Celery, PostgreSQL, Redis (COMPOSE_PROFILES=demo: no account needed)
	$(COMPOSE) up --build --detach --wait
	@$(COMPOSE) logs --no-log-prefix airflow-init | grep -A 2 'Airflow login:' || true
	@echo "Airflow is up: http://localhost:$$($(COMPOSE) port airflow-api-server 8080 | sed 's/.*://')"
down: ## stop the compose stack (its volumes stay)
	$(COMPOSE) --profile '*' down --remove-orphans
logs: ## follow the compose stack's logs
	$(COMPOSE) logs --follow --tail 100

# ----------------------------------------------------------------------------------------------------- prove

.PHONY: test
test: $(READY) ## unit, integration and DAG tests
	$(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not browser and not compose"

VERSION ?= 3.1.8
OTHER := .state/airflow-$(VERSION)
# The sets in tests/airflow/ are frozen: Airflow releases before the newest one break with libraries of today.
FROZEN = $(or $(wildcard tests/airflow/$(VERSION).txt),constraints.txt)
.PHONY: test-airflow
test-airflow: $(OTHER)/.ready ## the DAG and page tests in another Airflow: VERSION=3.1.8, 3.2.2 or 3.3.2
	$(OTHER)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		-m "not slow and not browser and not compose" $(AIRFLOW_TESTS)

AIRFLOW_TESTS ?= tests/dags tests/unit/plugins tests/integration/plugins
.PRECIOUS: .state/airflow-%/.ready
.state/airflow-%/.ready: requirements.txt tests/airflow/tools.txt $(wildcard tests/airflow/*.txt) constraints.txt pyproject.toml $(VERSION_FILE) | $(READY)
	@echo "Installing Airflow $* into .state/airflow-$*"
	@$(PY) -m uv venv --quiet --clear --python $(PY) .state/airflow-$*
	@$(PY) -m uv pip install --quiet --compile-bytecode --python .state/airflow-$*/bin/python apache-airflow==$* \
		-r requirements.txt -r tests/airflow/tools.txt -c $(FROZEN)
	@$(PY) -m uv pip install --quiet --python .state/airflow-$*/bin/python --no-deps --editable .
	@touch $@

.PHONY: test-chaos
test-chaos: $(READY) ## kills, faults, overlaps: the slow tests
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not browser and not compose" tests/dags tests/chaos tests/integration tests/unit

.PHONY: test-browser
test-browser: $(READY) ## the UI in Debian's chromium
	$(PYTEST) -m browser

.PHONY: test-compose
test-compose: $(READY) ## the compose stack
	$(PYTEST) -m compose

.PHONY: soak
soak: $(READY) ## 100,000 small images through a real Airflow run (long)
	$(PY) -m bench soak $(if $(SHORT),--short)

.PHONY: lint
lint: $(READY) ## style, types, and imports that run one way: dags → plugins → include
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	PYTHONPATH=$(CURDIR)/plugins:$(PYTHONPATH) $(VENV)/bin/lint-imports --no-cache --no-logo

.PHONY: audit
audit: $(READY) ## known vulnerabilities of everything that is installed (asks PyPI)
	@.ci/audit

.PHONY: format
format: $(READY) ## let ruff put things right
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: clean
clean: ## remove everything that make made (.venv, .state, caches)
	rm -rf $(VENV) .state .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
