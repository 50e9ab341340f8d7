# Every target first makes sure that what it needs is installed (tests/setup says what, and why it cannot).
PYTHON := .venv/bin/python

.PHONY: setup demo test unit lint lab-up lab-status lab-down proto

setup:
	@sh tests/setup

demo: setup
	@$(PYTHON) -m tests.lab.demo

test: setup lint
	$(PYTHON) -m pytest tests

unit: setup
	$(PYTHON) -m pytest tests/unit

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

lab-up lab-status lab-down: setup
	@$(PYTHON) -m tests.lab $(@:lab-%=%)

proto: setup
	$(PYTHON) -m tests.stubs --write
