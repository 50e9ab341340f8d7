"""
Proving that recovery points can be restored: everything that they need is read and checked.

A disk is gone through page by page, all its points side by side: they share most chunks, so that each is read once.

    page:       0        1        2
    point 1     A        B        C        read: A, then B and E, then C; and of each page the chunks that it names
    point 2     A        E        C

With a share below 1, what the disks' pages name is looked for in listings instead, and a share of it is read, in the
order of those (see `selection`).

In memory are the roots of the disk's indexes, 40 bytes for each page (256 MiB) of each point, that is 32 MiB for 100
points of a 2 TiB disk; the digests of the chunks that all versions of one page name; and as many chunks
as the store reads side by side; with a share, also what `needs` takes.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from typing import NamedTuple

import msgspec

from blockferry import errors
from blockferry.repository import chunks as chunks_module
from blockferry.repository import index, layout, marks, reader, selection
from blockferry.repository.chunks import Chunks
from blockferry.repository.index import PAGE, read_page
from blockferry.repository.manifest import File, Manifest, Unreadable
from blockferry.repository.needs import FOLDERS, Needs, beginning_of
from blockferry.repository.selection import Selection, Share
from blockferry.repository.store import Listed, Store

_log = logging.getLogger(__name__)


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

    @property
    def is_chunk(self) -> bool:
        """Whether it is a chunk, which a backup may store anew, and not an index or an OVF."""
        return layout.digest_of(self.name) is not None


class Step(msgspec.Struct, frozen=True):
    """
    How far a verification is.

    vm_id, disk_id: the disk whose points are being read, side by side; None when chunks are read in no disk's order.
    position, size: bytes of that disk, or of those chunks in the storage.
    checked: bytes of content that were read and checked so far.
    """

    vm_id: str | None
    disk_id: str | None
    position: int
    size: int
    checked: int


class Verification(msgspec.Struct, frozen=True):
    """
    What was found.

    chunks: how many were read, pages of indexes not counted.  checked: bytes of their content.
    unreadable: all recovery points of the repository whose manifests cannot be read; what they need was not checked.
    present: chunks that are there, and were not read.  covered: how much of the stored content was read, now or by the
    runs with a share before this one, in [0, 1]; None when nothing was read.
    """

    chunks: int
    checked: int
    damage: tuple[Damage, ...]
    unreadable: tuple[Unreadable, ...]
    present: int = 0
    covered: float | None = 1.0


def verify(
    store: Store,
    chunks: Chunks,
    points: Sequence[Manifest],
    all_points: Sequence[Manifest],
    unreadable: Iterable[Unreadable],
    progress: Callable[[Step], None],
    share: Share,
) -> Verification:
    """
    Check everything that `points` need, and mark the chunks that are damaged.

    all_points, unreadable: those of the whole repository.  progress: called after every page.
    share: of the content is read; of the rest it is seen that it is there.
    """
    findings = _Findings()
    marked = marks.all_of(store)
    with ThreadPoolExecutor(store.side_by_side, thread_name_prefix="verify") as threads:
        reading: _Reading | _Looking
        if share.part >= 1:
            reading = _Reading(store, chunks, findings, progress, marked)
        else:
            reading = _Looking(store, chunks, findings, progress, share, marked)
        try:
            reading.read(points, threads)
        finally:
            threads.shutdown(cancel_futures=True)
    tracing = _Tracing(store, chunks, findings)
    if findings.reasons:
        tracing.trace(all_points)
    _mark(store, findings, reading.sound)
    return Verification(
        reading.chunks,
        reading.checked,
        tracing.damage(),
        tuple(unreadable),
        present=reading.present,
        covered=reading.covered,
    )


def _mark(store: Store, findings: _Findings, sound: Iterable[bytes]) -> None:
    """Mark the chunks that are damaged, and unmark those that are sound again, where the repository can be written."""
    try:
        for name, reason in findings.reasons.items():
            digest = layout.digest_of(name)
            if digest is not None and name in findings.damaged:
                marks.put(store, digest, reason)
        marks.take_away(store, sound)
    except errors.RepositoryError as error:
        _log.warning("Damaged chunks could not be marked: %s", error.message)


class _Findings:
    """
    What is wrong.

    reasons: by the name of the object.  damaged: the names of those that are not only out of reach at the moment.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.damaged: set[str] = set()

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note an object as damaged when it cannot be read, and go on: what else is damaged matters too."""
        try:
            yield
        except errors.RepositoryError as error:
            self.reasons[name] = error.message
            if isinstance(error, (errors.Damaged, errors.StorageFailing)):
                self.damaged.add(name)


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


def _ovfs(points: Iterable[Manifest]) -> Iterator[tuple[str, File]]:
    """Generate the OVFs that the points have, with their names."""
    for point in points:
        if point.ovf is not None:
            yield layout.ovf(point.vm.id, point.id), point.ovf


class _Reading:
    """
    Reads all that points need, and notes what is damaged.

    chunks, checked, present, covered: see `Verification`.  sound: chunks that were marked, and are not damaged.
    """

    present = 0
    covered: float | None = 1.0

    def __init__(
        self,
        store: Store,
        chunks: Chunks,
        findings: _Findings,
        progress: Callable[[Step], None],
        marked: Collection[bytes],
    ) -> None:
        self.chunks = 0
        self.checked = 0
        self.sound: set[bytes] = set()
        self._marked = frozenset(marked)
        self._store = store
        self._chunks = chunks
        self._findings = findings
        self._progress = progress

    def read(self, points: Sequence[Manifest], threads: Executor) -> None:
        """Read all that the points need."""
        for name, file in _ovfs(points):
            with self._findings.noting(name):
                reader.read_file(self._store, name, file)
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
                entries = read_page(self._chunks, page.number, version)
                self._note_sound(version)
                for entry in entries:
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
            self._note_sound(digest)
        return length

    def _note_sound(self, digest: bytes) -> None:
        if digest in self._marked:
            self.sound.add(digest)


class _Looking:
    """
    Looks for all that points need, reads a share of it, and notes what is damaged or missing.

    chunks, checked, present, covered: see `Verification`.  sound: chunks that were marked, and are not damaged.
    """

    def __init__(
        self,
        store: Store,
        chunks: Chunks,
        findings: _Findings,
        progress: Callable[[Step], None],
        share: Share,
        marked: Collection[bytes],
    ) -> None:
        self.chunks = 0
        self.checked = 0
        self.present = 0
        self.covered: float | None = None
        self.sound: set[bytes] = set()
        self._store = store
        self._chunks = chunks
        self._findings = findings
        self._progress = progress
        self._share = share
        self._marked = frozenset(marked)
        self._needs = Needs(store, chunks)

    def read(self, points: Sequence[Manifest], threads: Executor) -> None:
        """Look for all that the points need."""
        for name, file in _ovfs(points):
            with self._findings.noting(name):
                reader.read_file(self._store, name, file)
        for page, step in self._pages(points):
            for version in page.versions:
                with self._findings.noting(layout.chunk(version)):
                    for entry in read_page(self._chunks, page.number, version):
                        self._needs.add_chunk(entry.chunk)
            self._progress(step)
        lengths, missing = self._look()
        self._read_all((digest for digest in self._marked if digest in self._needs), threads)
        if missing:
            self._find(points, missing)
        if self._share.part > 0:
            before = selection.load(self._store)
            chosen = selection.select(lengths, before, self._share)
            self._read_chosen(chosen, sum(lengths[second] for second in lengths if chosen.has(second)), threads)
            try:
                selection.save(self._store, chosen.after)
            except errors.RepositoryError as error:
                _log.warning("What was read could not be noted, and will be read again: %s", error.message)
            total = sum(lengths.values())
            read = sum(length for second, length in lengths.items() if chosen.has(second) or chosen.after.has(second))
            self.covered = read / total if total else 1.0

    def _pages(self, points: Sequence[Manifest]) -> Iterator[tuple[_Page, Step]]:
        for disk in _disks(points):
            size = max(point.disk(disk.id).size for point in disk.points)
            for page in disk.pages(self._store, self._findings):
                yield page, Step(disk.vm_id, disk.id, min((page.number + 1) * PAGE, size), size, 0)

    def _listed(self, number: int) -> Iterator[tuple[bytes, Listed]]:
        """Generate the chunks of a folder that are there and needed."""
        for listed in self._store.listing(f"{layout.CHUNKS}/{number:02x}"):
            digest = layout.digest_of(listed.name)
            if digest is not None and digest in self._needs:
                yield digest, listed

    def _look(self) -> tuple[dict[int, int], set[int]]:
        """
        Look for all chunks that are needed. Return the bytes that are there by the second in which they were written,
        and what stands (see `needs.beginning_of`) for those that are missing, or too short to be any.
        """
        lengths: dict[int, int] = defaultdict(int)
        missing: set[int] = set()
        for number, folder in enumerate(self._needs.folders):
            there = set()
            for digest, listed in self._listed(number):
                if listed.length > chunks_module.HEADER:
                    there.add(beginning_of(digest))
                    lengths[int(listed.modified)] += listed.length
            missing.update(set(folder.beginnings()) - there)
            self.present += len(there)
        return lengths, missing

    def _find(self, points: Sequence[Manifest], missing: Collection[int]) -> None:
        """Note the names of what is missing, after one more look."""
        for page, _ in self._pages(points):
            for version in page.versions:
                with contextlib.suppress(errors.RepositoryError):
                    named = {entry.chunk for entry in read_page(self._chunks, page.number, version)}
                    for digest in named:
                        if beginning_of(digest) in missing:
                            self._read_chunk(digest)

    def _read_chosen(self, chosen: Selection, size: int, threads: Executor) -> None:
        position = 0
        for number in range(FOLDERS):
            found = [(digest, listed) for digest, listed in self._listed(number) if chosen.has(int(listed.modified))]
            self._read_all((digest for digest, _ in found), threads)
            position += sum(listed.length for _, listed in found)
            self._progress(Step(None, None, min(position, size), size, self.checked))

    def _read_all(self, digests: Iterable[bytes], threads: Executor) -> None:
        for length in threads.map(self._read_chunk, digests):
            self.chunks += 1
            self.present -= 1
            self.checked += length

    def _read_chunk(self, digest: bytes) -> int:
        """Return the length of a sound chunk, 0 of a damaged one."""
        with self._findings.noting(layout.chunk(digest)):
            length = len(self._chunks.get(digest))
            if digest in self._marked:
                self.sound.add(digest)
            return length
        return 0


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
