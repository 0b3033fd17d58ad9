# make demo: set up and run the main job. make test: set up and run the tests. Each does all it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_ARGS ?=

.PHONY: demo test lint clean
demo: $(STAMP)
	$(BIN)/rlhf train reward=roberta_large data=short_prefix scale=mini tracking=offline

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e '.[test,dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) outputs/2* .pytest_cache .ruff_cache .mypy_cache
