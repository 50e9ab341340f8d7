# Every target first makes sure that what it needs is installed (tests/setup says what, and why it cannot).
PYTHON := .venv/bin/python
# Four at a time: they wait for sockets and processes more than they compute. Each process has a lab of its own, brought
# up by the first test that asks for it.
# In the order of the directories: the end-to-end tests, whose files take longest, come before the short ones.
PYTEST := $(PYTHON) -m pytest -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test unit component lint bench lab-up lab-status lab-down proto

setup:
	@sh tests/setup

demo: setup
	@$(PYTHON) -m tests.lab.demo

test: setup lint
	$(PYTEST) tests

# Neither the lab nor daemons: for every change.
unit: setup
	$(PYTEST) tests/unit

# A part of ours beside real programs (qemu-nbd, sshd, Image I/O, an S3 server), without the lab.
component: setup
	$(PYTEST) tests/component

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
