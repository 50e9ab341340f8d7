"""
A disk of a recovery point, read at any place: chunks are fetched and checked when they are asked for, and kept for a
while.

Nothing is read beforehand: the index comes by the page, so that the size of the disk does not matter.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, Self, TypeVar

from blockferry import errors
from blockferry.serving.ahead import ReadAhead
from blockferry.serving.export import Extent, Piece

_FETCHES = 8
"""Chunks that are fetched side by side."""
_WINDOW = 32
"""Chunks of one read that are asked for before the first of them is used."""
_MAX_AHEAD = 64
"""Chunks that one read makes us fetch ahead."""


class Entry(Protocol):
    """A range of the disk (bytes) whose content is in a chunk."""

    @property
    def start(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def chunk(self) -> bytes: ...


E = TypeVar("E", bound=Entry)


class Stored(Protocol[E]):
    """
    What a disk is in the repository; see `repository.reader.DiskReader`. All may be called from several threads.

    size: bytes.
    """

    size: int

    def entries(self, start: int, length: int) -> Iterator[E]: ...

    def chunk(self, digest: bytes) -> bytes: ...

    def part(self, entry: E, content: bytes) -> memoryview: ...


class ChunkCache:
    """Chunks that were read lately, of all disks that are served. A context manager: it ends its threads."""

    def __init__(self, limit: int) -> None:
        """limit: bytes of content that are kept."""
        self._limit = limit
        self._lock = threading.Lock()
        self._fetching: dict[bytes, Future[bytes]] = {}
        self._kept: OrderedDict[bytes, Future[bytes]] = OrderedDict()
        self._bytes = 0
        self._threads = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def get(self, disk: Stored[E], chunk: bytes) -> Future[bytes]:
        """Return the checked content of a chunk, or its arrival; who waits for it meets Damaged, RepositoryError."""
        with self._lock:
            if chunk in self._kept:
                self._kept.move_to_end(chunk)
                return self._kept[chunk]
            if chunk in self._fetching:
                return self._fetching[chunk]
            arriving = self._threads.submit(disk.chunk, chunk)
            self._fetching[chunk] = arriving
        arriving.add_done_callback(lambda arrived: self._keep(chunk, arrived))
        return arriving

    def _keep(self, chunk: bytes, arrived: Future[bytes]) -> None:
        """A chunk that could not be fetched is not kept: it may be healed, or a network come back."""
        with self._lock:
            del self._fetching[chunk]
            if arrived.cancelled() or arrived.exception() is not None:
                return
            self._kept[chunk] = arrived
            self._bytes += len(arrived.result())
            while self._bytes > self._limit:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= len(dropped.result())


class PointDisk(Generic[E]):
    """A stored disk as an `export.Disk`, read-only."""

    read_only = True

    def __init__(
        self,
        stored: Stored[E],
        cache: ChunkCache,
        ahead: int,
        note: Callable[[errors.Error], None] = lambda error: None,
    ) -> None:
        """ahead: bytes to be ahead of sequential reads.  note: told of each read that fails."""
        self.size = stored.size
        self._note = note
        self._stored = stored
        self._cache = cache
        self._ahead = ReadAhead(ahead)

    def read(self, start: int, length: int) -> Sequence[Piece]:
        """Return the content of a range (bytes), all of it checked. Raises Damaged, RepositoryError."""
        try:
            return self._read(start, length)
        except errors.Error as error:
            self._note(error)
            raise

    def _read(self, start: int, length: int) -> list[Piece]:
        pieces: list[Piece] = []
        position, end = start, start + length
        for entry, content in self._with_content(self._stored.entries(start, length)):
            if entry.start > position:
                pieces.append(Piece(position, entry.start - position, None))
            pieces.append(Piece(entry.start, entry.length, self._stored.part(entry, content)))
            position = entry.start + entry.length
        if position < end:
            pieces.append(Piece(position, end - position, None))
        self._prefetch(self._ahead.after(start, length))
        return pieces

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        """Generate what a range (bytes) is made of, from the index alone. Raises Damaged, RepositoryError."""
        position, end = start, start + length
        for entry in self._stored.entries(start, length):
            if entry.start > position:
                yield Extent(entry.start - position, zero=True)
            yield Extent(entry.length, zero=False)
            position = entry.start + entry.length
        if position < end:
            yield Extent(end - position, zero=True)

    def write(self, start: int, data: memoryview) -> None:
        """Never called: the disk is read-only."""
        raise PermissionError

    def zero(self, start: int, length: int) -> None:
        """Never called: the disk is read-only."""
        raise PermissionError

    def _with_content(self, entries: Iterator[E]) -> Iterator[tuple[E, bytes]]:
        arriving: deque[tuple[E, Future[bytes]]] = deque()
        for entry in entries:
            arriving.append((entry, self._cache.get(self._stored, entry.chunk)))
            if len(arriving) > _WINDOW:
                first, content = arriving.popleft()
                yield first, content.result()
        for entry, content in arriving:
            yield entry, content.result()

    def _prefetch(self, wanted: range) -> None:
        stop = min(wanted.stop, self.size)
        if wanted.start >= stop:
            return
        # What cannot be read ahead is told to the client that asks for it.
        with contextlib.suppress(errors.Error):
            for entry in itertools.islice(self._stored.entries(wanted.start, stop - wanted.start), _MAX_AHEAD):
                self._cache.get(self._stored, entry.chunk)
