"""What has not changed of a disk: what a point may be compared with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockferry.jobs import drift
from blockferry_agent.blocks import Range


@given(st.text(alphabet="=x", min_size=1, max_size=40))
def test_unchanged_and_changed_make_up_the_disk(disk: str) -> None:
    changed = [Range(place, 1, False) for place, kind in enumerate(disk) if kind == "x"]
    drawn = ["x"] * len(disk)
    last = -1
    for whole in drift.unchanged(changed, len(disk)):
        assert whole.start > last, "two that touch are one"
        last = whole.end
        drawn[whole.start : whole.end] = "=" * whole.length
    assert "".join(drawn) == disk
