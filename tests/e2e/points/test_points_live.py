"""A point compared with the disks of its VM: what the guest changed is no matter, what nobody changed must be as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ovirtsdk4 import services

from tests.e2e.points.history import History
from tests.lab import processes
from tests.lab.lab import Vm
from tests.lab.operator import Operator
from tests.lab.witness import Copies

pytestmark = pytest.mark.lab


def test_point_against_its_vm(
    vm: Vm, deployed: Operator, copies: Copies, engine: services.SystemService, tmp_path: Path
) -> None:
    history = History(deployed, vm, copies, engine)
    vm.guest.run("dd if=/dev/urandom of=/mnt/vda/data bs=1M count=8 2>/dev/null; sync")
    history.backup("--mode", "live")
    checkpoints = history.checkpoints

    vm.guest.run("dd if=/dev/urandom of=/mnt/vda/data bs=64k count=5 seek=7 conv=notrunc 2>/dev/null; sync")
    found = deployed.do("verify", vm.name, "--live")
    disks = {disk["id"]: disk for disk in found["disks"]}
    first, raw = vm.disks[0], next(disk for disk in vm.disks if disk.format == "raw")
    assert [disk["drift"] for disk in disks.values()] == [[]] * len(vm.disks)
    assert disks[first.id]["changed"] >= 5 * 64 * 1024
    assert disks[first.id]["compared"] + disks[first.id]["changed"] == first.size
    assert "no bitmap" in disks[raw.id]["skipped"]
    assert history.checkpoints == checkpoints, "looking has left a checkpoint"

    # Somebody writes to the disk past QEMU: no bitmap knows of it.
    vm.power_off()
    place = 8 * 1024 * 1024 + 3
    write_past_the_bitmaps(first.path, place)
    result = deployed.run("verify", vm.name, "--live", "--json", "--quiet")
    assert result.status == 9, result.errors
    (drifted,) = [disk for disk in result.document["disks"] if disk["drift"]]
    assert drifted["id"] == first.id
    assert any(gone["start"] <= place < gone["start"] + gone["length"] for gone in drifted["drift"])
    assert history.checkpoints == checkpoints


def write_past_the_bitmaps(path: Path, place: int) -> None:
    """Change 16 bytes of what is stored for a place of a qcow2 disk, in the file itself."""
    mapped = processes.run("qemu-img", "map", "--output=json", "-f", "qcow2", path)
    for extent in json.loads(mapped):
        if extent["start"] <= place < extent["start"] + extent["length"] and extent.get("offset") is not None:
            with path.open("r+b") as file:
                file.seek(extent["offset"] + place - extent["start"])
                file.write(b"past the bitmaps")
            return
    raise AssertionError(f"nothing is stored at {place}")
