"""
Write one disk: content from the repository, through whatever transport carries it, onto a disk in oVirt.

    ladder.open ─▶ compare a span ─▶ write what differs ─▶ the next span … ─▶ done         only differences
    ladder.open ─▶ write everything ─▶ done                                                new disks
        ▲              │ breaks
        └──────────────┘  what the host has said is written is not sent again
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from blockferry import errors
from blockferry.jobs.copying import Stop
from blockferry.jobs.progress import Progress
from blockferry.repository import Carrier, DiskReader
from blockferry.repository.index import Entry
from blockferry.transport.ladder import Ladder, Opened
from blockferry.transport.uploading import Upload
from blockferry_agent import digest
from blockferry_agent.blocks import Block, Kind, Known, Range
from blockferry_agent.units import GiB, KiB

COMPARED_SPAN = 1 * GiB
"""Bytes that are compared before what differs in them is written; also the longest block of zeros."""

GRAIN = 64 * KiB
"""Bytes: what a bitmap of oVirt's tells apart, and what is written at least."""

MOST = 0.5
"""The share that makes it worth while to look twice at what differs."""


class Gap(msgspec.Struct, frozen=True):
    """A range of a disk (bytes) that cannot be read in the repository, and is zeros now. reason: a sentence."""

    start: int
    length: int
    reason: str

    def told_of(self, alias: str) -> str:
        """Return it as a sentence about a disk."""
        return f"Disk {alias}: bytes {self.start} to {self.start + self.length} are zeros. {self.reason}"


class Terms(NamedTuple):
    """
    How to write a disk.

    window: of the repository, bytes.  compress: content on its way.  key, label: of the disk, for progress.
    only_differences: compare first.  skip_damaged: what cannot be read becomes zeros.
    """

    window: int
    compress: bool
    key: str
    label: str
    only_differences: bool
    skip_damaged: bool


class Written(NamedTuple):
    """
    What was written. data, zeros: bytes of content, and bytes that were made zeros.

    carriers: what carried it, in disk order; moved is without zeros.  gaps: what could not be read.
    """

    data: int
    zeros: int
    carriers: tuple[Carrier, ...]
    gaps: tuple[Gap, ...]


def write(ladder: Ladder[Upload], reader: DiskReader, terms: Terms, stop: Stop, progress: Progress) -> Written:
    """
    Write what `reader` reads to the disk that `ladder` opens, which has the same size.

    Raises Damaged before anything of a chunk that is damaged is written, RepositoryError, TransportError with every
    transport's reason, WriteFailed and ReadFailed when the disk itself fails, Interrupted when it is stopped.
    """
    return _Writing(ladder, reader, terms, stop, progress).run()


class _Writing:
    """The writing of one disk."""

    def __init__(
        self, ladder: Ladder[Upload], reader: DiskReader, terms: Terms, stop: Stop, progress: Progress
    ) -> None:
        self._ladder = ladder
        self._reader = reader
        self._terms = terms
        self._stop = stop
        self._progress = progress
        # All before it is on the disk as it shall be.
        self._position = 0
        self._data = self._zeros = 0
        self._carriers: list[Carrier] = []
        self._grains_spare = True
        # Met more than once: when it is compared, in pieces when it is written, and again after a break.
        self._gaps: set[Gap] = set()

    def run(self) -> Written:
        terms = self._terms
        self._progress.begin(terms.key, f"restoring {terms.label}", self._reader.size)
        while self._position < self._reader.size:
            opened = self._ladder.open(lambda text: self._progress.warn(f"Disk {terms.label} {text}"))
            if opened.why:
                goes = "goes on" if self._position else "goes"
                self._progress.warn(f"Disk {terms.label} {goes} through {opened.transport}. {opened.why}")
            with self._stop.watch(opened.disk):
                self._carry(opened)
        self._progress.end(terms.key)
        return Written(self._data, self._zeros, tuple(self._carriers), tuple(_merged(self._gaps)))

    def _carry(self, opened: Opened[Upload]) -> None:
        """Write through one transport, to the end of the disk or to where it breaks."""
        start, data = self._position, self._data
        failure: errors.Error | None = None
        try:
            self._write(opened.disk)
        except errors.Error as error:
            # A disk that was closed from outside ends with whatever error its transport has for that.
            self._stop.check()
            failure = error
        carried = self._position > start
        if carried:
            self._carriers.append(
                Carrier(
                    transport=opened.transport,
                    start=start,
                    moved=self._data - data,
                    reason=opened.why or None,
                    remark=opened.disk.remark or None,
                )
            )
        if failure is not None:
            self._ladder.broke(opened, failure, self._position, carried)

    def _write(self, upload: Upload) -> None:
        if not self._terms.only_differences:
            self._write_ranges(upload, [Range(self._position, self._reader.size - self._position, False)])
            return
        while self._position < self._reader.size:
            span = Range(self._position, min(COMPARED_SPAN, self._reader.size - self._position), False)
            self._write_ranges(upload, self._differences(upload, span))
            # Nothing behind the last difference differs.
            self._advance(span.end)

    def _differences(self, upload: Upload, span: Range) -> list[Range]:
        """
        Return what differs in a span: by what is stored, in pieces as large as a window, and then by grains, because a
        database changes a few of them in nearly every window.

        The second look costs as much as writing may, where all of it differs; so it is taken where little differs, or
        where it was worth it last time.
        """
        coarse = list(upload.compare(self._known(span)))
        found = _length(coarse)
        if found == 0 or (found > span.length * MOST and not self._grains_spare):
            return coarse
        fine = list(_joined(upload.compare(self._grains(coarse))))
        self._grains_spare = _length(fine) <= found * MOST
        return fine

    def _write_ranges(self, upload: Upload, ranges: Sequence[Range]) -> None:
        if not ranges:
            return
        with contextlib.closing(self._blocks(ranges)) as blocks:
            pending = _Pending(blocks)
            for position in upload.write(pending, self._terms.window, self._terms.compress):
                self._count(pending.until(position))
                self._advance(position)

    def _count(self, blocks: Iterable[Block]) -> None:
        """Count blocks that are written."""
        for block in blocks:
            if block.kind is Kind.ZERO:
                self._zeros += block.length
            else:
                self._data += block.length

    def _advance(self, position: int) -> None:
        self._position = position
        self._progress.advance(self._terms.key, position, self._data)

    # What the disk shall hold.

    def _known(self, span: Range) -> Iterator[Known]:
        """Generate what is known of a span, without gaps: ranges with their digests, and zeros."""
        position = span.start
        for entry in self._reader.entries(span.start, span.length):
            if entry.start > position:
                yield Known(position, entry.start - position, b"")
            yield Known(entry.start, entry.length, entry.digest or self._digest(entry))
            position = entry.end
        if position < span.end:
            yield Known(position, span.end - position, b"")

    def _grains(self, ranges: Sequence[Range]) -> Iterator[Known]:
        """Generate what is known of ranges, in grains."""
        for block in self._blocks(ranges):
            for start in range(block.start, block.end, GRAIN):
                length = min(GRAIN, block.end - start)
                content = memoryview(block.data)[start - block.start :][:length]
                yield Known(start, length, digest.xxh3(content) if block.kind is Kind.DATA else b"")

    def _digest(self, entry: Entry) -> bytes:
        """Return the digest of what an entry holds; of zeros when that cannot be read and is skipped."""
        content = self._content(entry)
        return b"" if content is None else digest.xxh3(content)

    def _blocks(self, ranges: Sequence[Range]) -> Generator[Block, None, None]:
        """Generate the blocks that the ranges shall hold, in disk order, without gaps within a range."""
        if not ranges:
            return
        places = iter(ranges)
        place = next(places)
        position = place.start
        for entry, content in self._contents(ranges):
            while entry.start >= place.end:
                yield from _zero(position, place.end)
                place = next(places)
                position = place.start
            yield from _zero(position, entry.start)
            if content is None:
                yield from _zero(entry.start, entry.end)
            else:
                yield Block(entry.start, entry.length, Kind.DATA, entry.digest or digest.xxh3(content), content)
            position = entry.end
        yield from _zero(position, place.end)
        for place in places:
            yield from _zero(place.start, place.end)

    def _contents(self, ranges: Iterable[Range]) -> Iterator[tuple[Entry, memoryview | None]]:
        """Generate the entries of the ranges with their content; None for what cannot be read and is skipped."""
        entries = itertools.chain.from_iterable(self._reader.entries(place.start, place.length) for place in ranges)
        if self._terms.skip_damaged:
            for entry in entries:
                yield entry, self._content(entry)
            return
        for entry, chunk in self._reader.with_content(entries):
            yield entry, self._reader.part(entry, chunk)

    def _content(self, entry: Entry) -> memoryview | None:
        """Return what an entry holds; None when that cannot be read, and may be skipped. Raises Damaged."""
        try:
            return self._reader.part(entry, self._reader.chunk(entry.chunk))
        except errors.Damaged as error:
            if not self._terms.skip_damaged:
                raise
            self._gaps.add(Gap(entry.start, entry.length, error.message))
            return None


class _Pending:
    """Blocks that are under way: taken from `blocks`, one at a time, by whatever thread, and not seen to be written."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._under_way: deque[Block] = deque()

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        block = next(self._blocks)
        # Of its content only the length is of interest later.
        self._under_way.append(block._replace(data=b""))
        return block

    def until(self, position: int) -> Iterator[Block]:
        """Generate those that end at the position or before, which are not under way any more."""
        while self._under_way and self._under_way[0].end <= position:
            yield self._under_way.popleft()


def _length(ranges: Iterable[Range]) -> int:
    return sum(place.length for place in ranges)


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Generate the same ranges, neighbours as one."""
    last: Range | None = None
    for place in ranges:
        if last is not None and last.end == place.start:
            last = last._replace(length=last.length + place.length)
            continue
        if last is not None:
            yield last
        last = place
    if last is not None:
        yield last


def _merged(gaps: Iterable[Gap]) -> list[Gap]:
    """Return what gaps cover, in disk order, overlapping ones as one."""
    merged: list[Gap] = []
    for gap in sorted(gaps, key=lambda gap: gap.start):
        last = merged[-1] if merged else None
        if last is not None and gap.start < last.start + last.length:
            end = max(last.start + last.length, gap.start + gap.length)
            merged[-1] = msgspec.structs.replace(last, length=end - last.start)
        else:
            merged.append(gap)
    return merged


def _zero(start: int, end: int) -> Iterator[Block]:
    """Generate zeros in blocks that are short enough for progress to be seen."""
    while start < end:
        length = min(COMPARED_SPAN, end - start)
        yield Block(start, length, Kind.ZERO)
        start += length
