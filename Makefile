# A Python of 3.11 to 3.13 is looked for; name another with PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV = .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check -q
LOCKED = install --no-deps --require-hashes
# Workers with a thread each: on two cores they take little more than half the time of one with both.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal
TABLE ?= ad_quickstart
ARGS ?=

.PHONY: help setup reproduce test test-all check report gpu-evidence docs bench lock

help:       ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /	/' | expand -t 14

setup: $(VENV)/.installed    ## create .venv from the lock (TORCH_INDEX=<wheel index> chooses another torch build)

# torch's registry wheel on Linux is a CUDA build: only then are the CUDA libraries installed too.
$(VENV)/.installed: requirements.lock requirements-cuda.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "setup: no Python 3.11 to 3.13 found; name one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) install --no-deps --index-url $(TORCH_INDEX) torch==2.13.0 torchvision==0.28.0)
	$(PIP) $(LOCKED) -r requirements.lock
	if $(VENV)/bin/python tools/needs_cuda.py; then $(PIP) $(LOCKED) -r requirements-cuda.lock; fi
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

reproduce: setup    ## run the quickstart table, or TABLE=<id> ARGS="budget=cpu seed=0"
	$(VENV)/bin/python reproduce/run.py +table=$(TABLE) $(ARGS)

test: setup    ## run the default tests
	$(PYTEST) -m "not slow and not gpu"

test-all: setup    ## run every test that needs no GPU
	$(VENV)/bin/python -m pytest -q -m "not gpu"

check: setup    ## format, lint, types and the order of the rooms; changes nothing
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

report: setup    ## fill docs/results, README and cards from reproduce/evidence (ARGS=--check compares only)
	$(VENV)/bin/python tools/make_results.py $(ARGS)

gpu-evidence: setup    ## what one GPU can add to reproduce/evidence (ARGS="minutes=120 data=<folder>", ARGS=smoke)
	$(VENV)/bin/python tools/gpu_evidence.py $(ARGS)

docs: setup    ## build the documentation's pages in docs/_build/html; warnings are errors
	$(VENV)/bin/python -m sphinx -q -W --keep-going docs docs/_build/html
	@echo docs/_build/html/index.html

bench: setup    ## time input, searches, the training loop and steps, sums, and the pool (ARGS=--compiled)
	$(VENV)/bin/python benchmarks/input_pipeline.py
	$(VENV)/bin/python benchmarks/eagl_resnet50.py
	$(VENV)/bin/python benchmarks/alps.py
	$(VENV)/bin/python benchmarks/loop.py
	$(VENV)/bin/python benchmarks/qat_step.py $(ARGS)
	$(VENV)/bin/python benchmarks/edge_step.py
	$(VENV)/bin/python benchmarks/dfq_step.py
	$(VENV)/bin/python benchmarks/emulation.py
	$(VENV)/bin/python benchmarks/pool.py

lock:       ## resolve the dependencies anew (needs uv)
	$(PYTHON) tools/lock.py
