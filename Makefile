# Each command sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test quick lint clean

demo: .venv/.installed
	$(BIN)/latentwire run quickstart

# Two workers with one thread each: tiny models gain nothing from more, and waiting threads would spin.
test: .venv/.developing
	$(BIN)/python -m pytest -n 2 --dist loadscope

quick: .venv/.developing
	$(BIN)/python -m pytest -n 2 --dist loadscope -m 'not slow'

lint: .venv/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and alone: asked for together with the rest, pip may choose another build of it.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.developing: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache
