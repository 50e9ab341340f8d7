"""The agent's block writer, onto disks in memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockferry_agent import digest, errors
from blockferry_agent.blocks import Block, Kind
from blockferry_agent.units import KiB
from blockferry_agent.writer import Target, Writing

SIZE = 64 * KiB
WINDOW = 256 * KiB


class Disk:
    """A disk in memory, and how its connections were used. fails_at: start of the write that fails."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.image = bytearray(b"\xee" * SIZE)
        self.fails_at = fails_at
        self.opened = self.closed = self.flushes = 0
        self._lock = threading.Lock()

    def connect(self) -> Sink:
        with self._lock:
            self.opened += 1
        return Sink(self)


class Sink:
    is_shareable = True

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def write(self, start: int, data: bytes | memoryview) -> None:
        if start == self._disk.fails_at:
            raise errors.WriteFailed("The disk is full.", "Make room.")
        self._disk.image[start : start + len(data)] = data

    def zero(self, start: int, length: int, may_punch: bool) -> None:
        self.write(start, bytes(length))

    def flush(self) -> None:
        self._disk.flushes += 1

    def close(self) -> None:
        self._disk.closed += 1


def data(start: int, content: bytes) -> Block:
    return Block(start, len(content), Kind.DATA, digest.xxh3(content), content)


def writing(disk: Disk, blocks: list[Block] | Iterator[Block], workers: int = 3) -> Writing:
    return Writing(Target(disk.connect, SIZE, True), blocks, WINDOW, workers)


@st.composite
def sequences(draw: st.DrawFn) -> list[Block]:
    """Blocks in disk order, with holes between them."""
    borders = sorted(draw(st.sets(st.integers(0, SIZE), min_size=2, max_size=12)))
    made = []
    for start, end in itertools.pairwise(borders):
        kind = draw(st.sampled_from(["data", "zero", "hole"]))
        if kind == "data":
            made.append(data(start, bytes([draw(st.integers(0, 255))]) * (end - start)))
        elif kind == "zero":
            made.append(Block(start, end - start, Kind.ZERO))
    return made


@settings(max_examples=25, deadline=None)
@given(sequences(), st.integers(1, 4))
def test_any_blocks_are_on_the_disk_at_the_end(blocks: list[Block], workers: int) -> None:
    disk = Disk()
    model = bytearray(disk.image)
    for block in blocks:
        model[block.start : block.end] = block.data or bytes(block.length)

    written = writing(disk, blocks, workers)
    positions = list(written)

    assert disk.image == model
    assert written.finished and disk.flushes == 1
    assert positions == sorted(set(positions))
    assert positions[-1:] == [block.end for block in blocks[-1:]]
    assert disk.opened == disk.closed


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(data(0, b"late"), id="behind the one before"),
        pytest.param(data(7, b"overlap"), id="overlapping"),
        pytest.param(Block(16, 0, Kind.ZERO), id="empty"),
        pytest.param(Block(16, -1, Kind.ZERO), id="negative"),
        pytest.param(Block(-4, 4, Kind.ZERO), id="before the disk"),
        pytest.param(Block(SIZE - 1, 2, Kind.ZERO), id="past the end"),
        pytest.param(Block(16, 2**62, Kind.ZERO), id="enormous"),
        pytest.param(Block(16, 2**62, Kind.DATA, bytes(16), b"x", compressed=True), id="enormous when expanded"),
        pytest.param(Block(16, 4, Kind.SAME), id="same"),
        pytest.param(data(16, b"true")._replace(data=b"lies"), id="not what its digest says"),
        pytest.param(data(16, b"true")._replace(data=b"tru"), id="short"),
        pytest.param(data(16, b"true")._replace(compressed=True), id="no zstd"),
    ],
)
def test_a_block_that_has_no_place_is_not_written(block: Block) -> None:
    disk = Disk()
    written = writing(disk, [data(0, b"12345678"), block])
    with pytest.raises(errors.InvalidRequest):
        list(written)
    assert disk.image[8:] == b"\xee" * (SIZE - 8)
    assert not written.finished and not disk.flushes
    assert disk.opened == disk.closed


def test_a_write_that_fails_ends_all_without_a_flush() -> None:
    disk = Disk(fails_at=8)
    written = writing(disk, [data(start, b"x") for start in range(32)])
    with pytest.raises(errors.WriteFailed, match="full"):
        list(written)
    assert not written.finished and not disk.flushes
    assert disk.opened == disk.closed


def test_blocks_that_break_off_are_no_success() -> None:
    def broken() -> Iterator[Block]:
        yield data(0, b"first")
        raise errors.SourceGone("The stream was cut.", "Run again.")

    disk = Disk()
    written = writing(disk, broken())
    with pytest.raises(errors.SourceGone, match="cut"):
        list(written)
    assert not written.finished and not disk.flushes
    assert disk.opened == disk.closed


def test_data_longer_than_the_window_is_refused() -> None:
    disk = Disk()
    with pytest.raises(errors.InvalidRequest, match="at most 4096 bytes"):
        list(Writing(Target(disk.connect, SIZE, True), [data(0, bytes(4 * KiB + 1))], 4 * KiB, 1))
    assert disk.image == b"\xee" * SIZE
