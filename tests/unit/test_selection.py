"""Which disks the operator means."""

from __future__ import annotations

import pytest

from blockferry import errors
from blockferry.jobs import selection
from tests.unit.recovery_points import disk

SYSTEM, DATA, TWIN = disk("1", "system"), disk("2", "data"), disk("3", "data")


def test_all_when_none_is_named() -> None:
    assert selection.disks([SYSTEM, DATA, TWIN], [], "VM web") == [SYSTEM, DATA, TWIN]


def test_by_id_or_alias_each_once() -> None:
    assert selection.disks([SYSTEM, DATA, TWIN], ["3", "system", "1"], "VM web") == [TWIN, SYSTEM]


def test_unknown_disk() -> None:
    with pytest.raises(errors.NotFound, match=r"VM web has no disk swap\. It has: system, data\.") as caught:
        selection.disks([SYSTEM, DATA], ["system", "swap"], "VM web")
    assert errors.exit_code(caught.value) == 5


def test_two_disks_of_one_alias() -> None:
    with pytest.raises(errors.Ambiguous, match=r"VM web has 2 disks called data\. Name the disk by its id\."):
        selection.disks([SYSTEM, DATA, TWIN], ["data"], "VM web")
