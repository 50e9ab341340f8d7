"""
What a disk holds, compared with what it should hold: a reading (`reader`) cut at the ranges of which that is known.

    known:        |   digest  | digest|   |         zeros         |
    extents:      |       data            |  zero |  data  | zero |
    read:         |   range   | range |   |       |ran|ge  |      |
    differences:  |           | range |   |       |   |ge  |      |

What the disk's server says reads as zeros is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from blockferry_agent import blocks, digest
from blockferry_agent.blocks import Block, Kind, Known, Range, ReadRequest
from blockferry_agent.reader import Cut, Reading
from blockferry_agent.source import Extent


def request(known: Sequence[Known]) -> ReadRequest:
    """Return what a reading is asked for to compare. known: at least one, as `cut` wants it."""
    longest = max((place.length for place in known if place.digest), default=0)
    return ReadRequest(
        start=known[0].start,
        length=known[-1].end - known[0].start,
        incremental=False,
        window=max(blocks.MIN_WINDOW, 1 << (longest - 1).bit_length() if longest else 0),
        known={(place.start, place.length): place.digest for place in known if place.digest},
    )


def cut(known: Sequence[Known]) -> Cut:
    """Return what makes the ranges of a reading. known: in disk order, without overlap."""

    def ranges(extents: Iterable[Extent], request: ReadRequest) -> Iterator[Range]:
        following = iter(extents)
        extent = next(following)
        for place in known:
            has_data = False
            start = place.start
            while start < place.end:
                while extent.end <= start:
                    extent = next(following)
                end = min(extent.end, place.end)
                if not extent.zero:
                    has_data = True
                    if not place.digest:
                        yield from _windows(start, end, request.window)
                start = end
            if place.digest:
                yield Range(place.start, place.length, not has_data)

    return ranges


def differences(request: ReadRequest, read: Iterable[Block]) -> Iterator[Range]:
    """Generate the ranges whose content is not what it should be, of the blocks that were read of `cut`'s ranges."""
    for block in read:
        expected = request.known.get((block.start, block.length))
        if block.kind is Kind.ZERO:
            differs = expected is not None and expected != digest.zeros(block.length)
        else:
            differs = block.kind is Kind.DATA
        if differs:
            yield Range(block.start, block.length, expected is None)


class Comparison:
    """
    A comparison on its way. Iterated once, by one thread, for the ranges that differ. Whoever made the reading closes
    it.
    """

    def __init__(self, request: ReadRequest, reading: Reading) -> None:
        self._request = request
        self._reading = reading

    def __iter__(self) -> Iterator[Range]:
        return differences(self._request, self._reading)

    @property
    def read_bytes(self) -> int:
        """Bytes that were read from the disk so far."""
        return self._reading.read_bytes

    def stop(self) -> None:
        """See `Reading.stop`."""
        self._reading.stop()


def _windows(start: int, end: int, window: int) -> Iterator[Range]:
    while start < end:
        border = min(start - start % window + window, end)
        yield Range(start, border - start, False)
        start = border
