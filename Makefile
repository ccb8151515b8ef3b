# The one door for chores. `make demo` and `make test` are all that a user needs; each installs what it needs.
PYTHON ?= python3
DATA ?= breast-cancer
VENV := .venv
BIN := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check screenshots tools contracts contracts-check forge gas gas-check deep crash-table mutants slither halmos clean

$(VENV)/.demo: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "installing datahub and what the demo needs into $(VENV) (some minutes the first time)"
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing what the tests need into $(VENV)"
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

## demo: the main job on this machine; DATA=heart-disease [DATA_DIR=folder] for the four real hospitals
demo: $(VENV)/.demo
	@$(BIN)/datahub demo --data $(DATA) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(KEEP),--keep)

## test: every test whose tools are here (Node for forge and Chromium for pages are optional: make tools)
test: $(VENV)/.dev
	@$(BIN)/python -m pytest -n logical --no-loadscope-reorder --durations 10

## check: formatting rules and types
check: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/mypy

## tools: the optional ones, for people who change contracts or pages (Debian packages need root)
tools:
	cd datatokens && npm ci --no-audit --no-fund --ignore-scripts
	command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; }
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql >/dev/null; }

## screenshots: every page of a running market (make demo KEEP=1), HUB=its address, into screenshots/
screenshots: $(VENV)/.dev
	@$(BIN)/python -m tests.screenshots --hub $(HUB)

## contracts: compile the contracts into the committed artifacts
contracts: $(VENV)/.dev
	@$(BIN)/python -m datatokens.build

## contracts-check: compare the committed artifacts with a fresh compilation
contracts-check: $(VENV)/.dev
	@$(BIN)/python -m datatokens.build --check

## forge: the contracts' own unit, fuzz and invariant tests
forge:
	cd datatokens && node_modules/@foundry-rs/forge-*/bin/forge test

## gas: measure every operation of the contracts beside Ocean's, and write datatokens/gas.json
gas: $(VENV)/.dev
	@$(BIN)/python -m tests.benchmarks.gas --json datatokens/gas.json

## gas-check: fail where an operation uses over 3 % more gas than the committed table
gas-check: $(VENV)/.dev
	@$(BIN)/python -m tests.benchmarks.gas --check

## deep: the stateful invariants with 1,000,000 calls
deep:
	cd datatokens && FOUNDRY_PROFILE=deep node_modules/@foundry-rs/forge-*/bin/forge test --match-test invariant

## crash-table: kill -9 of a buyer at every statement, and what each ended in (half an hour)
crash-table: $(VENV)/.dev
	@$(BIN)/python -m pytest -s -m deep tests/faults/test_buyer_crashes.py

## mutants: take away each check and each write of the contracts in turn; a test must notice
mutants: $(VENV)/.dev
	@$(BIN)/python -m tests.datatokens.mutants

# Both are tools for auditors, in virtual environments of their own: slither is AGPL, and neither is needed to use us.
datatokens/.slither:
	@$(PYTHON) -m venv $@ && $@/bin/pip install --quiet slither-analyzer==0.11.6 && mkdir $@/forge
	@ln -s $(CURDIR)/datatokens/node_modules/@foundry-rs/forge-*/bin/forge $@/forge/forge

datatokens/.halmos:
	@$(PYTHON) -m venv $@ && $@/bin/pip install --quiet halmos==0.3.3 && mkdir $@/forge
	@ln -s $(CURDIR)/datatokens/node_modules/@foundry-rs/forge-*/bin/forge $@/forge/forge

## slither: static analysis of the contracts; fails on every finding that is not explained where it is
slither: datatokens/.slither
	@cd datatokens && PATH="$(CURDIR)/datatokens/.slither/forge:$$PATH" .slither/bin/slither .

## halmos: prove the escrow's time rules for every clock that a block can have
halmos: datatokens/.halmos
	@cd datatokens && PATH="$(CURDIR)/datatokens/.halmos/forge:$$PATH" .halmos/bin/halmos --function check_

clean:
	rm -rf $(VENV) demo-output demo-state .pytest_cache .mypy_cache .ruff_cache .hypothesis datatokens/out datatokens/cache datatokens/.slither datatokens/.halmos
