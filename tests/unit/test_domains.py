"""Which storage domain new disks go to."""

from __future__ import annotations

from typing import Any

import pytest

from blockferry import errors
from blockferry.engine import StorageDomain
from blockferry.jobs.domains import Domains
from blockferry_agent.units import GiB
from tests.unit import recovery_points

FAST = StorageDomain("id-fast", "fast", "nfs", 10 * GiB)
SLOW = StorageDomain("id-slow", "slow", "iscsi", 3 * GiB)
UNTOLD = StorageDomain("id", "untold", "nfs", None)
DISK = recovery_points.disk("disk")


def choose(known: list[StorageDomain], wanted: str | None = None, old: str = "", **mapped: str) -> StorageDomain:
    before = {DISK.id: old} if old else {}
    return Domains(known, before, wanted, {key.replace("_", "-"): new for key, new in mapped.items()}).take(DISK, GiB)


@pytest.mark.parametrize(
    ("known", "options", "chosen"),
    [
        ([FAST, SLOW], {"old": "id-slow"}, SLOW),
        ([FAST, SLOW], {"wanted": "fast", "old": "id-slow"}, FAST),
        ([FAST, SLOW], {"wanted": "id-fast"}, FAST),
        ([FAST, SLOW], {"wanted": "fast", "old": "id-fast", "fast": "slow"}, SLOW),
        ([FAST, SLOW], {"wanted": "fast", "old": "id-slow", "fast": "slow"}, FAST),
        ([FAST, SLOW], {"old": "id-gone", "id_gone": "id-slow"}, SLOW),
        ([FAST], {"old": "id-gone"}, FAST),
        ([SLOW], {}, SLOW),
    ],
)
def test_the_nearest_rule_decides(known: list[StorageDomain], options: dict[str, Any], chosen: StorageDomain) -> None:
    assert choose(known, **options) == chosen


def test_nothing_is_guessed() -> None:
    for old in ("", "id-gone"):
        with pytest.raises(errors.Ambiguous, match=r"is not known, and the engine has fast, slow\.") as caught:
            choose([FAST, SLOW], old=old)
        assert "--storage-domain" in caught.value.hint
    with pytest.raises(errors.NotFound, match="no storage domain 'fats'") as missing:
        choose([FAST, SLOW], wanted="fats")
    assert "fast, slow" in missing.value.hint
    with pytest.raises(errors.NotFound, match="no storage domain 'x'"):
        choose([FAST, SLOW], fast="x")
    with pytest.raises(errors.Ambiguous, match="2 storage domains"):
        choose([FAST, StorageDomain("other", "fast", "nfs", GiB)], wanted="fast")


def test_a_domain_that_is_full_is_found_before_anything_is_made() -> None:
    domains = Domains([SLOW], {}, None, {})
    domains.take(DISK, 2 * GiB)
    assert Domains([UNTOLD], {}, None, {}).take(DISK, 2 * GiB) == UNTOLD
    with pytest.raises(errors.RestoreError, match=r"needs 2048\.0 MiB, and storage domain 'slow' has 1024\.0 MiB left"):
        domains.take(DISK, 2 * GiB)
