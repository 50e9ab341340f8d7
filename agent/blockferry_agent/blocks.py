"""
Blocks: the unit that is read, hashed and sent.

A block is a range inside one window of the disk. The reader makes blocks from extents; every transport yields the same
stream of them.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Kind(enum.Enum):
    """What a block holds."""

    DATA = "data"
    """Content, in `data`."""
    ZERO = "zero"
    """Zeros. The only kind that may be longer than a window."""
    SAME = "same"
    """The content that the reader was told the caller has at this place."""


class Block(NamedTuple):
    """
    A range of the disk that was looked at.

    start, length: bytes.  kind: what it holds.
    digest: XXH3-128 of the content (16 bytes, canonical), empty for ZERO and SAME.
    data: the content, `length` bytes, empty for ZERO and SAME. Belongs to the receiver.
    """

    start: int
    length: int
    kind: Kind
    digest: bytes = b""
    data: bytes = b""

    @property
    def end(self) -> int:
        """Offset of the first byte behind the block."""
        return self.start + self.length


class Summary(NamedTuple):
    """
    What a finished reading covered. All but `blocks` are bytes.

    blocks: blocks that were yielded.  dirty: extents reported as dirty (everything, in a full read).
    read: read from the disk.  moved: content of DATA blocks.
    """

    blocks: int
    dirty: int
    read: int
    moved: int


class ReadRequest(NamedTuple):
    """
    What to read of a disk.

    start: offset in bytes.  length: bytes, within the disk.
    incremental: only what changed since the base checkpoint.
    window: no data block crosses a multiple of it (bytes, a power of two, 256 KiB to 8 MiB).
    whole_windows: starts of windows that are read whole when any part of them is dirty.
    known: blocks that the caller has, as {(start, length): XXH3-128 digest}; a block read at the same place with the
    same digest is yielded as SAME.
    """

    start: int
    length: int
    incremental: bool
    window: int
    whole_windows: frozenset[int] = frozenset()
    known: dict[tuple[int, int], bytes] = {}  # noqa: RUF012 -- read only


MIN_WINDOW = 256 * 1024
MAX_WINDOW = 8 * 1024 * 1024
