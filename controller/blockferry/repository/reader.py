"""Reading one disk of a recovery point, as it was."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from blake3 import blake3

from blockferry import errors
from blockferry.repository import index, layout
from blockferry.repository.chunks import Chunks
from blockferry.repository.index import Entry, Index, Root
from blockferry.repository.manifest import File, Manifest
from blockferry.repository.store import Store
from blockferry_agent import errors as agent_errors
from blockferry_agent.units import MiB

_AHEAD = 64 * MiB
"""Content that is fetched before it is asked for, and no more than two chunks for each fetch that is under way."""
_RECENT = 8
"""Chunks that are kept at least: one that later blocks were laid over is met again between them."""


class Piece(NamedTuple):
    """
    A range of the disk.

    start, length: bytes.  data: its content, None for zeros.
    """

    start: int
    length: int
    data: memoryview | None


class DiskReader:
    """
    One disk of a recovery point. Nothing to close; several readings may run at once.

    size: bytes.
    """

    def __init__(self, root: Root, chunks: Chunks) -> None:
        self.size = root.size
        self._ahead = max(2, min(2 * chunks.side_by_side, _AHEAD // root.window))
        self._index = Index(root, chunks)
        self._chunks = chunks

    def read(self, start: int = 0, length: int | None = None) -> Iterator[Piece]:
        """
        Generate the pieces of a range (bytes; to the end of the disk when `length` is None), in disk order, gap-free.

        Every chunk is checked before a piece of it is generated. Needs memory for 64 MiB of
        content, or for eight windows.

        Raises Damaged, RepositoryError, and InvalidRequest for a range that is not within the disk.
        """
        end = self.size if length is None else start + length
        if not 0 <= start <= end <= self.size:
            raise agent_errors.InvalidRequest(f"The disk of {self.size} bytes has no range from {start} to {end}.")
        position = start
        for entry, content in self.with_content(self.entries(start, end - start)):
            if entry.start > position:
                yield Piece(position, entry.start - position, None)
            yield Piece(entry.start, entry.length, self.part(entry, content))
            position = entry.end
        if position < end:
            yield Piece(position, end - position, None)

    def entries(self, start: int, length: int) -> Iterator[Entry]:
        """Generate the index's entries in a range (bytes), cut at its borders, in disk order; the rest is zeros."""
        return self._index.entries(start, length)

    def chunk(self, digest: bytes) -> bytes:
        """Return the content of a chunk, checked. Raises Damaged, RepositoryError."""
        return self._chunks.get(digest)

    def part(self, entry: Entry, content: bytes) -> memoryview:
        """Return the part of its chunk's content that an entry names. Raises Damaged when the chunk is too short."""
        data = memoryview(content)[entry.offset : entry.offset + entry.length]
        if len(data) != entry.length:
            raise self._chunks.damaged(entry.chunk, f"it has only {len(content)} bytes")
        return data

    def with_content(self, entries: Iterator[Entry]) -> Iterator[tuple[Entry, bytes]]:
        """Generate the entries, each with the content of its chunk, checked; fetch some chunks ahead."""
        recent: OrderedDict[bytes, Future[bytes]] = OrderedDict()
        ahead: deque[tuple[Entry, Future[bytes]]] = deque()
        threads = ThreadPoolExecutor(self._chunks.side_by_side, thread_name_prefix="restore")
        try:
            for entry in entries:
                if entry.chunk not in recent:
                    recent[entry.chunk] = threads.submit(self._chunks.get, entry.chunk)
                recent.move_to_end(entry.chunk)
                ahead.append((entry, recent[entry.chunk]))
                if len(recent) > max(_RECENT, self._ahead):
                    recent.popitem(last=False)
                if len(ahead) > self._ahead:
                    ready, content = ahead.popleft()
                    yield ready, content.result()
            for ready, content in ahead:
                yield ready, content.result()
        finally:
            threads.shutdown(cancel_futures=True)


def read_index(store: Store, point: Manifest, disk_id: str) -> Root:
    """Return the root of a disk's index, checked. Raises NotFound when the point has no such disk, Damaged."""
    disk = point.disk(disk_id)
    name = layout.index(point.vm.id, point.id, disk_id)
    data = read_file(store, name, disk.index)
    try:
        root = index.decode_root(data)
        if root.size != disk.size:
            raise ValueError(f"it maps {root.size} bytes, its manifest says {disk.size}")
    except ValueError as error:
        raise errors.Damaged(f"{store.url}/{name} is damaged: {error}.") from None
    return root


def read_file(store: Store, name: str, expected: File) -> bytes:
    """Return a file beside a manifest, checked against what the manifest says of it. Raises Damaged."""
    try:
        data = store.get(name, expected.length)
    except errors.NotFound:
        raise errors.Damaged(f"{store.url}/{name} is damaged: it is missing.") from None
    if len(data) != expected.length or blake3(data).hexdigest() != expected.blake3:
        raise errors.Damaged(f"{store.url}/{name} is damaged: it is not what was stored.")
    return data
