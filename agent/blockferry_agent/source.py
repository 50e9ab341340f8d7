"""
Where a disk's bytes come from: the interface that the reader needs, and the extents that a source reports.

A source is a disk at one point in time: an NBD export (`nbd`), a file, or Image I/O over HTTPS (in the controller).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Extent(NamedTuple):
    """
    A byte range of a disk as its source reports it.

    start: offset in bytes.  length: bytes, never 0.
    dirty: changed since the base checkpoint (always True when the source was not asked for changes).
    zero: reads as zeros.
    """

    start: int
    length: int
    dirty: bool
    zero: bool

    @property
    def end(self) -> int:
        """Offset of the first byte behind the extent."""
        return self.start + self.length


class Source(Protocol):
    """
    One connection to a disk at one point in time.

    Used by one thread at a time. After an error, only `close` may be called. Who opened it closes it; closing twice
    is allowed.
    """

    @property
    def size(self) -> int:
        """Size of the disk in bytes."""

    def extents(self, start: int, length: int, incremental: bool) -> Iterator[Extent]:
        """
        Generate the extents of `length` bytes from `start`, in disk order, without gaps or overlap.

        Asks the server for bounded pieces while the caller consumes them, so that a disk with any number of extents
        needs bounded memory. No other method may be called before the iterator is exhausted or dropped.

        Raises BitmapMissing when `incremental` is asked for and the source has no dirty bitmap, SourceError.
        """

    def readinto(self, start: int, buffer: bytearray | memoryview) -> None:
        """
        Fill the whole `buffer` with the disk's bytes from `start`. There are no short reads.

        Raises SourceError; the buffer's content is then undefined.
        """

    def close(self) -> None:
        """Give back the connection. Never raises."""
