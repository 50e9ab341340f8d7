# Every target first makes sure that what it needs is installed (tests/setup says what, and why it cannot).
PYTHON := .venv/bin/python
# Two at a time, for two cores; each process has a lab of its own, brought up by the first test that asks for it.
# In the order of the directories: the end-to-end tests, whose files take longest, come before the short ones.
PYTEST := $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test unit lint bench lab-up lab-status lab-down proto

setup:
	@sh tests/setup

demo: setup
	@$(PYTHON) -m tests.lab.demo

test: setup lint
	$(PYTEST) tests

# They wait for sockets and processes more than they compute.
unit: setup
	$(PYTEST) -n 4 tests/unit

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: setup
	@sh tests/bench/setup
	@$(PYTHON) -m tests.bench $(BENCH)

lab-up lab-status lab-down: setup
	@$(PYTHON) -m tests.lab $(@:lab-%=%)

proto: setup
	$(PYTHON) -m tests.stubs --write
