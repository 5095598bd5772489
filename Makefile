# make demo    sets up .venv and runs the main job: plain student and DRKD student beside a teacher
# make test    sets up .venv and runs the tests
# make check   format, lint, types, import layers, tests
# make jitter  which verdicts change with the last digits: 20 seeds, and XLA's code paths (hours)
# make crosscheck  (TORCH_PYTHON=..., an interpreter with torch) holds the method against PyTorch
# Another Python: make test PYTHON=python3.12   Another folder: make demo WORKDIR=somewhere

PYTHON ?= python3
DETECTOR ?= faster_rcnn
JOBS ?= 2
WORKDIR ?= demo/$(DETECTOR)
VENV := .venv
BIN := $(VENV)/bin

# The environment is made again only when one of these changed.
KEY := $(shell { cat pyproject.toml constraints.txt; $(PYTHON) -c 'import sys; print(sys.executable, sys.version)'; } | sha256sum | cut -c1-16)

export JAX_PLATFORMS ?= cpu

.PHONY: help env demo test jitter crosscheck check format lint types layers clean

help:
	@sed -n '1,6s/^# //p' Makefile

env:
	@if [ "$$(cat $(VENV)/.made-from 2>/dev/null)" != "$(KEY)" ]; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "drkd-jax needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12" >&2; exit 2; }; \
	  echo "Setting up $(VENV) with $$($(PYTHON) --version) (once; about two minutes)"; \
	  rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV) \
	    || { echo "no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }; \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]' && echo "$(KEY)" > $(VENV)/.made-from; \
	fi

demo: env
	$(BIN)/python -m drkd_jax demo --detector=$(DETECTOR) --workdir=$(WORKDIR)

test: env
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

SEEDS ?= 20
jitter: env
	$(BIN)/python -m pytest --jitter=$(SEEDS) --code-paths -n $(JOBS)

TORCH_PYTHON ?= .venv-torch/bin/python
crosscheck: env
	@if [ "$(TORCH_PYTHON)" != .venv-torch/bin/python ]; then \
	  command -v "$(TORCH_PYTHON)" > /dev/null || { echo "TORCH_PYTHON=$(TORCH_PYTHON): no such program" >&2; exit 2; }; \
	elif ! $(TORCH_PYTHON) -c 'import numpy, torch' 2> /dev/null; then \
	  echo "Setting up .venv-torch with torch 2.13.0: a CPU build is about 200 MB to download, a CUDA"; \
	  echo "build several GB. TORCH_PYTHON=... names an interpreter that has torch already."; \
	  $(PYTHON) -m venv .venv-torch && .venv-torch/bin/pip install --quiet torch==2.13.0 numpy; \
	fi
	$(BIN)/python -m drkd_jax crosscheck --torch-python=$(TORCH_PYTHON)

check: env lint types layers test

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: env
	$(BIN)/mypy

layers: env
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
