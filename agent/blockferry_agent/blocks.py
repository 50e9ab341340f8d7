"""
Blocks: the unit that is read, hashed and sent.

A block is a range inside one window of the disk. The reader makes blocks from extents; every transport yields the same
stream of them.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Union

from blockferry_agent.source import Extent
from blockferry_agent.units import KiB, MiB

MIN_WINDOW = 256 * KiB
MAX_WINDOW = 8 * MiB


class Kind(enum.Enum):
    """What a block holds."""

    DATA = "data"
    """Content, in `data`."""
    ZERO = "zero"
    """Zeros. The only kind that may be longer than a window."""
    SAME = "same"
    """The content that the reader was told the caller has at this place."""


Data = Union[bytes, memoryview]
"""A block's content, as whoever made the block has it in memory."""


class Block(NamedTuple):
    """
    A range of the disk that was looked at.

    start, length: bytes.  kind: what it holds.
    digest: XXH3-128 of the content (16 bytes, canonical), empty for ZERO and SAME.
    data: the content, `length` bytes, empty for ZERO and SAME.  compressed: `data` is a zstd frame of it.
    """

    start: int
    length: int
    kind: Kind
    digest: bytes = b""
    data: Data = b""
    compressed: bool = False

    @property
    def end(self) -> int:
        """Offset of the first byte behind the block."""
        return self.start + self.length


class Summary(NamedTuple):
    """
    What a finished reading covered. All but `blocks` are bytes.

    blocks: blocks that were yielded.  dirty: extents reported as dirty (everything, in a full read).
    read: read from the disk.  moved: content of DATA blocks, before compression.
    stalled: seconds for which the reader could have read on, but waited for the receiver.
    """

    blocks: int
    dirty: int
    read: int
    moved: int
    stalled: float = 0.0

    def plus(self, other: Summary) -> Summary:
        """Return what two readings covered together."""
        return Summary(
            self.blocks + other.blocks,
            self.dirty + other.dirty,
            self.read + other.read,
            self.moved + other.moved,
            self.stalled + other.stalled,
        )


class Known(NamedTuple):
    """
    A range of which somebody knows what it should hold.

    start, length: bytes.  digest: XXH3-128 of the content (16 bytes, canonical), empty where it should be zeros.
    """

    start: int
    length: int
    digest: bytes

    @property
    def end(self) -> int:
        """Offset of the first byte behind the range."""
        return self.start + self.length


class ReadRequest(NamedTuple):
    """
    What to read of a disk.

    start: offset in bytes.  length: bytes, within the disk.
    incremental: only what changed since the base checkpoint.
    window: no data block crosses a multiple of it (bytes, a power of two, 256 KiB to 8 MiB).
    whole_windows: starts of windows that are read whole when any part of them is dirty.
    known: blocks that the caller has, as {(start, length): XXH3-128 digest}; a block read at the same place with the
    same digest is yielded as SAME.
    compress: compress the data of blocks that get smaller by it.
    bytes_per_second: read no faster; 0 means without this limit.
    """

    start: int
    length: int
    incremental: bool
    window: int
    whole_windows: frozenset[int] = frozenset()
    known: dict[tuple[int, int], bytes] = {}  # noqa: RUF012 -- read only
    compress: bool = False
    bytes_per_second: int = 0


class Range(NamedTuple):
    """
    A block before it is read.

    start, length: bytes.  zero: the source says that it reads as zeros, so nobody need read it.
    """

    start: int
    length: int
    zero: bool

    @property
    def end(self) -> int:
        """Offset of the first byte behind the range."""
        return self.start + self.length


def ranges(extents: Iterable[Extent], request: ReadRequest) -> Iterator[Range]:
    """
    Generate the ranges of the dirty extents, in disk order: data cut at windows, zeros in one piece.

        extents:  | clean |dirty|  clean  | dirty data  | dirty zero  |clean|di|clea|
        windows:  |          |          |          |          |          |          |  the last one: whole
        ranges:           |da|ta|         |  data  |data|    zero     |  |   data   |

    Dirty neighbours inside one window are one range. A window of `whole_windows` is one range of data as soon as any
    part of it is dirty, zeros and clean parts included, but nothing outside the request is ever read.

    extents: of the request's range, in disk order.  Holds one range, whatever the number of extents.
    """
    last: Range | None = None
    for piece in _pieces(extents, request):
        if last is None:
            last = piece
        elif piece.start < last.end:
            continue  # another dirty part of a whole window
        elif piece.start == last.end and piece.zero == last.zero and (piece.zero or piece.start % request.window):
            last = last._replace(length=last.length + piece.length)
        else:
            yield last
            last = piece
    if last is not None:
        yield last


def _pieces(extents: Iterable[Extent], request: ReadRequest) -> Iterator[Range]:
    """Generate dirty extents cut at windows, the whole windows once for each part of them."""
    window = request.window
    request_end = request.start + request.length
    whole_windows = sorted(request.whole_windows)
    for extent in extents:
        start = extent.start
        while extent.dirty and start < extent.end:
            window_start = start - start % window
            if window_start in request.whole_windows:
                first = max(window_start, request.start)
                end = min(window_start + window, request_end)
                yield Range(first, end - first, False)
            elif extent.zero:
                # Zeros go on to the next window that is read whole, if there is one in their way.
                following = bisect.bisect_left(whole_windows, start)
                end = min([extent.end, *whole_windows[following : following + 1]])
                yield Range(start, end - start, True)
            else:
                end = min(window_start + window, extent.end)
                yield Range(start, end - start, False)
            start = end
