"""Writing one disk of a recovery point: blocks in disk order become chunks, and an index laid over the base's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import NamedTuple

import xxhash

from blockferry import errors
from blockferry.repository import index
from blockferry.repository.chunks import Chunks, Stored
from blockferry.repository.index import PAGE, Entry, Index, PageReference, Range, Root
from blockferry.repository.manifest import BackupMode, Bytes, Carrier, DiskManifest, File
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Kind
from blockferry_agent.units import MiB

_IN_FLIGHT = 16 * MiB
"""Content of one disk that waits to be hashed, compressed and written; one block, when that is larger."""


class _Pending(NamedTuple):
    """A data block on its way into the store."""

    block: Block
    stored: Future[Stored]


class _Page:
    """The page of the index that blocks are arriving for: what was replaced so far, and with what."""

    def __init__(self, number: int, base: list[Entry], known: Collection[tuple[int, int]]) -> None:
        self.number = number
        self.base = base
        self.replaced: list[Range] = []
        self.fresh: list[Entry] = []
        self.known = known


class DiskWriter:
    """
    Takes the blocks of one disk. Made by `Draft.disk`; used by one thread, beside the other writers of the draft.

    Chunks are hashed, compressed and written by the draft's threads while the next blocks arrive; `write` waits when
    too much is under way. What fails there is raised by the next call, and by every one after it.

    position: end of the last block that was accepted, in bytes: where another transport carries on.
    """

    def __init__(
        self,
        *,
        disk_id: str,
        size: int,
        window: int,
        base: Index | None,
        backup_mode: BackupMode,
        chunks: Chunks,
        threads: Executor,
        save_root: Callable[[str, bytes], File],
        save: Callable[[DiskManifest], None],
    ) -> None:
        """
        size: bytes of the disk.  base: index that the new one is laid over; a first backup has none.
        backup_mode: "full" blocks must cover the disk; what "incremental" ones leave out is as in the base.
        save_root: puts the index's root beside the manifest.  save: takes the finished disk for the manifest.
        """
        self.disk_id = disk_id
        self.position = 0
        self._size = size
        self._window = window
        self._base = base or Index(Root(size, window, {}), chunks)
        self._backup_mode: BackupMode = backup_mode
        self._chunks = chunks
        self._threads = threads
        self._save_root = save_root
        self._save = save
        self._pages = {number: page for number, page in self._base.root.pages.items() if number * PAGE < size}
        self._page: _Page | None = None
        self._pending: deque[_Pending] = deque()
        self._in_flight = 0
        self._stored = 0
        self._failure: errors.Error | None = None

    def known(self, start: int, length: int) -> dict[tuple[int, int], bytes]:
        """
        Return the blocks of the base within a range (bytes), as {(start, length): XXH3-128}.

        A reader that meets one of them unchanged may answer SAME. May be called by another thread than the writing one.
        Raises Damaged.
        """
        return self._known(self._base.entries(start, length))

    def broken_windows(self, start: int, length: int) -> frozenset[int]:
        """Return starts of the base's windows within a range (bytes) that should be read whole. Raises Damaged."""
        return self._base.broken_windows(start, length)

    def damaged_windows(self, start: int, length: int) -> list[int]:
        """
        Return starts of the base's windows within a range (bytes) whose chunks are marked as damaged, in disk order.

        When they are read, changed or not, the new point does not need what is damaged, and what has not changed is
        stored anew for all points. Raises Damaged.
        """
        if not self._chunks.any_damaged:
            return []
        entries = self._base.entries(start, length)
        damaged = (entry.start for entry in entries if self._chunks.is_damaged(entry.chunk))
        return sorted({position // self._window * self._window for position in damaged})

    def write(self, block: Block) -> None:
        """
        Take the next block. Its data must not be changed any more.

        Raises ProtocolError for a block that cannot be true: nothing of it was taken, so the caller may read again from
        `position`. Raises RepositoryError when the repository failed: the draft is lost.
        """
        self._raise_failure()
        self._check(block)
        for piece in _by_page(block.start, block.length):
            page = self._page_at(piece.start)
            if block.kind is Kind.SAME:
                self._check_same(block, page)
            else:
                page.replaced.append(piece)
        if block.kind is Kind.DATA:
            self._store(block)
            if self._chunks.any_damaged:
                self._heal(block)
        self.position = block.end

    def finish(
        self,
        *,
        alias: str,
        format: str,
        bootable: bool,
        interface: str,
        carriers: tuple[Carrier, ...],
        dirty: int,
        read: int,
        moved: int,
        seconds: float,
    ) -> DiskManifest:
        """
        Write the index. The disk is part of the draft from now on; nothing more can be written.

        The arguments are fields of `DiskManifest` and its `Bytes`.

        Raises ProtocolError when blocks of a full backup are missing at the end, RepositoryError.
        """
        self._raise_failure()
        if self._backup_mode == "full" and self.position != self._size:
            raise self._nonsense(f"ended at {self.position} of {self._size} bytes")
        self._close_page()
        self._cut_last_page()
        root = self._save_root(self.disk_id, index.encode_root(Root(self._size, self._window, self._pages)))
        disk = DiskManifest(
            id=self.disk_id,
            alias=alias,
            size=self._size,
            format=format,
            bootable=bootable,
            interface=interface,
            backup_mode=self._backup_mode,
            carriers=carriers,
            index=root,
            bytes=Bytes(dirty=dirty, read=read, moved=moved, stored=self._stored + root.length),
            seconds=seconds,
        )
        self._save(disk)
        return disk

    def _check(self, block: Block) -> None:
        """Raise ProtocolError unless the block can be the next one, and is what was read on the host."""
        if block.length <= 0 or block.start < self.position or block.end > self._size:
            raise self._nonsense(f"sent a block at {block.start} of {block.length} bytes after {self.position}")
        if self._backup_mode == "full" and block.start != self.position:
            raise self._nonsense(f"left out what is between {self.position} and {block.start}")
        if block.kind is not Kind.DATA:
            return
        if block.start // self._window != (block.end - 1) // self._window:
            raise self._nonsense(f"sent a block at {block.start} that crosses a window's border")
        if len(block.data) != block.length or xxhash.xxh3_128_digest(block.data) != block.digest:
            raise self._nonsense(f"sent a block at {block.start} that is not what was read")

    def _known(self, entries: Iterable[Entry]) -> dict[tuple[int, int], bytes]:
        """Return those entries that may stay as they are."""
        return {
            (entry.start, entry.length): entry.digest
            for entry in entries
            if entry.digest and not self._chunks.is_damaged(entry.chunk)
        }

    def _check_same(self, block: Block, page: _Page) -> None:
        if (block.start, block.length) not in page.known:
            raise self._nonsense(f"calls a block at {block.start} unchanged that the base does not have")

    def _nonsense(self, what: str) -> agent_errors.ProtocolError:
        return agent_errors.ProtocolError(
            f"The transport of disk {self.disk_id} {what}.", "Run this again; if it stays, report it with the log."
        )

    def _store(self, block: Block) -> None:
        self._pending.append(_Pending(block, self._threads.submit(self._chunks.put, block.data)))
        self._in_flight += block.length
        while self._in_flight > _IN_FLIGHT:
            self._settle()

    def _heal(self, block: Block) -> None:
        """
        Store damaged chunks of the base anew whose content is within the block, for the older points that need them.

        An entry that has no digest is only a part of its chunk.
        """
        for entry in self._base.entries(block.start, block.length):
            is_within = block.start <= entry.start and entry.end <= block.end and entry.length < block.length
            if is_within and entry.digest and self._chunks.is_damaged(entry.chunk):
                content = block.data[entry.start - block.start : entry.end - block.start]
                try:
                    self._stored += self._chunks.heal(entry.chunk, content)
                except errors.Error as error:
                    self._failure = error
                    raise

    def _settle(self) -> None:
        """Wait for the oldest data block to be stored, and give it its entry."""
        assert self._page is not None
        block, future = self._pending.popleft()
        try:
            stored = future.result()
        except errors.Error as error:
            self._failure = error
            raise
        self._in_flight -= block.length
        self._stored += stored.length
        self._page.fresh.append(Entry(block.start, block.length, stored.digest, 0, block.digest))

    def _page_at(self, position: int) -> _Page:
        """Return the page that maps `position`, and close the one before it."""
        number = position // PAGE
        if self._page is None or self._page.number != number:
            self._close_page()
            base = self._base.page(number)
            self._page = _Page(number, base, self._known(base).keys())
        return self._page

    def _close_page(self) -> None:
        """Lay what arrived for the page over the base's, and store it; an unchanged page stays the base's."""
        while self._pending:
            self._settle()
        page, self._page = self._page, None
        if page is None:
            return
        end = (page.number + 1) * PAGE
        if end > self._size:
            page.replaced.append(Range(self._size, end - self._size))
        entries = index.overlay(page.base, page.replaced, page.fresh)
        if entries == page.base:
            return
        if not entries:
            del self._pages[page.number]
            return
        try:
            stored = self._chunks.put(index.encode_page(page.number, entries))
        except errors.Error as error:
            self._failure = error
            raise
        self._stored += stored.length
        broken = len(index.broken_windows(entries, self._window))
        self._pages[page.number] = PageReference(broken, stored.digest)

    def _cut_last_page(self) -> None:
        """Where the disk has shrunk, and no block touched the page that it ends in now, that is still the base's."""
        last = (self._size - 1) // PAGE
        if self._size < self._base.root.size and self._pages.get(last) is self._base.root.pages.get(last):
            self._page_at(self._size - 1)
            self._close_page()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _by_page(start: int, length: int) -> Iterator[Range]:
    """Cut a range where pages of the index end."""
    end = start + length
    while start < end:
        cut = min(end, (start // PAGE + 1) * PAGE)
        yield Range(start, cut - start)
        start = cut
