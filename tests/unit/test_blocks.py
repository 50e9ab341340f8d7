"""From extents to the ranges of blocks. Windows have 4 bytes here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockferry_agent import blocks, extents
from blockferry_agent.blocks import Range, ReadRequest
from blockferry_agent.source import Extent
from tests.unit import disks

WINDOW = 4


def ranges_of(
    disk: str, whole: set[int] | frozenset[int] = frozenset(), start: int = 0, length: int = -1
) -> list[Range]:
    request = ReadRequest(start, len(disk) - start if length < 0 else length, True, WINDOW, frozenset(whole))
    asked = [extent for extent in disks.extents(disk) if start <= extent.start < start + request.length]
    return list(blocks.ranges(extents.coalesce(asked), request))


def drawn(ranges: list[Range], size: int) -> str:
    """Ranges as a string: their bytes are letters in order, capital where they are zero."""
    line = ["."] * size
    for number, piece in enumerate(ranges):
        letter = chr(ord("a") + number)
        line[piece.start : piece.end] = (letter.upper() if piece.zero else letter) * piece.length
    return "".join(line)


@pytest.mark.parametrize(
    ("disk", "whole", "expected"),
    [
        pytest.param("aaaaaaaa", set(), "........", id="clean is skipped"),
        pytest.param("....aaaa", set(), "........", id="clean zeros are skipped too"),
        pytest.param("AAAAAAAA", set(), "aaaabbbb", id="data is cut at windows"),
        pytest.param("aAAAAAaa", set(), ".aaabb..", id="a block is the dirty part of its window"),
        pytest.param("AaAaaaaA", set(), "a.b....c", id="dirty parts of a window that do not touch"),
        pytest.param("00000000", set(), "AAAAAAAA", id="zeros do not stop at windows"),
        pytest.param("AA00A0AA", set(), "aaBBcDee", id="zeros between data"),
        pytest.param("AAAAA", set(), "aaaab", id="the last window is short"),
        pytest.param("aAaaaAaa", {4}, ".a..bbbb", id="whole window"),
        pytest.param("aaaaaAaa", {0}, ".....a..", id="a whole window without change is skipped"),
        pytest.param("A0a.A0A0", {0, 4}, "aaaabbbb", id="zeros and clean parts of a whole window"),
        pytest.param("000000000000", {4}, "AAAAbbbbCCCC", id="zeros around a whole window"),
        pytest.param("aaaaaA", {4}, "....aa", id="a whole window ends with the disk"),
    ],
)
def test_ranges(disk: str, whole: set[int], expected: str) -> None:
    assert drawn(ranges_of(disk, whole), len(disk)) == expected


def test_nothing_outside_the_request_is_read() -> None:
    assert drawn(ranges_of("AAAAAAAA", {0, 4}, start=2, length=4), 8) == "..aabb.."


DISKS = st.text("Aa0.", max_size=40)


@given(DISKS, st.sets(st.integers(0, 9).map(lambda window: window * WINDOW)), st.data())
def test_ranges_are_the_largest_that_keep_the_rules(disk: str, whole: set[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(disk)))
    length = data.draw(st.integers(0, len(disk) - start))

    def kind(position: int) -> str:
        """What happens to a byte: "" skipped, "data" read, "zero"."""
        window = position - position % WINDOW
        shared = disk[max(window, start) : min(window + WINDOW, start + length)]
        if window in whole and any(byte in "A0" for byte in shared):
            return "data"
        return {"A": "data", "0": "zero"}.get(disk[position], "")

    expected: list[Range] = []
    for position in range(start, start + length):
        now = kind(position)
        if not now:
            continue
        last = expected[-1] if expected else None
        goes_on = (
            last is not None
            and last.end == position
            and last.zero == (now == "zero")
            and (last.zero or position % WINDOW != 0)
        )
        if last is not None and goes_on:
            expected[-1] = last._replace(length=last.length + 1)
        else:
            expected.append(Range(position, 1, now == "zero"))
    assert ranges_of(disk, whole, start, length) == expected


def test_ranges_come_while_extents_are_still_arriving() -> None:
    def endless() -> Iterator[Extent]:
        start = 0
        while True:
            yield Extent(start, 1, dirty=True, zero=False)
            start += 2

    request = ReadRequest(0, 2**60, True, WINDOW, frozenset({2**50}))
    ranges = blocks.ranges((extent._replace(dirty=True) for extent in endless()), request)
    assert [next(ranges).start for _ in range(3)] == [0, 2, 4]
