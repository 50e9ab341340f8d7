"""Restore drills: a recovery point boots in QEMU. The guest is a boot sector that says a sentence on the serial port."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.jobs import drill, firmware
from blockferry.jobs.drill import Signs, Terms
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


def boot(repository: Repository, point: Manifest, signs: Signs, log: Path, timeout: float = 60) -> drill.Drill:
    return drill.run(repository, point, [], signs, Terms(timeout, 64 * MiB, log), Silent())


def test_a_point_boots_and_says_what_is_expected(repository: Repository, tmp_path: Path) -> None:
    log = tmp_path / "drills" / "log"
    result = boot(repository, repository_images.full(repository, BOOTABLE), Signs("The old files are here."), log)
    assert result.alive
    assert (result.firmware, result.log) == ("bios", str(log))
    assert SENTENCE.strip() in log.read_bytes()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_guest_that_says_something_else_is_not_alive(repository: Repository, tmp_path: Path) -> None:
    point = repository_images.full(repository, BOOTABLE)
    result = boot(repository, point, Signs("login:"), tmp_path / "log")
    assert not result.alive
    assert result.missing == ("'login:' on the console",)
    assert any("The old files are here." in line for line in result.console)


def test_a_guest_without_an_agent_gives_one_sign_of_two(repository: Repository, tmp_path: Path) -> None:
    point = repository_images.full(repository, BOOTABLE)
    result = boot(repository, point, Signs("The old files are here.", agent=True), tmp_path / "log")
    assert not result.alive
    assert result.missing == ("an answer of the guest agent",)


def test_a_vm_that_boots_by_uefi_says_so_in_its_configuration(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with repository.new_point(repository_images.VM) as draft:
        writer = draft.disk(repository_images.DISK, 1 * MiB, "full", None)
        writer.write(repository_images.zero(0, 1 * MiB))
        repository_images.finish(writer)
        draft.ovf("<Envelope><Content><BiosType>3</BiosType></Content></Envelope>")
        point = draft.commit(
            mode="live", backup_id=str(uuid.uuid4()), checkpoint_id=str(uuid.uuid4()), parent=None, seconds=1
        )
    monkeypatch.setattr(firmware, "DESCRIPTIONS", tmp_path)
    with pytest.raises(errors.RestoreError, match="boots by UEFI"):
        boot(repository, point, Signs("login:"), tmp_path / "log")


def test_chipset_and_order_of_disks_are_those_of_the_configuration(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by a QEMU that says what it was called with, and ends."""
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    second, first = str(uuid.uuid4()), str(uuid.uuid4())
    with repository.new_point(repository_images.VM) as draft:
        for disk_id, alias in ((second, "data"), (first, "system")):
            writer = draft.disk(disk_id, 1 * MiB, "full", None)
            writer.write(repository_images.zero(0, 1 * MiB))
            repository_images.finish(writer, alias, bootable=alias == "system")
        draft.ovf(
            "<BiosType>1</BiosType>"
            + "".join(f'<Disk ovf:fileRef="{disk_id}/{uuid.uuid4()}"/>' for disk_id in (first, second))
        )
        point = draft.commit(
            mode="live", backup_id=str(uuid.uuid4()), checkpoint_id=str(uuid.uuid4()), parent=None, seconds=1
        )
    with pytest.raises(errors.RestoreError, match="QEMU did not start") as refusal:
        boot(repository, point, Signs("login:"), tmp_path / "log")
    assert "-machine\npc\n" in refusal.value.message
    assert re.findall(r'"export": "(\w+)"', refusal.value.message) == ["system", "data"]
    assert re.findall(r"drive=disk\d,bootindex=(\d)", refusal.value.message) == ["0", "2"]


def test_without_qemu_it_is_told_what_to_install(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(errors.RestoreError, match="needs QEMU"):
        boot(repository, repository_images.full(repository, BOOTABLE), Signs("login:"), tmp_path / "log")
