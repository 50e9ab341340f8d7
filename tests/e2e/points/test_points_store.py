"""What recovery points cost in the repository, and how damage there is healed."""

from __future__ import annotations

import os
from concurrent import futures
from datetime import datetime
from pathlib import Path

import pytest
from ovirtsdk4 import services

from tests.conftest import NewVm
from tests.e2e.points.history import History
from tests.lab.lab import KiB, Lab, MiB, NewDisk, Vm
from tests.lab.operator import Operator
from tests.lab.witness import Copies

pytestmark = pytest.mark.lab

GRAIN = 64 * KiB
DISK = NewDisk(16 * MiB + 512, ext4=False)
DATA = 12 * MiB


@pytest.fixture
def random(lab: Lab) -> Path:
    """A file of random data that QEMU may read."""
    path = lab.directory / "random"
    path.write_bytes(os.urandom(DATA))
    path.chmod(0o644)
    return path


def new_vm_with(lab: Lab, new_vm: NewVm, content: Path) -> Vm:
    """A VM that is down, with one disk that begins with the content of a file."""
    vm = new_vm(disks=(DISK,), start=False)
    lab.host.qemu_io(vm.id, vm.disks[0].id, f"write -q -s {content} 0 {DATA}")
    return vm


def test_scattered_writes(
    lab: Lab,
    new_vm: NewVm,
    deployed: Operator,
    copies: Copies,
    engine: services.SystemService,
    random: Path,
    tmp_path: Path,
) -> None:
    """An incremental costs what changed; a window that is in more than eight pieces is read whole, once."""
    vm = new_vm_with(lab, new_vm, random)
    history = History(deployed, vm, copies, engine)
    history.backup()

    # One grain in each of ten windows.
    for window in range(10):
        lab.host.qemu_io(vm.id, vm.disks[0].id, f"write -q -s {random} {window * MiB + 3 * GRAIN} {GRAIN}")
    point = history.backup()
    assert point.bytes("dirty") == point.bytes("read") == point.bytes("moved") == 10 * GRAIN
    assert point.bytes("stored") <= 1.1 * 10 * GRAIN

    # Every third grain of the last window of data: eleven pieces.
    window = DATA - MiB
    for number in range(1, 16, 3):
        lab.host.qemu_io(vm.id, vm.disks[0].id, f"write -q -P {number} {window + number * GRAIN} {GRAIN}")
    assert history.backup().bytes("read") == 5 * GRAIN

    vm.start()
    for expected in (MiB, GRAIN):
        lab.host.qemu_io(vm.id, vm.disks[0].id, f"write -q -P {expected % 251} {window} 512")
        point = history.backup("--mode", "live", "--transport", "grpc" if expected == MiB else "imageio")
        assert (point.bytes("dirty"), point.bytes("read")) == (GRAIN, expected)
    history.assert_all_restored(tmp_path / "restored")


def test_two_vms_at_the_same_time(
    lab: Lab,
    new_vm: NewVm,
    deployed: Operator,
    copies: Copies,
    engine: services.SystemService,
    random: Path,
    tmp_path: Path,
) -> None:
    """Two processes, one repository: both points are whole, and what both VMs have is stored once."""
    histories = [
        History(deployed, new_vm_with(lab, new_vm, random), copies, engine),
        History(deployed, new_vm_with(lab, new_vm, random), copies, engine),
    ]
    with futures.ThreadPoolExecutor() as threads:
        points = [*threads.map(History.backup, histories)]
    for history in histories:
        history.assert_all_restored(tmp_path / "restored")
    began = [datetime.fromisoformat(point.manifest["created"]) for point in points]
    seconds = [point.manifest["seconds"] for point in points]
    assert abs(began[1] - began[0]).total_seconds() < max(seconds), "they did not run at the same time"
    third = History(deployed, new_vm_with(lab, new_vm, random), copies, engine)
    point = third.backup()
    assert point.bytes("moved") == DATA
    assert point.bytes("stored") < 64 * KiB


def test_what_was_damaged_is_healed(
    lab: Lab,
    new_vm: NewVm,
    deployed: Operator,
    copies: Copies,
    engine: services.SystemService,
    random: Path,
    tmp_path: Path,
) -> None:
    """By the next incremental, once a verification has found it; by a backup that moves everything, whoever knows of it."""
    vm = new_vm_with(lab, new_vm, random)
    history = History(deployed, vm, copies, engine)
    history.backup()
    history.backup()
    assert deployed.do("verify", vm.name)["damage"] == []

    rot(deployed)
    # Only what changed is read, so an incremental does not see it.
    assert history.backup().bytes("read") == 0
    result = deployed.run("verify", vm.name, "--json", "--quiet")
    assert result.status == 9
    (damage,) = result.document["damage"]
    assert {hurt["point_id"] for hurt in damage["hurts"]} == {point.id for point in history.points}

    point = history.backup()
    assert point.read_as == ["incremental"]
    assert point.bytes("read") == MiB
    assert deployed.do("verify", vm.name)["damage"] == []

    rot(deployed)
    point = history.backup("--fresh")
    assert point.manifest["parent_id"] is None
    assert point.bytes("moved") == DATA
    assert deployed.do("verify", vm.name)["damage"] == []
    history.assert_all_restored(tmp_path / "restored")


def rot(deployed: Operator) -> None:
    """Change a bit of the newest chunk of a window."""
    newest = max(
        (path for path in (deployed.directory / "repository/chunks").rglob("*") if path.stat().st_size > MiB // 2),
        key=lambda path: path.stat().st_mtime_ns,
    )
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
