"""
Proving that recovery points can be restored: everything that they need is read and checked.

A disk is gone through page by page, all its points side by side: they share most chunks, so that each is read once.

    page:       0        1        2
    point 1     A        B        C        read: A, then B and E, then C; and of each page the chunks that it names
    point 2     A        E        C

In memory are the roots of the disk's indexes, 40 bytes for each page (256 MiB) of each point, that is 32 MiB for 100
points of a 2 TiB disk; the digests of the chunks that all versions of one page name; and as many chunks
as the store reads side by side.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from typing import NamedTuple

import msgspec

from blockferry import errors
from blockferry.repository import index, layout, reader
from blockferry.repository.chunks import Chunks
from blockferry.repository.index import PAGE, read_page
from blockferry.repository.manifest import Manifest, Unreadable
from blockferry.repository.store import Store


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
    all_points: Sequence[Manifest],
    unreadable: Iterable[Unreadable],
    progress: Callable[[Step], None],
) -> Verification:
    """
    Read and check everything that `points` need.

    all_points, unreadable: those of the whole repository.  progress: called after every page.
    """
    findings = _Findings()
    reading = _Reading(store, chunks, findings, progress)
    with ThreadPoolExecutor(store.side_by_side, thread_name_prefix="verify") as threads:
        reading.read(points, threads)
    tracing = _Tracing(store, chunks, findings)
    if findings.reasons:
        tracing.trace(all_points)
    return Verification(reading.chunks, reading.checked, tracing.damage(), tuple(unreadable))


class _Findings:
    """
    What is wrong.

    reasons: by the name of the object.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note an object as damaged when it cannot be read, and go on: what else is damaged matters too."""
        try:
            yield
        except errors.RepositoryError as error:
            self.reasons[name] = error.message


class _Page(NamedTuple):
    """
    A page of the index of a disk, at several points.

    versions: for the digest of each different version, the points that have it.
    """

    number: int
    versions: dict[bytes, list[Manifest]]


class _Disk(NamedTuple):
    """A disk, and the points that are looked at and have it."""

    vm_id: str
    id: str
    points: list[Manifest]

    def pages(self, store: Store, findings: _Findings) -> Iterator[_Page]:
        """Generate the pages in disk order. A root that cannot be read is noted, and its point left out."""
        roots: list[Iterator[tuple[int, bytes, Manifest]]] = []
        for point in self.points:
            with findings.noting(layout.index(self.vm_id, point.id, self.id)):
                # Encoded, as it takes a tenth of the memory.
                root = index.encode_root(reader.read_index(store, point, self.id))
                roots.append(_references(root, point))
        by_number = itemgetter(0)
        for number, references in itertools.groupby(heapq.merge(*roots, key=by_number), by_number):
            page = _Page(number, defaultdict(list))
            for _, digest, point in references:
                page.versions[digest].append(point)
            yield page


def _references(root: bytes, point: Manifest) -> Iterator[tuple[int, bytes, Manifest]]:
    for number, reference in index.page_references(root):
        yield number, reference.chunk, point


def _disks(points: Iterable[Manifest]) -> list[_Disk]:
    """Return the disks that the points have."""
    disks: dict[tuple[str, str], _Disk] = {}
    for point in points:
        for disk in point.disks:
            disks.setdefault((point.vm.id, disk.id), _Disk(point.vm.id, disk.id, [])).points.append(point)
    return list(disks.values())


class _Reading:
    """
    Reads all that points need, and notes what is damaged.

    chunks, checked: see `Verification`.
    """

    def __init__(self, store: Store, chunks: Chunks, findings: _Findings, progress: Callable[[Step], None]) -> None:
        self.chunks = 0
        self.checked = 0
        self._store = store
        self._chunks = chunks
        self._findings = findings
        self._progress = progress

    def read(self, points: Sequence[Manifest], threads: Executor) -> None:
        """Read all that the points need."""
        for point in points:
            if point.ovf is not None:
                name = layout.ovf(point.vm.id, point.id)
                with self._findings.noting(name):
                    reader.read_file(self._store, name, point.ovf)
        for disk in _disks(points):
            size = max(point.disk(disk.id).size for point in disk.points)
            for page in disk.pages(self._store, self._findings):
                self._read_page(page, threads)
                self._progress(Step(disk.vm_id, disk.id, min((page.number + 1) * PAGE, size), size, self.checked))
            self._progress(Step(disk.vm_id, disk.id, size, size, self.checked))

    def _read_page(self, page: _Page, threads: Executor) -> None:
        """Read all chunks that the versions of a page name."""
        needed: dict[bytes, int] = {}
        for version in page.versions:
            with self._findings.noting(layout.chunk(version)):
                for entry in read_page(self._chunks, page.number, version):
                    needed[entry.chunk] = max(needed.get(entry.chunk, 0), entry.offset + entry.length)
        for length in threads.map(self._read_chunk, needed.keys(), needed.values()):
            self.chunks += 1
            self.checked += length

    def _read_chunk(self, digest: bytes, needed: int) -> int:
        """Return the length of a sound chunk, 0 of a damaged one. needed: bytes that the indexes want of it."""
        length = 0
        with self._findings.noting(layout.chunk(digest)):
            length = len(self._chunks.get(digest))
            if length < needed:
                raise self._chunks.damaged(digest, f"it has only {length} bytes")
        return length


class _Tracing:
    """Finds who needs what is damaged. What is found to be damaged on the way counts too."""

    def __init__(self, store: Store, chunks: Chunks, findings: _Findings) -> None:
        self._store = store
        self._chunks = chunks
        self._findings = findings
        self._hurts: defaultdict[str, set[Hurt]] = defaultdict(set)

    def trace(self, points: Sequence[Manifest]) -> None:
        """Note what of the points is hurt."""
        for point in points:
            if point.ovf is not None:
                self._hurt([layout.ovf(point.vm.id, point.id)], point, None)
        for disk in _disks(points):
            for page in disk.pages(self._store, self._findings):
                for version, having in page.versions.items():
                    names = self._names(page.number, version)
                    for point in having:
                        self._hurt(names, point, disk.id)
            for point in disk.points:
                self._hurt([layout.index(disk.vm_id, point.id, disk.id)], point, disk.id)

    def damage(self) -> tuple[Damage, ...]:
        """Return all damage, by name, and what it hurts by VM, point and disk."""
        return tuple(
            Damage(name, reason, tuple(sorted(self._hurts[name], key=_hurt_order)))
            for name, reason in sorted(self._findings.reasons.items())
        )

    def _names(self, number: int, version: bytes) -> set[str]:
        """Return the names of a page's chunk and, if it can be read, of all chunks that it names."""
        names = {layout.chunk(version)}
        with self._findings.noting(layout.chunk(version)):
            names.update(layout.chunk(entry.chunk) for entry in read_page(self._chunks, number, version))
        return names

    def _hurt(self, needed: Iterable[str], point: Manifest, disk_id: str | None) -> None:
        for name in needed:
            if name in self._findings.reasons:
                self._hurts[name].add(Hurt(point.vm.id, point.vm.name, point.id, disk_id))


def _hurt_order(hurt: Hurt) -> tuple[str, str, str, str]:
    return hurt.vm_name, hurt.vm_id, hurt.point_id, hurt.disk_id or ""
