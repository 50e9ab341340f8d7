"""The room that a disk needs as a qcow2 volume, as QEMU sees it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from blockferry.jobs import volumes
from blockferry.repository import Repository
from blockferry_agent.units import KiB, MiB
from tests.lab import processes
from tests.unit import repository_images as images

SIZE = 40 * MiB + 512


def scattered(number: int, length: int, seed: int) -> bytes:
    content = bytearray(SIZE)
    places = random.Random(seed)
    for _ in range(number):
        start = places.randrange(0, SIZE - length, 512)
        content[start : start + length] = b"x" * length
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(bytes(SIZE), id="empty"),
        pytest.param(b"x" * SIZE, id="full"),
        pytest.param(scattered(60, 512, 1), id="sectors"),
        pytest.param(scattered(60, 100 * KiB, 2), id="pieces"),
    ],
)
def test_it_is_enough_and_not_much_more(tmp_path: Path, content: bytes) -> None:
    repository = Repository.init(str(tmp_path / "repository"), 256 * KiB)
    point = images.full(repository, content)
    needed = volumes.qcow2_space(repository.disk(point, images.DISK))

    # Written as a restore does: zeros as zeros, the rest as the repository has it.
    volume = tmp_path / "disk.qcow2"
    entries = repository.disk(point, images.DISK).entries(0, SIZE)
    commands = [f"write -q -z 0 {SIZE}", *(f"write -q {entry.start} {entry.length}" for entry in entries)]
    processes.run("qemu-img", "create", "-q", "-f", "qcow2", volume, str(SIZE))
    processes.run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), volume)
    taken = json.loads(processes.run("qemu-img", "check", "--output=json", volume))["image-end-offset"]
    assert taken <= needed <= taken + 1 * MiB
