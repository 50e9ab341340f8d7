"""
The index: which chunk holds each range of one disk at one point.

    disk:     | page 0 (256 MiB)                   | page 1          | page 2 …
    entries:  | A  |x| A (cut)  | zero … | B |     | zero …          | C | D
    root:     { 0: chunk with the entries of page 0, 2: chunk with the entries of page 2 }

What no entry covers reads as zeros; a page without entries is not in the root. A page is stored as a chunk, so one
that nothing touched is shared with the base. Pages are 256 MiB: with 1 MiB windows such a page is about 16 KiB, so that
even one dirty grain of 64 KiB in it costs no more than a quarter on top, while the root of a 1 TiB disk is 160 KiB.
At most 32,768 entries of them (9 MiB), or two pages, are in memory, whatever the size of the disk. `docs/format.md` has
every byte.
"""

from __future__ import annotations

import bisect
import itertools
import struct
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from blockferry.repository.chunks import Chunks
from blockferry_agent.blocks import MAX_WINDOW, MIN_WINDOW
from blockferry_agent.units import MiB

PAGE = 256 * MiB
"""Bytes of disk that a page of the index maps. A multiple of every window, so no entry crosses a page's border."""

BROKEN = 8
"""A window in more pieces than this is read whole by the next backup that touches it."""

# A page of nothing but 512-byte entries, each of its own chunk, is 30 MiB.
_MAX_ENCODED_PAGE = 32 * MiB

_PAGES_KEPT = 2
"""Pages that are kept at least: those on both sides of a border."""
_ENTRIES_KEPT = 32 * 1024
"""Entries that are kept at most, 270 bytes each: 32 GiB of disk in windows of 1 MiB, for those who read all over it."""

_PAGE_HEADER = struct.Struct("<4sBxxxI")
_PAGE_MAGIC = b"BFpg"
_ENTRY = struct.Struct("<III32s16s")

_ROOT_HEADER = struct.Struct("<4sBxxxIIQ")
_ROOT_MAGIC = b"BFix"
_PAGE_REFERENCE = struct.Struct("<II32s")

_VERSION = 1


class Entry(NamedTuple):
    """
    A range of the disk, and the place of its content.

    start, length: bytes on the disk.  chunk: BLAKE3 digest of the chunk.  offset: bytes into its plain content.
    digest: XXH3-128 of the content when the entry covers the whole chunk, else empty.
    """

    start: int
    length: int
    chunk: bytes
    offset: int = 0
    digest: bytes = b""

    @property
    def end(self) -> int:
        """Offset of the first byte behind the entry."""
        return self.start + self.length


class Range(NamedTuple):
    """A range of the disk, in bytes."""

    start: int
    length: int


class PageReference(NamedTuple):
    """
    Where a page is.

    broken: how many of its windows are in more than `BROKEN` pieces.  chunk: BLAKE3 digest of the encoded page.
    """

    broken: int
    chunk: bytes


class Root(NamedTuple):
    """
    The root of an index.

    size: bytes of the disk.  window: bytes; no entry crosses a multiple of it.  pages: by number, without empty ones.
    """

    size: int
    window: int
    pages: dict[int, PageReference]


def overlay(base: Sequence[Entry], replaced: Iterable[Range], fresh: Iterable[Entry]) -> list[Entry]:
    """
    Return the entries of `base`, cut where a range was replaced, together with the fresh ones.

    Base:      |   A   |   B   |   C   |       |   D   |
    Replaced:      |  ~~~~~~  |          |~~~~~~~|
    Fresh:         | x |
    Result:    | A | x |      |B|  C   |         |  D  |

    All three in disk order and without overlaps; fresh entries lie in replaced ranges, what else was replaced is zero.
    """
    return sorted([*_cut(base, replaced), *fresh])


def _cut(base: Sequence[Entry], replaced: Iterable[Range]) -> Iterator[Entry]:
    """Generate the parts of `base` that lie outside of the replaced ranges."""
    holes = iter(replaced)
    hole = next(holes, None)
    for entry in base:
        position = entry.start
        while hole is not None and hole.start < entry.end:
            if hole.start > position:
                yield _part(entry, position, hole.start)
            position = max(position, hole.start + hole.length)
            if position >= entry.end:
                # The hole may reach into the next entry.
                break
            hole = next(holes, None)
        if position < entry.end:
            yield _part(entry, position, entry.end)


def _part(entry: Entry, start: int, end: int) -> Entry:
    if (start, end) == (entry.start, entry.end):
        return entry
    return Entry(start, end - start, entry.chunk, entry.offset + start - entry.start)


def broken_windows(entries: Iterable[Entry], window: int) -> list[int]:
    """Return the starts (bytes) of the windows that are in more than `BROKEN` pieces."""
    pieces = Counter(entry.start // window * window for entry in entries)
    return [start for start, count in pieces.items() if count > BROKEN]


def encode_page(number: int, entries: Sequence[Entry]) -> bytes:
    """Return page `number` as it is stored."""
    origin = number * PAGE
    return _PAGE_HEADER.pack(_PAGE_MAGIC, _VERSION, len(entries)) + b"".join(
        _ENTRY.pack(entry.start - origin, entry.length, entry.offset, entry.chunk, entry.digest) for entry in entries
    )


def decode_page(number: int, data: bytes) -> list[Entry]:
    """Return the entries of page `number`. Raises ValueError when `data` is no such page."""
    entries = list(_entries(number * PAGE, _body(data, _PAGE_HEADER, _PAGE_MAGIC, _ENTRY)))
    position = number * PAGE
    for entry in entries:
        if entry.start < position or entry.length == 0 or entry.end > (number + 1) * PAGE:
            raise ValueError(f"its entry at {entry.start} is out of place")
        position = entry.end
    return entries


def _entries(origin: int, body: memoryview) -> Iterator[Entry]:
    nothing = bytes(16)
    for start, length, offset, chunk, digest in _ENTRY.iter_unpack(body):
        yield Entry(origin + start, length, chunk, offset, b"" if digest == nothing else digest)


def encode_root(root: Root) -> bytes:
    """Return the root as it is stored."""
    return _ROOT_HEADER.pack(_ROOT_MAGIC, _VERSION, len(root.pages), root.window, root.size) + b"".join(
        _PAGE_REFERENCE.pack(number, page.broken, page.chunk) for number, page in sorted(root.pages.items())
    )


def decode_root(data: bytes) -> Root:
    """Return the root that `data` holds. Raises ValueError when it holds none."""
    pages = dict(page_references(data))
    *_, window, size = _ROOT_HEADER.unpack_from(data)
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ValueError(f"its window is {window} bytes")
    if any(number * PAGE >= size for number in pages):
        raise ValueError("it maps more than its disk")
    return Root(size, window, pages)


def page_references(data: bytes) -> Iterator[tuple[int, PageReference]]:
    """Generate what an encoded root holds, as (number, reference), by ascending number. Raises ValueError."""
    for number, broken, chunk in _PAGE_REFERENCE.iter_unpack(_body(data, _ROOT_HEADER, _ROOT_MAGIC, _PAGE_REFERENCE)):
        yield number, PageReference(broken, chunk)


def _body(data: bytes, header: struct.Struct, magic: bytes, item: struct.Struct) -> memoryview:
    """Return what follows the header, which holds as many items as the header says."""
    if len(data) < header.size:
        raise ValueError("it ends in its header")
    found, version, count, *_ = header.unpack_from(data)
    if found != magic or version != _VERSION:
        raise ValueError("it is not of a kind that this version reads")
    if len(data) != header.size + count * item.size:
        raise ValueError("its length is not what its header says")
    return memoryview(data)[header.size :]


class Index:
    """
    The index of a disk, read page by page. Called by several threads at once.

    root: of this disk.  chunks: that hold the pages.
    """

    def __init__(self, root: Root, chunks: Chunks) -> None:
        self.root = root
        self._chunks = chunks
        self._lock = threading.Lock()
        self._pages: OrderedDict[int, list[Entry]] = OrderedDict()
        self._entries = 0

    def page(self, number: int) -> list[Entry]:
        """Return the entries of a page, in disk order. Raises Damaged."""
        reference = self.root.pages.get(number)
        if reference is None:
            return []
        with self._lock:
            page = self._pages.get(number)
            if page is not None:
                self._pages.move_to_end(number)
                return page
        # Others need not wait meanwhile; that two read the same page is rare, and does no harm.
        page = read_page(self._chunks, number, reference.chunk)
        with self._lock:
            self._keep(number, page)
        return page

    def entries(self, start: int, length: int) -> Iterator[Entry]:
        """Generate the entries that touch a range (bytes), cut to it, in disk order. Raises Damaged."""
        end = start + length
        for number in self._page_numbers(start, length):
            page = self.page(number)
            first = max(0, bisect.bisect_right(page, start, key=lambda entry: entry.start) - 1)
            for entry in itertools.islice(page, first, None):
                if entry.start >= end:
                    break
                if entry.end > start:
                    yield _part(entry, max(entry.start, start), min(entry.end, end))

    def broken_windows(self, start: int, length: int) -> frozenset[int]:
        """Return the starts of the windows in the range (bytes) that are in too many pieces. Raises Damaged."""
        broken: set[int] = set()
        for number in self._page_numbers(start, length):
            if self.root.pages[number].broken:
                broken.update(broken_windows(self.page(number), self.root.window))
        return frozenset(window for window in broken if start <= window < start + length)

    def _keep(self, number: int, page: list[Entry]) -> None:
        if number not in self._pages:
            self._pages[number] = page
            self._entries += len(page)
        while self._entries > _ENTRIES_KEPT and len(self._pages) > _PAGES_KEPT:
            _, dropped = self._pages.popitem(last=False)
            self._entries -= len(dropped)

    def _page_numbers(self, start: int, length: int) -> list[int]:
        """Return the numbers of the pages with entries that touch the range, in disk order."""
        if length == 0:
            return []
        first, last = start // PAGE, (start + length - 1) // PAGE
        return [number for number in sorted(self.root.pages) if first <= number <= last]


def read_page(chunks: Chunks, number: int, digest: bytes) -> list[Entry]:
    """Return the entries of page `number`, which is the chunk of that digest. Raises Damaged."""
    try:
        return decode_page(number, chunks.get(digest, limit=_MAX_ENCODED_PAGE))
    except ValueError as error:
        raise chunks.damaged(digest, str(error)) from None
