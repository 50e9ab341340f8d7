"""What a restore that was killed leaves for the next one."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.jobs import unfinished
from blockferry.jobs.unfinished import OpenDisk

DISK = OpenDisk(str(uuid.uuid4()), "web_Disk1", 1024, "Restored by Blockferry")
OTHER = OpenDisk(str(uuid.uuid4()), "web_Disk2", 1024, None, "two")


def left(state: Path) -> list[OpenDisk | None]:
    return [record.open for record in unfinished.left(state)]


def test_a_disk_is_found_until_it_was_seen_to_be_complete(tmp_path: Path) -> None:
    for disk in (DISK, OTHER):
        with unfinished.alone(tmp_path, disk.id) as record:
            assert record.open is None
            record.begun(disk, disk.made_as, disk.transfer_id)
            assert left(tmp_path) == ([] if disk is DISK else [DISK]), "its restore still runs"
    assert sorted(left(tmp_path), key=str) == sorted([DISK, OTHER], key=str)
    for record in unfinished.left(tmp_path):
        record.ended()
        record.ended()
    assert left(tmp_path) == []


def test_a_new_disk_that_is_complete_is_not_to_be_removed(tmp_path: Path) -> None:
    with unfinished.alone(tmp_path, DISK.id) as record:
        record.begun(DISK, DISK.made_as, "one")
        record.written(DISK)
    (found,) = left(tmp_path)
    assert found is not None
    assert (found.id, found.made_as, found.transfer_id, found.written) == (DISK.id, None, None, True)


def test_one_restore_writes_a_disk(tmp_path: Path) -> None:
    with (
        unfinished.alone(tmp_path, DISK.id),
        pytest.raises(errors.Conflict, match=f"writes disk {DISK.id}"),
        unfinished.alone(tmp_path, DISK.id),
    ):
        pass
    with unfinished.alone(tmp_path, DISK.id):
        pass


def test_what_cannot_be_understood_is_left_to_the_engine(tmp_path: Path) -> None:
    with unfinished.alone(tmp_path, DISK.id) as record:
        record.begun(DISK, DISK.made_as)
    (path,) = (tmp_path / "restoring").glob("*.json")
    path.write_text("{")
    assert left(tmp_path) == []


def test_a_state_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "restoring").touch()
    with pytest.raises(errors.ConfigError, match="restoring cannot be used"), unfinished.alone(tmp_path, DISK.id):
        pass
