"""What is written over a disk, against an array of bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from blockferry.serving.export import Disk, Extent, Piece
from blockferry.serving.overlay import GRAIN, Overlay

SIZE = 5 * GRAIN + 700


class Pattern:
    """A disk of which the third grain is zero."""

    size = SIZE
    read_only = True
    content = (
        b"base" * (2 * GRAIN // 4) + bytes(GRAIN) + b"more" * (2 * GRAIN // 4) + b"tail" * (700 // 4)
    )  # fmt: skip

    def read(self, start: int, length: int) -> Sequence[Piece]:
        return [Piece(start, length, memoryview(self.content)[start : start + length])]

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        yield Extent(length, zero=False)

    def write(self, start: int, data: memoryview) -> None:
        raise AssertionError

    def zero(self, start: int, length: int) -> None:
        raise AssertionError


ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * GRAIN)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)
steps = st.lists(st.tuples(st.sampled_from([None, 1, 255]), ranges), max_size=8)


def content(disk: Disk, start: int, length: int) -> bytes:
    pieces = disk.read(start, length)
    assert pieces[0].start == start
    return b"".join(bytes(piece.length) if piece.data is None else bytes(piece.data) for piece in pieces)


@settings(max_examples=80, deadline=None)
@given(steps, ranges)
def test_it_reads_as_what_was_written(script: list[tuple[int | None, tuple[int, int]]], asked: tuple[int, int]) -> None:
    expected = bytearray(Pattern.content)
    with tempfile.TemporaryDirectory() as name, Overlay(Pattern(), Path(name)) as overlay:
        for value, (start, length) in script:
            if value is None:
                overlay.zero(start, length)
                expected[start : start + length] = bytes(length)
            else:
                overlay.write(start, memoryview(bytes([value]) * length))
                expected[start : start + length] = bytes([value]) * length
        assert content(overlay, *asked) == expected[asked[0] : sum(asked)]
        assert content(overlay, 0, SIZE) == expected
        position = 0
        for extent in overlay.extents(0, SIZE):
            assert not extent.zero or not any(expected[position : position + extent.length])
            position += extent.length
        assert position == SIZE
