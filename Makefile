# Every task a person runs. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

##@ Run
up: $(READY) ## Start the platform and print where everything is
	@$(BIN)/nexus up --detach

down: $(READY) ## Stop it; its data stays in .nexus/
	@$(BIN)/nexus down

##@ Develop
test: $(READY) tools ## Run all tests on real PostgreSQL, Redis and Envoy (T="-k name" for some)
	@$(BIN)/pytest -n auto --dist loadgroup $(T)

check: $(READY) ## Format, lint, types, contracts, and generated files up to date; under a minute
	@$(BIN)/ruff format --check --quiet . || { echo "Run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python -m services.chassis.tools.contracts
	@$(BIN)/python -m services.chassis.tools.generate --check
	@$(BIN)/python -m mesh.kubernetes --check
	@$(BIN)/mypy
	@echo "All checks passed."

format: $(READY) ## Format code and contracts, and fix what can be fixed
	@$(BIN)/buf format -w proto
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format --quiet .

gen: $(READY) ## Compile proto/ into gen/
	@$(BIN)/python -m services.chassis.tools.generate

new-service: $(READY) ## Write a service that works: make new-service DOMAIN=finance NAME=tip-jar
	@$(BIN)/python -m services.chassis.tools.new_service "$(DOMAIN)" "$(NAME)"

##@ Measure and ship
bench: $(READY) ## Benchmarks beside their peers (BENCH=name for one, FORMAT=json for lines of JSON)
	@$(BIN)/python -m tests.bench $(BENCH)

bench-report: $(READY) ## All of them as a page with charts (dist/benchmarks.html) and a table (docs/benchmarks.md)
	@FORMAT=json $(BIN)/python -m tests.bench $(BENCH) | $(BIN)/python -m tests.bench.report dist/benchmarks.html docs/benchmarks.md

manifests: $(READY) ## Render the Kubernetes manifests, and what the edge serves into dist/
	@$(BIN)/python -m mesh.kubernetes
	@$(BIN)/python -m edge.manifests

##@ Set up
setup: $(READY) ## Make .venv with everything in it; the other targets do it by themselves
	@echo "Ready: $$($(BIN)/python --version) in .venv"

TOOLS := grpcurl istioctl kustomize analyze
tools: ## Build what is written in Go (grpcurl, istioctl, …) into .tools/, where Go is installed
	@[ -z "$(filter-out $(notdir $(wildcard .tools/*)),$(TOOLS))" ] || ! command -v go >/dev/null || { \
		echo "Building $(TOOLS) into .tools: once, some minutes ..."; \
		cd mesh/tools && GOBIN=$(CURDIR)/.tools go install -ldflags="-s -w" tool; } \
		|| echo "They could not be built; their tests will be skipped."

lock: ## Resolve the versions anew into requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--upgrade --group dev pyproject.toml -o requirements.lock

clean: ## Remove .venv, caches and the local platform's data
	@[ ! -x $(BIN)/nexus ] || $(BIN)/nexus down >/dev/null 2>&1 || true
	rm -rf .venv .nexus .mypy_cache .ruff_cache .pytest_cache .hypothesis

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n\033[1m%s\033[0m\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  \033[36m%-12s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "Nexus COS needs Python 3.11 or newer: put one on the PATH, or say PYTHON=/path/to/it."; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || { echo "$(PYTHON) cannot make virtual environments (its venv module is missing)."; exit 1; }
	@echo "Installing into .venv: once, about a minute ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q gen services edge mesh  # or every process would do it, where none may write it down
	@touch $@

.PHONY: up down test check format gen new-service bench bench-report manifests setup tools lock clean help
