"""What a large disk costs when little of it differs."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.conftest import NewVm
from tests.lab import processes
from tests.lab.lab import KiB, MiB, NewDisk
from tests.lab.operator import Operator

pytestmark = pytest.mark.lab

SIZE = 10 * 1024 * MiB
GRAIN = 64 * KiB
CHANGED = SIZE // 100 // GRAIN


def test_one_percent_of_ten_gib_is_restored_by_moving_that(new_vm: NewVm, deployed: Operator, tmp_path: Path) -> None:
    """In place: what differs is written, 100 MiB in 1,638 places, in data and where nothing was; then nothing differs."""
    vm = new_vm(disks=(NewDisk(SIZE, ext4=False),), start=False)
    (disk,) = vm.disks
    content = tmp_path / "content"
    content.write_bytes(os.urandom(32 * MiB))

    def write(*commands: str) -> None:
        words = [word for command in commands for word in ("-c", command)]
        processes.run("qemu-io", "-f", disk.format, *words, disk.path)

    # Half a GiB of data all over the disk; the repository has it once.
    write(*(f"write -q -s {content} {number * 640 * MiB} 32M" for number in range(16)))
    deployed.do("backup", vm.name)
    grains = range(SIZE // GRAIN)
    in_data = [grain for grain in grains if grain * GRAIN % (640 * MiB) < 32 * MiB]
    empty = [grain for grain in grains if grain * GRAIN % (640 * MiB) >= 32 * MiB]
    chosen = random.Random(1)
    places = [*chosen.sample(in_data, CHANGED // 2), *chosen.sample(empty, CHANGED - CHANGED // 2)]
    write(*(f"write -q -P 7 {place * GRAIN} {GRAIN}" for place in sorted(places)))

    (restored,) = deployed.do("restore", vm.name, "latest", "--in-place")["disks"]
    assert restored["compared"] == SIZE
    assert restored["data"] + restored["zeros"] == CHANGED * GRAIN
    assert restored["data"] == CHANGED // 2 * GRAIN, "zeros are not moved as bytes"

    (image,) = deployed.do("restore", vm.name, "latest", "--to", str(tmp_path / "out"))
    processes.run("qemu-img", "compare", "-f", disk.format, "-F", "raw", disk.path, image["path"])
    (again,) = deployed.do("restore", vm.name, "latest", "--in-place")["disks"]
    assert (again["data"], again["zeros"]) == (0, 0)
    Path(image["path"]).unlink()
