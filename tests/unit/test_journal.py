from __future__ import annotations

import multiprocessing
import os
import signal
import uuid
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.engine import JournalEntry
from blockferry.jobs import journal

VM = str(uuid.uuid4())


def test_what_ended_leaves_nothing(tmp_path: Path) -> None:
    with journal.opened(tmp_path, VM) as first:
        first.record(JournalEntry(VM, "job"))
        first.record(JournalEntry(VM, "job", "backup"))
        first.ended(first.open[0])
    with journal.opened(tmp_path, VM) as second:
        assert second.open == []


def _die_in_a_backup(state: Path, vm_id: str) -> None:
    with journal.opened(state, vm_id) as own:
        own.record(JournalEntry(vm_id, "job"))
        own.record(JournalEntry(vm_id, "job", "backup"))
        own.record(JournalEntry(vm_id, "job", "backup", "one"))
        own.record(JournalEntry(vm_id, "job", "backup", "two"))
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_found(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_in_a_backup, args=(tmp_path, VM))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    with journal.opened(tmp_path, VM) as own:
        assert own.open == [journal.OpenBackup(VM, "job", "backup", ["one", "two"])]


def test_two_at_once_exclude_each_other(tmp_path: Path) -> None:
    with (
        journal.opened(tmp_path, VM),
        pytest.raises(errors.Conflict, match="Another backup of VM"),
        journal.opened(tmp_path, VM),
    ):
        pass


def test_other_vms_are_free(tmp_path: Path) -> None:
    with journal.opened(tmp_path, VM), journal.opened(tmp_path, str(uuid.uuid4())):
        pass


def test_an_id_that_is_none_makes_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError), journal.opened(tmp_path, "../../etc"):
        pass
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "running"])
