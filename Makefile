# make demo: set up and run the main job. make test: set up and run the tests. make study: every part of the study and
# its page (make study study=whole: three seeds everywhere). Each does all it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_ARGS ?=
study ?= quick
scale ?= auto

.PHONY: demo test study lint clean
demo: $(STAMP)
	$(BIN)/rlhf train reward=roberta_large data=short_prefix scale=mini tracking=offline

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

study: $(STAMP)
	$(BIN)/python scripts/study.py study=$(study) scale=$(scale)

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
