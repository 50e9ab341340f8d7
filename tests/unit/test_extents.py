"""Extents from runs: merging two contexts that stop at different places, clipping, joining."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from blockferry_agent import extents
from blockferry_agent.extents import Run
from blockferry_agent.source import Extent

RUNS = st.lists(st.builds(Run, st.integers(1, 9), st.booleans()), max_size=8)
STARTS = st.integers(0, 100)


def spread(runs: list[Run]) -> list[bool]:
    """The flag of each byte."""
    return [run.flag for run in runs for _ in range(run.length)]


def bytes_of(found: list[Extent], start: int) -> list[tuple[bool, bool]]:
    """(zero, dirty) of each byte; checks that extents follow each other without gaps."""
    flags = []
    for extent in found:
        assert extent.start == start + len(flags)
        assert extent.length > 0
        flags += [(extent.zero, extent.dirty)] * extent.length
    return flags


@given(STARTS, RUNS, RUNS)
def test_merge_says_of_each_byte_what_both_contexts_say(start: int, zero: list[Run], dirty: list[Run]) -> None:
    merged = list(extents.merge(start, zero, dirty))
    assert bytes_of(merged, start) == list(zip(spread(zero), spread(dirty), strict=False))  # up to the shorter


@given(STARTS, RUNS)
def test_without_a_bitmap_all_is_dirty(start: int, zero: list[Run]) -> None:
    assert bytes_of(list(extents.all_dirty(start, zero)), start) == [(flag, True) for flag in spread(zero)]


@given(STARTS, RUNS.filter(bool), RUNS, st.data())
def test_clip_keeps_what_lies_before_the_end(start: int, zero: list[Run], more: list[Run], data: st.DataObject) -> None:
    length = data.draw(st.integers(1, len(spread(zero))))
    clipped = list(extents.clip(extents.all_dirty(start, zero + more), start + length))
    assert [flag for flag, _ in bytes_of(clipped, start)] == spread(zero)[:length]


def test_clip_does_not_look_behind_the_end() -> None:
    def server() -> Iterator[Extent]:
        yield Extent(0, 4, True, False)
        raise AssertionError("asked for more")

    assert list(extents.clip(server(), 4)) == [Extent(0, 4, True, False)]


@given(STARTS, RUNS, RUNS)
def test_coalesce_changes_no_byte_and_leaves_no_equal_neighbours(start: int, zero: list[Run], dirty: list[Run]) -> None:
    merged = list(extents.merge(start, zero, dirty))
    joined = list(extents.coalesce(merged))
    assert bytes_of(joined, start) == bytes_of(merged, start)
    assert all((a.zero, a.dirty) != (b.zero, b.dirty) for a, b in itertools.pairwise(joined))


def test_merge_example() -> None:
    #           zero:  ....####....
    #           dirty: ..######
    merged = extents.merge(100, [Run(4, False), Run(4, True), Run(4, False)], [Run(2, False), Run(6, True)])
    assert list(merged) == [
        Extent(100, 2, dirty=False, zero=False),
        Extent(102, 2, dirty=True, zero=False),
        Extent(104, 4, dirty=True, zero=True),
    ]
