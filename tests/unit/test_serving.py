"""What a served disk fetches, and what it keeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from blockferry import errors
from blockferry.serving.ahead import ReadAhead
from blockferry.serving.content import ChunkCache, PointDisk
from blockferry.serving.export import Piece
from blockferry_agent.units import KiB, MiB

CHUNK = 64 * KiB


class Entry(NamedTuple):
    start: int
    length: int
    chunk: bytes


class Stored:
    """A disk "AB0C…": chunks of their letter, zeros for 0; it remembers what was fetched of it."""

    def __init__(self, disk: str) -> None:
        self.size = len(disk) * CHUNK
        self._disk = disk
        self.fetched: list[str] = []
        self.damaged = ""
        self.go_on = threading.Event()
        self.go_on.set()

    def entries(self, start: int, length: int) -> Iterator[Entry]:
        for number in range(start // CHUNK, -(-(start + length) // CHUNK)):
            first, last = max(start, number * CHUNK), min(start + length, (number + 1) * CHUNK)
            if self._disk[number] != "0":
                yield Entry(first, last - first, self._disk[number].encode())

    def chunk(self, digest: bytes) -> bytes:
        assert self.go_on.wait(10)
        self.fetched.append(digest.decode())
        if digest.decode() in self.damaged:
            raise errors.Damaged("It is damaged.")
        return digest * CHUNK

    def part(self, entry: Entry, content: bytes) -> memoryview:
        return memoryview(content)[: entry.length]


def text(pieces: list[Piece] | tuple[Piece, ...]) -> str:
    """The pieces as letters, one for each chunk."""
    data = b"".join(b"0" * piece.length if piece.data is None else bytes(piece.data) for piece in pieces)
    return data[::CHUNK].decode()


# Chunks


def test_a_chunk_is_fetched_once_and_kept_as_long_as_there_is_room() -> None:
    stored = Stored("AAB0CD")
    with ChunkCache(3 * CHUNK) as cache:
        disk = PointDisk(stored, cache, ahead=0)
        read = ""
        for start in range(0, stored.size, CHUNK):
            read += text(list(disk.read(start, CHUNK)))
            settle(cache)
        assert read == "AAB0CD"
        assert stored.fetched == ["A", "B", "C", "D"]
        stored.fetched.clear()
        disk.read(2 * CHUNK, 4 * CHUNK)
        assert stored.fetched == [], "the last three are kept"
        disk.read(0, CHUNK)
        assert stored.fetched == ["A"], "the first had to go"


def settle(cache: ChunkCache) -> None:
    """Wait until what has arrived is kept: its readers may have it before."""
    deadline = time.monotonic() + 10
    while cache._fetching and time.monotonic() < deadline:
        time.sleep(0.001)


def test_readers_of_one_chunk_share_its_fetch() -> None:
    stored = Stored("A")
    stored.go_on.clear()
    with ChunkCache(CHUNK) as cache:
        arriving = [cache.get(stored, b"A") for _ in range(5)]
        stored.go_on.set()
        assert {one.result(10) for one in arriving} == {b"A" * CHUNK}
    assert stored.fetched == ["A"]


def test_a_damaged_chunk_is_asked_for_again() -> None:
    """It may be healed meanwhile."""
    stored = Stored("AB")
    stored.damaged = "B"
    with ChunkCache(10 * CHUNK) as cache:
        disk = PointDisk(stored, cache, ahead=0)
        with pytest.raises(errors.Damaged):
            disk.read(0, stored.size)
        assert text(list(disk.read(0, CHUNK))) == "A"
        stored.damaged = ""
        assert text(list(disk.read(0, stored.size))) == "AB"


def test_what_follows_a_sequential_reading_is_fetched() -> None:
    stored = Stored("ABCDEFGH")
    with ChunkCache(10 * CHUNK) as cache:
        disk = PointDisk(stored, cache, ahead=2 * CHUNK)
        disk.read(0, CHUNK)
        disk.read(CHUNK, CHUNK)
    # The threads have ended, with all that they had begun.
    assert set(stored.fetched) - {"C", "D"} == {"A", "B"}


# Reading ahead


def test_the_distance_is_kept_and_nothing_is_asked_for_twice() -> None:
    ahead = ReadAhead(4 * MiB)
    assert not ahead.after(0, 1 * MiB), "one read is no reading"
    assert ahead.after(1 * MiB, 1 * MiB) == range(2 * MiB, 6 * MiB)
    assert ahead.after(2 * MiB, 1 * MiB) == range(6 * MiB, 7 * MiB)


def test_readings_side_by_side_are_told_apart() -> None:
    ahead = ReadAhead(1 * MiB)
    starts = [number * 100 * MiB for number in range(8)]
    for start in starts:
        assert not ahead.after(start, KiB)
    for start in starts:
        assert ahead.after(start + KiB, KiB).stop == start + 2 * KiB + 1 * MiB


def test_jumping_about_fetches_nothing() -> None:
    ahead = ReadAhead(1 * MiB)
    assert not any(ahead.after(start * 50 * MiB % (997 * MiB), KiB) for start in range(15))


def test_a_distance_of_nothing_fetches_nothing() -> None:
    ahead = ReadAhead(0)
    assert not any(ahead.after(start, KiB) for start in range(0, 10 * KiB, KiB))
