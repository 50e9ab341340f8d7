"""
A lab whose two hosts are machines of their own, one with an old Python and one with a new one; a small VM on each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.engine.simulator import EngineSimulator
from tests.lab.host import Host
from tests.lab.lab import Lab, MiB, NewDisk, Vm
from tests.lab.machines import support
from tests.lab.machines.machine import Machine
from tests.lab.operator import Operator

# Raw, too: a backup reads it in another way.
DISKS = (NewDisk(64 * MiB), NewDisk(32 * MiB, format="raw"))


class Fleet:
    """
    hosts, machines, vms: in the same order; the first is Debian 11 with Python 3.9, the second Debian 13 with 3.13.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.engine: EngineSimulator = lab.engine
        self.hosts: list[Host] = lab.hosts
        self.machines: list[Machine] = lab.machines
        self.vms: list[Vm] = [
            lab.new_vm(f"vm{number}", DISKS, start=False, host=host) for number, host in enumerate(lab.hosts, 1)
        ]
        # They boot side by side.
        for host, vm in zip(self.hosts, self.vms, strict=True):
            host.start_vm(vm.id)
        for vm in self.vms:
            vm.guest.wait_until_up()


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """Tests leave it as they found it: both hosts and VMs up, no agent on the hosts."""
    if reason := support.unavailable():
        pytest.skip(reason)
    with Lab.up(machines=["bullseye", "trixie"]) as lab:
        yield Fleet(lab)


@pytest.fixture
def operator(fleet: Fleet, tmp_path: Path) -> Iterator[Operator]:
    """An operator with a new repository and state; takes the agents away in the end."""
    operator = Operator(fleet.lab, tmp_path / "operator")
    try:
        yield operator
    finally:
        operator.run("agent", "remove", *(host.name for host in fleet.hosts))
