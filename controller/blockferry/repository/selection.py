"""
Which chunks `verify --share` reads: what was never read first, the newest of it first, until all was read; then again.

What was read is known by when it was written, in whole seconds of the storage's clock, so that it takes a few numbers
whatever the repository holds:

    written:   |  old            |  last week  | new |
    read:          [=========]      [=======]            runs before
    next run:                              [====]====]   new ones first, then backwards, until the share is read
    later:         [================================]    all is read: the next run begins again
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from blockferry import errors
from blockferry.repository import documents, layout
from blockferry.repository.store import Store
from blockferry_agent.units import MiB

FORMAT: Final = 1

_MAX_ENCODED = 1 * MiB


class Share(NamedTuple):
    """
    How much to read. part: of all the content, in [0, 1].  settled: what was written before this time (of the
    storage's clock) is of the points that are looked at, or of none that is being written; see `Lock.settled`.
    """

    part: float
    settled: float


class Span(NamedTuple):
    """Whole seconds since 1970, both ends included."""

    first: int
    last: int


class Progress(msgspec.Struct, frozen=True):
    """What was read since all was read last: chunks written in these spans, in ascending order."""

    read: tuple[Span, ...] = ()
    format: Literal[1] = FORMAT

    def has(self, second: int) -> bool:
        """Tell whether chunks that were written then were read."""
        return any(span.first <= second <= span.last for span in self.read)


class Selection(NamedTuple):
    """
    What to read now. spans: when it was written.  after: what is read when that is.
    """

    spans: tuple[Span, ...]
    after: Progress

    def has(self, second: int) -> bool:
        """Tell whether to read a chunk that was written then."""
        return any(span.first <= second <= span.last for span in self.spans)


def select(lengths: Mapping[int, int], before: Progress, share: Share) -> Selection:
    """
    Choose what to read. lengths: bytes of chunks by the second in which they were written.

    What is not settled may be read, and is not called read: a point that is being written may bring more of that time.
    """
    unread = sorted((second for second in lengths if not before.has(second)), reverse=True)
    if not unread:
        # All was read: once more from the newest.
        before, unread = Progress(), sorted(lengths, reverse=True)
    if not unread:
        return Selection((), before)
    wanted = share.part * sum(lengths.values())
    chosen: list[int] = []
    for second in unread:
        chosen.append(second)
        wanted -= lengths[second]
        if wanted <= 0:
            break
    spans = _joined(tuple(Span(second, second) for second in sorted(chosen)), lengths)
    # All that was written since `first` is chosen now, or was read before.
    first, last = chosen[-1], max(lengths)
    if share.settled <= last:
        last = math.ceil(share.settled) - 1
    if last < first:
        return Selection(spans, before)
    older = [Span(span.first, min(span.last, first - 1)) for span in before.read if span.first < first]
    return Selection(spans, Progress((*older, Span(first, last))))


def load(store: Store) -> Progress:
    """Return what was read before; nothing, when that is not known any more. Raises RepositoryError."""
    try:
        data = store.get(layout.VERIFIED, _MAX_ENCODED)
        return documents.decode(data, Progress, FORMAT, f"{store.url}/{layout.VERIFIED}")
    except (errors.NotFound, errors.Damaged):
        return Progress()


def save(store: Store, progress: Progress) -> None:
    """Keep what was read. Raises RepositoryError."""
    with store.batch() as batch:
        batch.commit(layout.VERIFIED, documents.encode(progress))


def _joined(spans: Sequence[Span], lengths: Mapping[int, int]) -> tuple[Span, ...]:
    """Join neighbours between which nothing was written."""
    written = sorted(lengths)
    place = {second: number for number, second in enumerate(written)}
    joined: list[Span] = []
    for span in spans:
        if joined and place[joined[-1].last] + 1 == place[span.first]:
            joined[-1] = Span(joined[-1].first, span.last)
        else:
            joined.append(span)
    return tuple(joined)
