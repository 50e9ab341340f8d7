"""Every recovery point is what the disks were: each mode and transport, in any order, whatever the guest did."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from ovirtsdk4 import services

from tests.e2e.points.history import History
from tests.lab.lab import Vm
from tests.lab.operator import Operator
from tests.lab.witness import Copies

pytestmark = pytest.mark.lab

FILL = "for disk in /mnt/*; do dd if=/dev/urandom of=$disk/data bs=1M count=20 2>/dev/null; done; sync"
OVERWRITE = """
    dd if=/dev/urandom of=/mnt/vda/new bs=1M count=5 2>/dev/null
    dd if=/dev/urandom of=/mnt/sda/data bs=64k count=16 seek=100 conv=notrunc 2>/dev/null
    dd if=/dev/urandom of=/mnt/vdb/data bs=1M count=1 seek=3 conv=notrunc 2>/dev/null
    sync"""
TRIM = "rm /mnt/vda/new /mnt/vdb/data; sync; for disk in /mnt/*; do fstrim $disk || exit; done; sync"
ZERO = """
    dd if=/dev/zero of=/mnt/vda/data bs=1M count=9 conv=notrunc 2>/dev/null
    dd if=/dev/zero of=/mnt/sda/data bs=4k count=700 seek=33 conv=notrunc 2>/dev/null
    sync"""
SCATTER = """
    for disk in /mnt/vda /mnt/sda; do
        for place in 1 3 77 130 131 200 290 333 400 512; do
            dd if=/dev/urandom of=$disk/data bs=8k count=1 seek=$place conv=notrunc 2>/dev/null
        done
    done
    sync"""


class Step(NamedTuple):
    """A backup, and what the guest did before it. mode: as asked for.  ran: as it must run."""

    work: str
    mode: str
    ran: str
    transport: str
    options: tuple[str, ...] = ()


UP = (
    Step(FILL, "live", "live", "grpc"),
    Step(OVERWRITE, "live", "live", "imageio"),
    Step(TRIM, "engine", "hybrid", "grpc"),
    Step(ZERO, "hybrid", "hybrid", "imageio"),
    Step(SCATTER, "live", "live", "grpc"),
    Step(OVERWRITE + ZERO, "live", "live", "imageio", ("--full",)),
    Step(TRIM, "live", "live", "grpc"),
)
DOWN = (
    Step(SCATTER, "live", "cold", "imageio"),
    Step("", "live", "cold", "grpc"),
    Step("", "live", "cold", "imageio", ("--full",)),
    Step("", "live", "cold", "grpc", ("--full",)),
)
UP_AGAIN = (
    Step(OVERWRITE, "engine", "hybrid", "grpc"),
    Step(SCATTER, "live", "live", "imageio"),
)


def test_a_guest_at_work(
    vm: Vm, deployed: Operator, copies: Copies, engine: services.SystemService, tmp_path: Path
) -> None:
    history = History(deployed, vm, copies, engine)
    for step in UP:
        vm.guest.run(step.work, timeout=120)
        take(history, step)
    vm.guest.run(DOWN[0].work)
    vm.power_off()
    for step in DOWN:
        take(history, step)
    assert [history.points[place].bytes("moved") for place in (-3, -1)] == [0, 0], "nothing was written"
    vm.start()
    for step in UP_AGAIN:
        vm.guest.run(step.work)
        take(history, step)

    history.assert_all_restored(tmp_path / "raw")
    for point in history.points[::4]:
        history.assert_restored(point, tmp_path / "qcow2", "qcow2")
    assert deployed.do("verify", vm.name)["damage"] == []


def take(history: History, step: Step) -> None:
    """Take a point as the step says, and see that this is what the manifest says."""
    before = history.points[-1] if history.points else None
    point = history.backup("--mode", step.mode, "--transport", step.transport, "--no-fallback", *step.options)
    full = before is None or "--full" in step.options
    base = None if full or before is None else before
    assert point.manifest["mode"] == step.ran
    assert point.manifest["parent_id"] == (base.id if base else None)
    assert point.manifest["parent_checkpoint_id"] == (base.manifest["checkpoint_id"] if base else None)
    assert point.read_as == ["full" if full or disk.format == "raw" else "incremental" for disk in history.vm.disks]
    assert point.carriers == {step.transport}
    if before and full:
        assert point.bytes("moved") < point.bytes("read") / 2, "it was there already"
    assert history.checkpoints == [point.manifest["checkpoint_id"]], "older ones only cost the VM a bitmap"
