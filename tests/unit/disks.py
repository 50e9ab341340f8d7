"""
Disks as strings: one character is one byte, and its case says whether it changed.

    A-Z   changed data          a-z   data that did not change
    0     changed, reads zero   .     did not change, reads zero
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from blockferry_agent import errors
from blockferry_agent.source import Extent


def content(disk: str) -> bytes:
    """What is read from a disk."""
    return disk.lower().translate({ord("0"): "\0", ord("."): "\0"}).encode()


def extents(disk: str, incremental: bool = True) -> Iterator[Extent]:
    """The extents of a disk, one for each of its bytes: more pieces than any server makes."""
    for start, byte in enumerate(disk):
        yield Extent(start, 1, dirty=not incremental or byte in "0" or byte.isupper(), zero=byte in "0.")


class Disk:
    """
    A disk whose sources (`source.Source`) are in memory, and what happened to it.

    opened, closed: sources.  reads: ranges that were read, as (start, length).
    before_read: called at each read, from the worker's thread, with its start.
    """

    def __init__(self, disk: str, before_read: Callable[[int], None] = lambda start: None) -> None:
        self.disk = disk
        self.before_read = before_read
        self.opened = self.closed = 0
        self.reads: list[tuple[int, int]] = []
        self.lock = threading.Lock()

    def open(self) -> MemorySource:
        with self.lock:
            self.opened += 1
        return MemorySource(self)


class MemorySource:
    """One connection to a disk in memory."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._is_open = True
        self.size = len(disk.disk)

    def extents(self, start: int, length: int, incremental: bool) -> Iterator[Extent]:
        if incremental and self._disk.disk.islower():
            raise errors.BitmapMissing("No bitmap.")
        for extent in extents(self._disk.disk, incremental):
            if start <= extent.start < start + length:
                yield extent

    def readinto(self, start: int, buffer: bytearray | memoryview) -> None:
        assert self._is_open
        self._disk.before_read(start)
        data = content(self._disk.disk)[start : start + len(buffer)]
        assert len(data) == len(buffer), "read behind the end"
        buffer[:] = data
        with self._disk.lock:
            self._disk.reads.append((start, len(buffer)))

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            with self._disk.lock:
                self._disk.closed += 1
