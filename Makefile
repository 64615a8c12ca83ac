# Two commands do everything on a fresh machine:
#
#     make demo     set up, then three hospitals and a coordinator on this machine
#     make test     set up, then the tests
#
# Others: setup, check (lint, format, types), test-slow, test-nightly, chaos (faults, with figures), check-deploy,
# coverage, clean.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
PYTEST := $(BIN)/python -m pytest
DEFAULT_TESTS := not slow and not nightly
TEST_PROCESSES ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))

.PHONY: demo test setup check format test-slow test-nightly chaos check-deploy coverage clean

demo: setup
	$(BIN)/instahide demo

# First what shares a machine well, in several processes; then real federations, which get the machine to
# themselves. Exit code 5 is pytest's word for a part in which PYTEST_ARGS chose nothing.
test: setup
	OMP_NUM_THREADS=1 $(PYTEST) -n $(TEST_PROCESSES) --dist loadfile -m "$(DEFAULT_TESTS) and not federated" $(PYTEST_ARGS) || test $$? = 5
	$(PYTEST) -m "$(DEFAULT_TESTS) and federated" $(PYTEST_ARGS) || test $$? = 5

setup: $(STAMP)

# flwr brings uv along, so the same pinned uv that installs everything stays in the environment.
# uv takes torch and torchvision as one matching pair from the package index; pip may not.
$(STAMP): pyproject.toml constraints.txt instahide/_mixing_kernel.c $(wildcard theory_modules/_*.[ch])
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found"; echo "hint: install one, or call make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON) (about 5 GB, mostly torch; a minute or two)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet -c constraints.txt -e ".[test]"
	$(BIN)/python -c "import torch, torchvision, flwr, instahide, federation, theory_modules; print('torch', torch.__version__, '· torchvision', torchvision.__version__, '· flwr', flwr.__version__)"
	$(BIN)/python -c "from instahide.mixing_kernel import active_path; print('encoder path:', active_path())"
	$(BIN)/python -c "from theory_modules.kernel_loops import active_path; print('kernel path:', active_path())"
	$(BIN)/python -c "from theory_modules.svm_grid import active_path; print('support vector path:', active_path())"
	@touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: setup
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-nightly: setup
	$(PYTEST) -m "slow or nightly or not slow" $(PYTEST_ARGS)

# CHAOS_JSON=FILE keeps the table of what was tried and what survived.
chaos: setup
	$(PYTEST) tests/chaos -p no:randomly -m "nightly or not nightly" $(if $(CHAOS_JSON),--chaos-json $(CHAOS_JSON)) $(PYTEST_ARGS)

# The files of deploy/ before their own linters and parsers, which this installs.
check-deploy: setup
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet -c constraints.txt -e ".[deploy-checks]"
	$(PYTEST) tests/deploy $(PYTEST_ARGS)

coverage: setup
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage report

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
