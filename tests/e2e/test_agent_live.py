"""The agent's reader on the exports of a running VM: its own QEMU serves them, with the bitmap that a live backup makes."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockferry_agent import blocks, nbd, reader, url
from blockferry_agent.units import MiB
from tests.component import nbd_servers
from tests.lab.backups import BackupDisk
from tests.lab.lab import Lab, Vm

pytestmark = pytest.mark.lab


@contextmanager
def backup(lab: Lab, vm: Vm, since: str | None, checkpoint: str) -> Iterator[dict[str, nbd.Address]]:
    """A live backup of the VM's qcow2 disks: the exports by disk id."""
    backup_id = str(uuid.uuid4())
    disks = []
    for disk in vm.disks:
        if disk.format == "qcow2":
            path = lab.host.volume_path(disk.id, str(uuid.uuid4()))
            lab.host.create_volume(path, "qcow2", disk.size)
            disks.append(BackupDisk(disk.id, True, "incremental" if since else "full", path))
    urls = lab.host.start_backup(vm.id, backup_id, disks, from_checkpoint=since, to_checkpoint=checkpoint)
    try:
        yield {disk_id: url.parse(text, [str(lab.host.directory)]) for disk_id, text in urls.items()}
    finally:
        lab.host.stop_backup(vm.id, backup_id)
        for done in disks:
            lab.host.remove_volume(done.scratch)


def apply(address: nbd.Address, image: bytearray, incremental: bool) -> blocks.Summary:
    """Read a disk, or what changed of it, into an image of what it was."""
    connect = functools.partial(nbd.Connection, address, bitmap=incremental)
    request = blocks.ReadRequest(0, len(image), incremental, 1 * MiB)
    with reader.read(connect, request, workers=4) as reading:
        for block in reading:
            image[block.start : block.end] = block.data or bytes(block.length)
    return reading.summary


def test_a_full_and_an_incremental_read_are_what_nbdcopy_reads(lab: Lab, vm: Vm, tmp_path: Path) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    images: dict[str, bytearray] = {}
    with backup(lab, vm, None, first) as exports:
        for disk_id, address in exports.items():
            expected = nbd_servers.copy(address, tmp_path / "copy.raw")
            images[disk_id] = bytearray(b"\xff" * len(expected))
            apply(address, images[disk_id], incremental=False)
            assert images[disk_id] == expected

    vm.guest.run("dd if=/dev/urandom of=/mnt/vda/changed bs=64k count=20; sync")

    with backup(lab, vm, first, second) as exports:
        summaries = {}
        for disk_id, address in exports.items():
            summaries[disk_id] = apply(address, images[disk_id], incremental=True)
            assert images[disk_id] == nbd_servers.copy(address, tmp_path / "copy.raw")
    assert all(0 <= summary.dirty < 64 * MiB for summary in summaries.values())
    assert max(summary.moved for summary in summaries.values()) >= 20 * 64 * 1024
