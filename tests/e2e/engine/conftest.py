"""
What tests of the engine share: the lab's engine with all faults off, and the real SDK's connection to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import ovirtsdk4
import pytest
from ovirtsdk4 import services

from tests.conftest import NewVm
from tests.lab.engine import EngineSimulator
from tests.lab.lab import Lab, NewDisk, Vm

MiB = 1 << 20
# Without file systems: these VMs never get as far as a guest.
SMALL_DISKS = (
    NewDisk(10 * MiB, ext4=False),
    NewDisk(3 * MiB + 512, format="raw", bus="virtio-scsi", ext4=False),
)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.01)


@pytest.fixture
def engine(lab: Lab) -> Iterator[EngineSimulator]:
    """The lab's engine. Faults and settings of the test end with it."""
    settings = dataclasses.asdict(lab.engine.settings)
    yield lab.engine
    lab.engine.faults.reset()
    for name, value in settings.items():
        setattr(lab.engine.settings, name, value)


@pytest.fixture
def connect(lab: Lab, engine: EngineSimulator) -> Callable[..., ovirtsdk4.Connection]:
    """Make a connection; keyword arguments replace the right ones."""

    def make(**changes: str) -> ovirtsdk4.Connection:
        options = {
            "url": engine.url,
            "username": lab.username,
            "password": lab.password,
            "ca_file": str(lab.ca),
            "timeout": 60,
        }
        return ovirtsdk4.Connection(**(options | changes))

    return make


@pytest.fixture
def connection(connect: Callable[..., ovirtsdk4.Connection]) -> Iterator[ovirtsdk4.Connection]:
    connection = connect()
    yield connection
    with contextlib.suppress(ovirtsdk4.Error):
        connection.close()


@pytest.fixture
def small_vm(lab: Lab, new_vm: NewVm) -> Vm:
    """A VM that runs, with a small qcow2 and a small raw disk, and no guest worth the name."""
    vm = new_vm(disks=SMALL_DISKS, start=False)
    lab.host.start_vm(vm.id)
    return vm


@pytest.fixture
def vm_service(connection: ovirtsdk4.Connection, small_vm: Vm) -> services.VmService:
    return connection.system_service().vms_service().vm_service(small_vm.id)


@pytest.fixture
def idle_vm(new_vm: NewVm) -> Vm:
    """A VM with the same disks that does not run."""
    return new_vm(disks=SMALL_DISKS, start=False)


@pytest.fixture
def idle_vm_service(connection: ovirtsdk4.Connection, idle_vm: Vm) -> services.VmService:
    return connection.system_service().vms_service().vm_service(idle_vm.id)
