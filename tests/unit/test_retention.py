"""Which points a policy keeps, and what of them a verification reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockferry import errors
from blockferry.repository import Manifest, Policy, retention, selection
from blockferry.repository.selection import Progress, Share
from tests.unit import recovery_points

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def points(*created: datetime) -> list[Manifest]:
    """Return points, newest first."""
    made = [msgspec.structs.replace(recovery_points.point(None, []), created=when) for when in created]
    return sorted(made, key=lambda point: point.created, reverse=True)


def kept(own: list[Manifest], policy: Policy, pinned: set[str] | None = None) -> list[datetime]:
    return [decision.point.created for decision in retention.decide(own, policy, pinned or set()) if decision.keep]


DAILY = [NOON - timedelta(days=days) for days in range(400)]


def test_the_newest_of_each_period_is_kept() -> None:
    own = points(*DAILY, *(day - timedelta(hours=3) for day in DAILY))
    assert kept(own, Policy(last=3)) == [own[0].created, own[1].created, own[2].created]
    assert kept(own, Policy(daily=3)) == DAILY[:3]
    # 23 November 2026 is a Monday, so the weeks before end on Sundays.
    assert kept(own, Policy(weekly=3)) == [NOON, NOON - timedelta(days=1), NOON - timedelta(days=8)]
    assert [f"{when:%m-%d}" for when in kept(own, Policy(monthly=3))] == ["11-23", "10-31", "09-30"]
    assert [f"{when:%Y-%m-%d}" for when in kept(own, Policy(yearly=5))] == ["2026-11-23", "2025-12-31"]
    assert len(kept(own, Policy(within=timedelta(days=2)))) == 5


def test_reasons_are_told() -> None:
    own = points(*DAILY[:3])
    decisions = retention.decide(own, Policy(daily=2, weekly=2), {own[2].id})
    assert [decision.reasons for decision in decisions] == [
        ("daily 1 of 2 (2026-11-23)", "weekly 1 of 2 (week 2026-W48)"),
        ("daily 2 of 2 (2026-11-22)", "weekly 2 of 2 (week 2026-W47)"),
        ("pinned",),
    ]


@pytest.mark.parametrize("policy", [Policy(), Policy(last=-1, daily=2), Policy(within=timedelta(-1))])
def test_a_policy_that_cannot_be_meant_is_refused(policy: Policy) -> None:
    with pytest.raises(errors.ConfigError):
        retention.decide(points(NOON), policy, set())


COUNTS = st.integers(0, 5)
POLICIES = st.builds(Policy, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.timedeltas(timedelta(), timedelta(9)))


@given(
    policy=POLICIES.filter(any),
    hours=st.lists(st.integers(0, 20_000), min_size=1, max_size=30, unique=True),
    pins=st.sets(st.integers(0, 29)),
)
def test_what_must_stay_stays(policy: Policy, hours: list[int], pins: set[int]) -> None:
    own = points(*(NOON - timedelta(hours=hour) for hour in hours))
    pinned = {point.id for number, point in enumerate(own) if number in pins}
    decisions = retention.decide(own, policy, pinned)
    assert [decision.point for decision in decisions] == own
    stays = {decision.point.id for decision in decisions if decision.keep}
    assert own[0].id in stays, "the newest"
    assert pinned <= stays
    assert {point.id for point in own[: policy.last]} <= stays
    assert len(stays - pinned) <= max(1, sum(policy[:6])) or policy.within
    # What is deleted is not missed by the next run.
    rest = [point for point in own if point.id in stays]
    assert all(decision.keep for decision in retention.decide(rest, policy, pinned))


LENGTHS = st.dictionaries(st.integers(0, 1000), st.integers(1, 100), min_size=1, max_size=40)


@given(lengths=LENGTHS, share=st.floats(0.01, 0.99), runs=st.integers(1, 5))
def test_all_is_read_in_some_runs_the_newest_first(lengths: dict[int, int], share: float, runs: int) -> None:
    progress, read = Progress(), set[int]()
    total, largest = sum(lengths.values()), max(lengths.values())
    while len(read) < len(lengths):
        chosen = selection.select(lengths, progress, Share(share, float("inf")))
        now = {second for second in lengths if chosen.has(second)}
        assert now
        assert not now & read, "nothing twice before all was read once"
        assert min(now) > max(set(lengths) - read - now, default=-1), "the newest first"
        assert sum(lengths[second] for second in now) <= share * total + largest
        read |= now
        progress = chosen.after
        assert {second for second in lengths if progress.has(second)} == read
    again = selection.select(lengths, progress, Share(share, float("inf")))
    assert again.has(max(lengths)), "then from the newest again"


@given(old=LENGTHS, new=LENGTHS, share=st.floats(0.01, 0.5))
def test_what_is_new_comes_before_the_rest(old: dict[int, int], new: dict[int, int], share: float) -> None:
    before = selection.select(old, Progress(), Share(share, float("inf"))).after
    both = old | {second + 2000: length for second, length in new.items()}
    chosen = selection.select(both, before, Share(share, float("inf")))
    fresh = {second for second in both if second >= 2000}
    now = {second for second in both if chosen.has(second)}
    assert now <= fresh or fresh <= now
    assert not any(before.has(second) for second in now)


@given(lengths=LENGTHS, late=LENGTHS, settled=st.floats(0, 1001), share=st.floats(0.01, 0.99))
def test_what_a_running_backup_wrote_is_not_called_read_before_its_point_is_there(
    lengths: dict[int, int], late: dict[int, int], settled: float, share: float
) -> None:
    chosen = selection.select(lengths, Progress(), Share(share, settled))
    later = {second: length for second, length in late.items() if second >= settled}
    assert not any(chosen.after.has(second) for second in later)
    assert all(chosen.after.has(second) for second in lengths if chosen.has(second) and second + 1 <= settled)
