"""Which points stay, and that room is made, while backups run."""

from __future__ import annotations

from concurrent import futures
from pathlib import Path

import pytest
from ovirtsdk4 import services

from tests.conftest import NewVm
from tests.e2e.points.history import History
from tests.lab.lab import Lab, MiB, NewDisk
from tests.lab.operator import Operator
from tests.lab.witness import Copies

pytestmark = pytest.mark.lab


def test_points_go_while_others_come(
    lab: Lab,
    new_vm: NewVm,
    deployed: Operator,
    copies: Copies,
    engine: services.SystemService,
    tmp_path: Path,
) -> None:
    """Points are pruned and collected while a backup runs, again and again; what stays is whole, and room is made."""
    vm = new_vm(disks=(NewDisk(16 * MiB + 512, ext4=False),), start=False)
    lab.host.qemu_io(vm.id, vm.disks[0].id, f"write -q -P 77 0 {12 * MiB}")
    history = History(deployed, vm, copies, engine)
    pinned = history.backup("--tag", "before")
    deployed.do("pin", vm.name, pinned.id)
    with futures.ThreadPoolExecutor() as threads:
        for round_number in range(3):
            lab.host.qemu_io(vm.id, vm.disks[0].id, f"write -q -P {round_number + 1} {round_number * MiB} {3 * MiB}")
            running = threads.submit(history.backup)
            while not running.done():
                assert deployed.run("collect", "--trash", "0", "--young", "0", "-q").status == 0
            running.result()
            verdicts = deployed.do("prune", vm.name, "--keep-last", "1")
            assert [verdict["keep"] for verdict in verdicts] == [True, *[False] * (len(verdicts) - 2), True]
    assert [point["id"] for point in deployed.do("list", vm.name)] == [history.points[-1].id, pinned.id]
    history.points[1:-1] = []
    assert deployed.do("collect", "--trash", "0", "--young", "0")["freed"]["objects"] > 0
    assert deployed.do("verify")["damage"] == []
    history.assert_all_restored(tmp_path / "restored")
