"""What a restore that was killed leaves for the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockferry import errors
from blockferry.jobs import unfinished

DISK = "11111111-aaaa-4aaa-8aaa-111111111111"


def test_a_transfer_is_found_until_it_was_seen_to_end(tmp_path: Path) -> None:
    with unfinished.alone(tmp_path, DISK) as record:
        assert record.transfer_id is None
        record.begun("one")
    with unfinished.alone(tmp_path, DISK) as record:
        assert record.transfer_id == "one"
        record.ended()
        record.ended()
        assert record.transfer_id is None
    with unfinished.alone(tmp_path, DISK) as record:
        assert record.transfer_id is None


def test_one_restore_writes_a_disk(tmp_path: Path) -> None:
    with (
        unfinished.alone(tmp_path, DISK),
        pytest.raises(errors.Conflict, match=f"writes disk {DISK}"),
        unfinished.alone(tmp_path, DISK),
    ):
        pass
    with unfinished.alone(tmp_path, DISK):
        pass


def test_a_state_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "restoring").touch()
    with pytest.raises(errors.ConfigError, match="restoring cannot be used"), unfinished.alone(tmp_path, DISK):
        pass
