"""
Extents: from what an NBD server says about ranges to what a source reports. Pure functions over iterators.

A server describes a range once per metadata context, as runs from the range's start: how long, and what holds there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from blockferry_agent.source import Extent


class Run(NamedTuple):
    """
    What one metadata context says about the next bytes.

    length: bytes, never 0.  flag: "reads as zeros" or "dirty", as the context has it.
    """

    length: int
    flag: bool


def merge(start: int, zero: Iterable[Run], dirty: Iterable[Run]) -> Iterator[Extent]:
    """
    Generate the extents from `start` on that two contexts describe together, as far as both of them reach.

        zero:    |  data    |   zero    | data |
        dirty:   | clean |      dirty     |
        extents: | clean |dd| dirty zero|d|
    """
    zeros, dirts = iter(zero), iter(dirty)
    zero_left = dirty_left = 0
    is_zero = is_dirty = False
    while True:
        if not zero_left:
            zero_left, is_zero = next(zeros, (0, False))
        if not dirty_left:
            dirty_left, is_dirty = next(dirts, (0, False))
        length = min(zero_left, dirty_left)
        if not length:
            return
        yield Extent(start, length, is_dirty, is_zero)
        start += length
        zero_left -= length
        dirty_left -= length


def all_dirty(start: int, zero: Iterable[Run]) -> Iterator[Extent]:
    """Generate the extents from `start` on that one context describes, when nobody asked what changed."""
    for length, is_zero in zero:
        yield Extent(start, length, True, is_zero)
        start += length


def clip(extents: Iterable[Extent], end: int) -> Iterator[Extent]:
    """Generate extents up to `end`; the last is cut there, what lies behind is never looked at."""
    for extent in extents:
        if extent.end < end:
            yield extent
        else:
            yield extent._replace(length=end - extent.start)
            return


def coalesce(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Generate extents without gaps, neighbours that are equally dirty and zero in one piece."""
    last: Extent | None = None
    for extent in extents:
        if last is None:
            last = extent
        elif (last.dirty, last.zero) == (extent.dirty, extent.zero):
            last = last._replace(length=last.length + extent.length)
        else:
            yield last
            last = extent
    if last is not None:
        yield last
