"""What a new recovery point builds on."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from blockferry.jobs import base
from blockferry.repository import Manifest
from tests.unit import recovery_points


def history(*points: tuple[str | None, str]) -> list[Manifest]:
    """Points, the newest first, each of a checkpoint and disks, one letter each."""
    made = [recovery_points.point(checkpoint, [*map(recovery_points.disk, disks)]) for checkpoint, disks in points]
    return made[::-1]


def test_newest_whose_checkpoint_is_there() -> None:
    newest, older, oldest = points = history(("c1", "ab"), ("c2", "ab"), ("c3", "ab"))
    assert base.choose(points, {"c1", "c2", "c3"}, "ab") == (newest, "c3")
    assert base.choose(points, {"c1", "c2"}, "ab") == (older, "c2")
    assert base.choose(points, {"c1", "x"}, "ab") == (oldest, "c1")


def test_one_that_has_all_disks_comes_first() -> None:
    some, whole = points = history(("c1", "ab"), ("c2", "a"))
    assert base.choose(points, {"c1", "c2"}, "ab") == (whole, "c1")
    assert base.choose(points, {"c1", "c2"}, "a") == (some, "c2")
    assert base.choose(points, {"c2"}, "ab") == (some, "c2"), "disk b is read whole, a is not"
    assert base.choose(points, {"c1", "c2"}, "abc") == (some, "c2"), "none has the new disk"


def test_digests_of_the_newest_without_any_checkpoint() -> None:
    points = history(("c1", "ab"), (None, "ab"))
    assert base.choose(points, {"x"}, "ab") == (points[0], None)
    assert base.without_checkpoint(points) == (points[0], None)
    assert base.choose(points, {"c1"}, "ab") == (points[1], "c1"), "a point without a checkpoint is never a base"


def test_nothing_to_build_on() -> None:
    assert base.choose([], {"c1"}, "ab") == base.NOTHING
    assert base.without_checkpoint([]) == base.NOTHING


@given(
    points=st.lists(st.tuples(st.sampled_from([None, "c1", "c2", "c3"]), st.text("abc", min_size=1, max_size=3))),
    checkpoints=st.sets(st.sampled_from(["c1", "c2", "c3", "x"])),
    disks=st.sets(st.sampled_from("abcd"), min_size=1),
)
def test_a_checkpoint_is_always_that_of_the_point_and_in_the_engine(
    points: Sequence[tuple[str | None, str]], checkpoints: set[str], disks: set[str]
) -> None:
    found = history(*points)
    chosen = base.choose(found, checkpoints, disks)
    if chosen.checkpoint_id is not None:
        assert chosen.point is not None
        assert chosen.point.checkpoint_id == chosen.checkpoint_id
        assert chosen.checkpoint_id in checkpoints
    else:
        assert not {point.checkpoint_id for point in found} & checkpoints
        assert chosen.point is (found[0] if found else None)
