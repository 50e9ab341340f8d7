"""Proving that recovery points can be restored: everything that they need is read and checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import msgspec

from blockferry import errors
from blockferry.repository import layout, reader
from blockferry.repository.chunks import Chunks
from blockferry.repository.index import PAGE, read_page
from blockferry.repository.manifest import Manifest, Unreadable
from blockferry.repository.store import Store

_THREADS = 2


class Hurt(msgspec.Struct, frozen=True):
    """A disk of a recovery point, or (disk_id None) its OVF, that cannot be restored."""

    vm_id: str
    vm_name: str
    point_id: str
    disk_id: str | None


class Damage(msgspec.Struct, frozen=True):
    """
    An object that is damaged or missing.

    name: of the object, within the repository.  reason: a sentence.  hurts: everything that needs it, also of recovery
    points that were not asked for.
    """

    name: str
    reason: str
    hurts: tuple[Hurt, ...]


class Step(msgspec.Struct, frozen=True):
    """
    How far a verification is.

    vm_id, disk_id: the disk whose points are being read, side by side.  position, size: bytes of that disk.
    checked: bytes of content that were read and checked, of all disks so far.
    """

    vm_id: str
    disk_id: str
    position: int
    size: int
    checked: int


class Verification(msgspec.Struct, frozen=True):
    """
    What was found.

    chunks: how many were read, pages of indexes not counted.  checked: bytes of their content.
    unreadable: all recovery points of the repository whose manifests cannot be read; what they need was not checked.
    """

    chunks: int
    checked: int
    damage: tuple[Damage, ...]
    unreadable: tuple[Unreadable, ...]


def verify(
    store: Store,
    chunks: Chunks,
    points: Sequence[Manifest],
    all_points: Iterable[Manifest],
    unreadable: Iterable[Unreadable],
    progress: Callable[[Step], None],
) -> Verification:
    """
    Read and check everything that `points` need.

    all_points, unreadable: those of the whole repository.  progress: called after every page.
    """
    reading = _Reading(store, chunks, progress)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as threads:
        reading.read(points, threads)
    tracing = _Tracing(store, chunks, reading.damage)
    if reading.damage:
        for point in all_points:
            tracing.trace(point)
    return Verification(reading.chunks, reading.checked, tracing.result(), tuple(unreadable))


class _Reading:
    """
    Goes through the points disk by disk, and through a disk page by page, all points of the disk side by side: their
    pages share most chunks, so these are read once, and only the digests of one page have to be remembered.

    damage: what is wrong, by the name of the object.
    """

    def __init__(self, store: Store, chunks: Chunks, progress: Callable[[Step], None]) -> None:
        self.damage: dict[str, str] = {}
        self.chunks = 0
        self.checked = 0
        self._store = store
        self._chunks = chunks
        self._progress = progress

    def read(self, points: Sequence[Manifest], threads: Executor) -> None:
        """Read all that the points need."""
        disks: defaultdict[tuple[str, str], list[Manifest]] = defaultdict(list)
        for point in points:
            if point.ovf is not None:
                name = layout.ovf(point.vm.id, point.id)
                with self._noting(name):
                    reader.read_file(self._store, name, point.ovf)
            for disk in point.disks:
                disks[point.vm.id, disk.id].append(point)
        for (vm_id, disk_id), of_disk in disks.items():
            size = max(point.disk(disk_id).size for point in of_disk)
            for number, pages in sorted(self._pages(of_disk, disk_id).items()):
                self._read_page(number, pages, threads)
                self._progress(Step(vm_id, disk_id, min((number + 1) * PAGE, size), size, self.checked))
            self._progress(Step(vm_id, disk_id, size, size, self.checked))

    def _pages(self, points: Sequence[Manifest], disk_id: str) -> dict[int, set[bytes]]:
        """Return the digests of the different pages that the points have of a disk, by number."""
        pages: defaultdict[int, set[bytes]] = defaultdict(set)
        for point in points:
            with self._noting(layout.index(point.vm.id, point.id, disk_id)):
                for number, page in reader.read_index(self._store, point, disk_id).pages.items():
                    pages[number].add(page.chunk)
        return pages

    def _read_page(self, number: int, pages: Iterable[bytes], threads: Executor) -> None:
        """Read all chunks that these versions of a page name."""
        needed: dict[bytes, int] = {}
        for page in pages:
            with self._noting(layout.chunk(page)):
                for entry in read_page(self._chunks, number, page):
                    needed[entry.chunk] = max(needed.get(entry.chunk, 0), entry.offset + entry.length)
        for length in threads.map(self._read_chunk, needed.keys(), needed.values()):
            self.chunks += 1
            self.checked += length

    def _read_chunk(self, digest: bytes, needed: int) -> int:
        """Return the length of a sound chunk, 0 of a damaged one. needed: bytes that the indexes want of it."""
        length = 0
        with self._noting(layout.chunk(digest)):
            length = len(self._chunks.get(digest))
            if length < needed:
                raise self._chunks.damaged(digest, f"it has only {length} bytes")
        return length

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Note an object as damaged when it cannot be read, and go on: what else is damaged matters too."""
        try:
            yield
        except errors.RepositoryError as error:
            self.damage[name] = error.message


class _Tracing:
    """Finds who needs what is damaged. Each different page is looked at once."""

    def __init__(self, store: Store, chunks: Chunks, damage: dict[str, str]) -> None:
        self._store = store
        self._chunks = chunks
        self._damage = damage
        self._hurts: defaultdict[str, list[Hurt]] = defaultdict(list)
        self._pages: dict[bytes, frozenset[str]] = {}

    def trace(self, point: Manifest) -> None:
        """Note what of this point is hurt."""
        if point.ovf is not None:
            self._hurt({layout.ovf(point.vm.id, point.id)} & self._damage.keys(), point, None)
        for disk in point.disks:
            self._hurt(self._damage_of_disk(point, disk.id), point, disk.id)

    def result(self) -> tuple[Damage, ...]:
        """Return all damage, sorted by name."""
        return tuple(Damage(name, self._damage[name], tuple(self._hurts[name])) for name in sorted(self._damage))

    def _hurt(self, names: Iterable[str], point: Manifest, disk_id: str | None) -> None:
        for name in names:
            self._hurts[name].append(Hurt(point.vm.id, point.vm.name, point.id, disk_id))

    def _damage_of_disk(self, point: Manifest, disk_id: str) -> set[str]:
        try:
            root = reader.read_index(self._store, point, disk_id)
        except errors.RepositoryError as error:
            name = layout.index(point.vm.id, point.id, disk_id)
            self._damage.setdefault(name, error.message)
            return {name}
        return {name for number, page in root.pages.items() for name in self._damage_of_page(number, page.chunk)}

    def _damage_of_page(self, number: int, digest: bytes) -> frozenset[str]:
        if digest not in self._pages:
            try:
                entries = read_page(self._chunks, number, digest)
                names = {layout.chunk(entry.chunk) for entry in entries}
            except errors.RepositoryError as error:
                names = {layout.chunk(digest)}
                self._damage.setdefault(layout.chunk(digest), error.message)
            self._pages[digest] = frozenset(names & self._damage.keys())
        return self._pages[digest]
