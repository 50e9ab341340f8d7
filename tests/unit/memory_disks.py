"""Disks in memory, as a transport opens them, and the transport that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from blockferry.transport.disk import Reading, Target
from blockferry_agent import reader
from blockferry_agent.blocks import Block, ReadRequest, Summary
from blockferry_agent.source import Extent
from blockferry_agent.units import KiB

GRAIN = 64 * KiB


def target(size: int) -> Target:
    return Target("host1", "192.0.2.1", "transfer", "ticket", "https://192.0.2.1:54322/images/ticket", None, size)


class Way:
    """A transport (`transport.disk.Transport`) that opens one disk."""

    is_last_resort = False

    def __init__(self, disk: Disk, name: str = "grpc") -> None:
        self.name = name
        self.disk = disk

    def open(self, target: Target) -> Disk:
        return self.disk


class Disk:
    """
    A disk in memory (`transport.disk.Disk`), read by the agent's own reader.

    dirty: starts of the grains that changed.  requests: what was asked for.  before_read: called at each read.
    """

    remark = ""

    def __init__(self, image: bytes, dirty: frozenset[int] = frozenset()) -> None:
        self.size = len(image)
        self.image = image
        self.dirty = dirty
        self.requests: list[ReadRequest] = []
        self.before_read: Callable[[], None] = lambda: None

    def read(self, request: ReadRequest) -> Reading:
        self.requests.append(request)
        return OwnBlocks(reader.read(lambda: Source(self), request, workers=2))

    def close(self) -> None: ...


class OwnBlocks:
    """A reading whose blocks belong to the receiver (`transport.disk.Reading`), over the reader, which lends its own."""

    def __init__(self, reading: reader.Reading) -> None:
        self._reading = reading

    def __iter__(self) -> Iterator[Block]:
        for block in self._reading:
            yield block._replace(data=bytes(block.data))

    @property
    def summary(self) -> Summary:
        return self._reading.summary

    @property
    def wire_bytes(self) -> int:
        return self._reading.summary.moved

    def close(self) -> None:
        self._reading.close()


class Source:
    def __init__(self, disk: Disk) -> None:
        self.size = disk.size
        self._disk = disk

    def extents(self, start: int, length: int, incremental: bool) -> Iterator[Extent]:
        for place in range(start - start % GRAIN, start + length, GRAIN):
            first, end = max(start, place), min(place + GRAIN, start + length)
            zero = not any(self._disk.image[first:end])
            yield Extent(first, end - first, not incremental or place in self._disk.dirty, zero)

    def readinto(self, start: int, buffer: bytearray | memoryview) -> None:
        self._disk.before_read()
        buffer[:] = self._disk.image[start : start + len(buffer)]

    def close(self) -> None: ...
