"""What the NBD server serves: disks by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class Extent(NamedTuple):
    """
    A range that follows the one before it.

    length: bytes, never 0.  zero: reads as zeros, and nothing is stored for it.
    """

    length: int
    zero: bool


class Piece(NamedTuple):
    """
    A range of the disk.

    start, length: bytes.  data: its content, None for zeros.
    """

    start: int
    length: int
    data: memoryview | None


class Disk(Protocol):
    """
    A disk that is served. Ranges are within it, lengths are not 0, and any method may run in several threads at once.

    What fails raises `errors.Error` or OSError, and leaves the disk as it was but for the range that was named.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def read_only(self) -> bool:
        """`write` and `zero` must not be called."""

    def read(self, start: int, length: int) -> Sequence[Piece]:
        """Return the content of a range (bytes), in disk order, gap-free."""

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        """Generate what a range (bytes) is made of, in disk order, gap-free; neighbours may be alike."""

    def write(self, start: int, data: memoryview) -> None:
        """Write all of `data` at `start` (bytes)."""

    def zero(self, start: int, length: int) -> None:
        """Make a range (bytes) read as zeros."""


class Export(NamedTuple):
    """A disk under a name. aliases: other names that mean it, not listed to clients."""

    name: str
    disk: Disk
    aliases: frozenset[str]


class Exports:
    """The exports of a server."""

    def __init__(self, exports: Sequence[Export]) -> None:
        self._exports = exports

    def __iter__(self) -> Iterator[Export]:
        return iter(self._exports)

    def named(self, name: str) -> Export | None:
        """Return the export that a client means; "" is the default one, which there is when there is only one."""
        if not name and len(self._exports) == 1:
            return self._exports[0]
        return next((export for export in self._exports if name == export.name or name in export.aliases), None)
