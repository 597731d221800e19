# make demo and make test each work alone on a fresh clone: they set up .venv, the package and the default model.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint format handbook help-pages clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest -m "not slow"
	cd integrations/langchain && ../../$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file pyproject.toml -p langchain_infinimem

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

handbook: $(READY)
	$(BIN)/python examples/make_handbook.py
	$(BIN)/python examples/make_handbook.py --check

help-pages: $(READY)
	$(BIN)/python docs/make_help.py

clean:
	rm -rf $(VENV) .demo

$(READY): pyproject.toml $(wildcard infinimem/attention/native/*.[ch]) integrations/langchain/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" -e "integrations/langchain[test]"
	$(BIN)/python -m infinimem models get
	touch $@
