"""
Copying a recovery point into another repository, whose key may be another one.

A page of the index and the chunks that it names are copied together, because chunks have other names under another key:

    source page    A x B y      read x: the base's page has A and B, and its copy tells how they are named there
    base's page    A B          ─┐ the point before this one that both repositories have
    its copy       A' B'        ─┘
    target page    A' x' B' y'  written; then the root, and at last the manifest

So what an earlier point shares with this one is neither read nor written; where both repositories name chunks alike,
nothing is read that the target has. What was copied before a copy was broken off is found and used by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import msgspec
from blake3 import blake3

from blockferry import errors
from blockferry.repository import index, layout, manifest
from blockferry.repository.chunks import Chunks
from blockferry.repository.index import PAGE, Entry, PageReference, Root, read_page
from blockferry.repository.locks import Lock
from blockferry.repository.manifest import DiskManifest, File, Manifest
from blockferry.repository.reader import read_file, read_index
from blockferry.repository.store import Store


class Copied(msgspec.Struct, frozen=True):
    """
    What became of a point.

    new: False when the target had it already.  chunks: how many were read in the source, pages of indexes not counted.
    moved: bytes of their content.  stored: bytes that were written to the target, with the indexes.
    """

    vm_id: str
    vm_name: str
    point_id: str
    new: bool
    chunks: int
    moved: int
    stored: int


class Step(NamedTuple):
    """
    How far the copying of one disk is. position, size: bytes of the disk.  moved: bytes of content that were read.
    """

    disk: DiskManifest
    position: int
    moved: int


class Base(NamedTuple):
    """An earlier point of the VM, which both repositories have."""

    source: Manifest
    target: Manifest


class Side(NamedTuple):
    """
    One of the two repositories.

    key: what its chunks are named by; None when it is not encrypted.
    """

    store: Store
    chunks: Chunks
    key: bytes | None


def copy(
    source: Side, target: Side, lock: Lock, point: Manifest, base: Base | None, progress: Callable[[Step], None]
) -> Copied:
    """
    Copy a point. lock: of a writer in the target.  base: its indexes are relied on; both were there since the lock is.

    The point is visible in the target when all of it is durable there, or never.

    Raises Damaged when the source is damaged, RepositoryError.
    """
    copying = _Copying(source, target, base, progress)
    side_by_side = max(source.store.side_by_side, target.store.side_by_side)
    with (
        target.store.batch() as batch,
        ThreadPoolExecutor(side_by_side, thread_name_prefix="copy") as threads,
    ):
        try:
            disks = tuple(copying.disk(point, disk, threads) for disk in point.disks)
            if point.ovf is not None:
                name = layout.ovf(point.vm.id, point.id)
                copying.put(name, read_file(source.store, name, point.ovf))
        finally:
            threads.shutdown(cancel_futures=True)
        copied = msgspec.structs.replace(point, disks=disks)
        batch.flush()
        lock.check()
        name = layout.manifest(point.vm.id, point.id)
        was_there = target.store.holds(name)
        batch.commit(name, manifest.encode(copied))
        try:
            lock.check_age()
        except errors.RepositoryError:
            if not was_there:
                # Somebody else's copy stays.
                target.store.delete(name)
            raise
    return Copied(point.vm.id, point.vm.name, point.id, True, copying.count, copying.moved, copying.stored)


class _Copying:
    """
    The copying of one point.

    count, moved, stored: see `Copied`.
    """

    def __init__(self, source: Side, target: Side, base: Base | None, progress: Callable[[Step], None]) -> None:
        self.count = 0
        self.moved = 0
        self.stored = 0
        self._source = source
        self._target = target
        self._base = base
        self._progress = progress
        self._named_alike = source.key == target.key

    def disk(self, point: Manifest, disk: DiskManifest, threads: Executor) -> DiskManifest:
        """Copy one disk's chunks and index. Return what the target's manifest says of it."""
        root = read_index(self._source.store, point, disk.id)
        known = self._base_roots(disk.id)
        pages: dict[int, PageReference] = {}
        moved_before = self.moved
        for number, reference in sorted(root.pages.items()):
            pages[number] = self._page(number, reference, known, threads)
            self._progress(Step(disk, min((number + 1) * PAGE, disk.size), self.moved - moved_before))
        self._progress(Step(disk, disk.size, self.moved - moved_before))
        name = layout.index(point.vm.id, point.id, disk.id)
        written = self.put(name, index.encode_root(root._replace(pages=pages)))
        return msgspec.structs.replace(disk, index=written)

    def put(self, name: str, data: bytes) -> File:
        """Write a file beside the manifest that is to be."""
        self._target.store.put(name, data)
        self.stored += len(data)
        return File(len(data), blake3(data).hexdigest())

    def _base_roots(self, disk_id: str) -> tuple[Root, Root] | None:
        """Return the roots of the base's index, source and target; None when there is no base that has the disk."""
        if self._base is None:
            return None
        try:
            return (
                read_index(self._source.store, self._base.source, disk_id),
                read_index(self._target.store, self._base.target, disk_id),
            )
        except (errors.NotFound, errors.Damaged):
            # It saves work, nothing else.
            return None

    def _page(
        self, number: int, reference: PageReference, base: tuple[Root, Root] | None, threads: Executor
    ) -> PageReference:
        """Copy a page of the index, and the chunks that it names."""
        before, there = (None, None) if base is None else (root.pages.get(number) for root in base)
        is_alike = before is not None and before.chunk == reference.chunk
        if there is not None and is_alike and not self._target.chunks.any_damaged:
            return there
        entries = read_page(self._source.chunks, number, reference.chunk)
        names = self._names(number, before, there)
        missing = list(dict.fromkeys(entry.chunk for entry in entries if entry.chunk not in names))
        for name, chunk in zip(missing, threads.map(self._chunk, missing), strict=True):
            names[name] = chunk.digest
            self.count += bool(chunk.moved)
            self.moved += chunk.moved
            self.stored += chunk.stored
        page = self._target.chunks.put(
            index.encode_page(number, [entry._replace(chunk=names[entry.chunk]) for entry in entries])
        )
        self.stored += page.length
        return reference._replace(chunk=page.digest)

    def _names(self, number: int, before: PageReference | None, there: PageReference | None) -> dict[bytes, bytes]:
        """
        Return what the target calls the chunks of the base's page, by what the source calls them.

        Those that are damaged in the target are left out, so that they come from the source anew.
        """
        if before is None or there is None:
            return {}
        try:
            old = read_page(self._source.chunks, number, before.chunk)
            new = read_page(self._target.chunks, number, there.chunk)
        except errors.Damaged:
            # It saves work, nothing else.
            return {}
        if [_place(entry) for entry in old] != [_place(entry) for entry in new]:
            raise errors.Damaged(
                f"An earlier recovery point is not the same in {self._target.store.url} and {self._source.store.url}.",
                "Delete all copies of this VM's points, then copy them again.",
            )
        return {
            mine.chunk: theirs.chunk
            for mine, theirs in zip(old, new, strict=True)
            if not self._target.chunks.is_damaged(theirs.chunk)
        }

    def _chunk(self, digest: bytes) -> _Chunk:
        """Have a chunk in the target."""
        if self._named_alike and self._target.chunks.find(digest):
            return _Chunk(digest, 0, 0)
        content = self._source.chunks.get(digest)
        stored = self._target.chunks.put(content)
        return _Chunk(stored.digest, len(content), stored.length)


class _Chunk(NamedTuple):
    """
    A chunk in the target.

    moved: bytes that were read of it in the source.  stored: bytes that were written.
    """

    digest: bytes
    moved: int
    stored: int


def _place(entry: Entry) -> tuple[int, int, int]:
    return entry.start, entry.length, entry.offset
