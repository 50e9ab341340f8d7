"""Restore drills: a recovery point boots in QEMU. The guest is a boot sector that says a sentence on the serial port."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockferry import errors
from blockferry.jobs import drill
from blockferry.jobs.progress import Silent
from blockferry.repository import Manifest, Repository
from blockferry_agent.units import MiB
from tests.unit import repository_images

SENTENCE = b"The old files are here.\r\n"

# xor ax,ax; mov ds,ax; mov si,text; mov dx,0x3f8; cld; next: lodsb; test al,al; jz end; out dx,al; jmp next;
# end: mov al,0xfe; out 0x64,al (reset, which ends QEMU); here: jmp here; text:
CODE = bytes.fromhex("31c0 8ed8 be197c baf803 fc ac 84c0 7403 ee ebf8 b0fe e664 ebfe")
BOOTABLE = (CODE + SENTENCE).ljust(510, b"\0") + b"\x55\xaa" + bytes(4 * MiB - 512)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.init(str(tmp_path / "repository"))


def boot(repository: Repository, point: Manifest, expect: str, timeout: float) -> drill.Drill:
    return drill.run(repository, point, [], expect, timeout, 64 * MiB, Silent())


def test_a_point_boots_and_says_what_is_expected(repository: Repository) -> None:
    result = boot(repository, repository_images.full(repository, BOOTABLE), "The old files are here.", 60)
    assert result.alive


def test_a_guest_that_says_something_else_is_not_alive(repository: Repository) -> None:
    result = boot(repository, repository_images.full(repository, BOOTABLE), "login:", 60)
    assert not result.alive
    assert any("The old files are here." in line for line in result.console)


def test_without_qemu_it_is_told_what_to_install(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(errors.RestoreError, match="needs QEMU"):
        boot(repository, repository_images.full(repository, BOOTABLE), "login:", 4)
