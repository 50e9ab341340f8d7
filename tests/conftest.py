"""
One lab for the session, started by the first test that asks for it, and a fresh VM for each test.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import pytest

from tests.lab.errors import LabError
from tests.lab.lab import Lab, Vm

NewVm = Callable[..., Vm]


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A running lab: engine, host, certificate authority."""
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(Lab.up())
        except LabError as error:
            pytest.fail(f"The lab did not come up: {error}", pytrace=False)
        yield running


@pytest.fixture
def new_vm(lab: Lab) -> Iterator[NewVm]:
    """Make VMs, with `Lab.new_vm`'s arguments, that end with the test."""
    made: list[Vm] = []

    @functools.wraps(lab.new_vm)
    def make(*arguments: object, **options: object) -> Vm:
        vm = lab.new_vm(*arguments, **options)  # type: ignore[arg-type]
        made.append(vm)
        return vm

    yield make
    for vm in made:
        vm.discard()


@pytest.fixture
def vm(new_vm: NewVm) -> Vm:
    """A VM with the default disks, its guest up."""
    return new_vm()


@pytest.fixture
def stopped_vm(new_vm: NewVm) -> Vm:
    """A VM with the default disks that has never run."""
    return new_vm(start=False)
