"""
What points need, in little memory: which chunks, and which objects beside their manifests.

Of a chunk's digest the first 8 bytes are kept, sorted into the store's 256 folders of chunks: at most 16 bytes for each
chunk. That two of a million begin alike is met in one repository of a million; then a chunk that nobody needs stays, or
one that is missing is taken to be there, until it is read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

from blockferry import errors
from blockferry.repository import layout
from blockferry.repository.chunks import Chunks
from blockferry.repository.index import read_page
from blockferry.repository.manifest import Manifest
from blockferry.repository.reader import read_index
from blockferry.repository.store import Store

FOLDERS = 256
"""Of chunks: named by the first byte of their digests."""

_PREFIX = 8


class Folder:
    """The beginnings of the digests of chunks in one folder. Many may be there twice, for a while."""

    def __init__(self) -> None:
        self._beginnings = array("Q")
        self._sorted = 0

    def add(self, digest: bytes) -> None:
        """Add a chunk."""
        self._beginnings.append(beginning_of(digest))
        if len(self._beginnings) > 2 * self._sorted + 4096:
            self.beginnings()

    def __contains__(self, digest: bytes) -> bool:
        """Tell whether a chunk was added."""
        beginning = beginning_of(digest)
        found = self.beginnings()
        place = bisect_left(found, beginning)
        return place < len(found) and found[place] == beginning

    def beginnings(self) -> array[int]:
        """Return what `beginning_of` says of each chunk, sorted."""
        if len(self._beginnings) > self._sorted:
            self._beginnings = array("Q", sorted(set(self._beginnings)))
            self._sorted = len(self._beginnings)
        return self._beginnings


def beginning_of(digest: bytes) -> int:
    """Return what stands for a digest here."""
    return int.from_bytes(digest[:_PREFIX], "big")


class Needs:
    """
    What points need. Not for several threads.

    folders: of chunks, by the first byte of their digests.  points: (vm id, point id) of all that were added.
    """

    def __init__(self, store: Store, chunks: Chunks) -> None:
        self.folders = [Folder() for _ in range(FOLDERS)]
        self.points: set[tuple[str, str]] = set()
        self._store = store
        self._chunks = chunks
        self._pages: set[bytes] = set()

    def add(self, points: Sequence[Manifest]) -> None:
        """Add what the points need that were not added yet. Raises Damaged when that cannot be known."""
        fresh = [point for point in points if (point.vm.id, point.id) not in self.points]
        with ThreadPoolExecutor(self._store.side_by_side, thread_name_prefix="needs") as threads:
            try:
                for point in fresh:
                    with _way_out(point):
                        self._add(point, threads)
            finally:
                threads.shutdown(cancel_futures=True)

    def _add(self, point: Manifest, threads: ThreadPoolExecutor) -> None:
        for disk in point.disks:
            root = read_index(self._store, point, disk.id)
            pages = [(number, page.chunk) for number, page in root.pages.items()]
            new = [page for page in pages if page[1] not in self._pages]
            for piece in _pieces(new, 4 * self._store.side_by_side):
                for named in threads.map(self._named_by, piece):
                    for digest in named:
                        self.add_chunk(digest)
            self._pages.update(digest for _, digest in new)
        self.points.add((point.vm.id, point.id))

    def add_chunk(self, digest: bytes) -> None:
        """Add a chunk."""
        self.folders[digest[0]].add(digest)

    def __contains__(self, digest: bytes) -> bool:
        """Tell whether a chunk is needed."""
        return digest in self.folders[digest[0]]

    def needs_beside(self, name: str) -> bool:
        """Tell whether an object in a point's folder is of a point that was added, or no point's at all."""
        ids = layout.point_with(name)
        return ids is None or ids in self.points

    def _named_by(self, page: tuple[int, bytes]) -> Collection[bytes]:
        """Return the digests of a page and of all chunks that it names."""
        number, digest = page
        return {digest, *(entry.chunk for entry in read_page(self._chunks, number, digest))}


@contextmanager
def _way_out(point: Manifest) -> Iterator[None]:
    """Add to Damaged, while a point's indexes are read, how to go on without the point."""
    try:
        yield
    except errors.Damaged as error:
        raise errors.Damaged(
            error.message,
            "Put a copy of it back, or do without the recovery point: "
            f"`blockferry delete {point.vm.id} {point.id}` unless it is in the trash, then "
            "`blockferry collect --trash 0`, which empties the trash of all points.",
        ) from None


def _pieces(pages: Iterable[tuple[int, bytes]], length: int) -> Iterator[list[tuple[int, bytes]]]:
    """Cut a row of pages into rows of some length, so that few are in memory."""
    rest = iter(pages)
    while piece := list(islice(rest, length)):
        yield piece
