.PHONY: demo test lint

PYTHON ?= python3
BIN := .venv/bin

# The environment, made anew when the dependencies change. tensorrt-rtx compiles engines without a GPU.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[rtx,dev]'
	touch $@

demo: .venv/installed
	$(BIN)/perception demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
