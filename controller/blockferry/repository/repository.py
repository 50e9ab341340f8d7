"""The repository: recovery points under one URL."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from blockferry import errors
from blockferry.repository import (
    collection,
    copying,
    draft,
    keys,
    layout,
    locks,
    manifest,
    marks,
    settings,
    trash,
    verification,
)
from blockferry.repository import store as stores
from blockferry.repository.chunks import Chunks, Compression
from blockferry.repository.collection import Collected, Times
from blockferry.repository.copying import Copied
from blockferry.repository.draft import Draft
from blockferry.repository.encryption import SealedStore, Sealer, derive
from blockferry.repository.keyring import master_key
from blockferry.repository.keys import KeyFile, Passphrase, Secret
from blockferry.repository.locks import Lock
from blockferry.repository.manifest import Manifest, Unreadable, Vm
from blockferry.repository.reader import DiskReader, read_file, read_index
from blockferry.repository.reliance import Reliance
from blockferry.repository.selection import Share
from blockferry.repository.settings import Settings
from blockferry.repository.store import Durability, Store
from blockferry.repository.trash import Trashed
from blockferry.repository.verification import Step, Verification
from blockferry_agent.units import MiB

_log = logging.getLogger(__name__)


class Repository:
    """
    Made by `init` or `open`. Nothing to close. May be used by several threads, and beside other controllers.

    settings: made once, with the repository.
    """

    def __init__(self, store: Store, settings: Settings, master: bytes | None = None) -> None:
        """master: the master key, when the repository is encrypted."""
        self.settings = settings
        self._store = store if master is None else SealedStore(store, Sealer(master))
        self._names_key = None if master is None else derive(master, "names")

    @classmethod
    def init(
        cls,
        url: str,
        window: int = 1 * MiB,
        compression: Compression = "zstd",
        secret: Passphrase | KeyFile | None = None,
        durability: Durability = "full",
    ) -> Repository:
        """
        Make a repository at `url`, a path, file:///path or a bucket; a directory is made when it is missing.

        window: bytes, a power of two from 256 KiB to 8 MiB.  secret: encrypts it, and opens it from now on.
        durability: what a power failure may cost.

        Raises Conflict when there is one, RepositoryError.
        """
        place = stores.create(url, durability)
        if secret is None:
            return cls(place, settings.write(place, window, compression))
        return cls(place, *settings.write_encrypted(place, window, compression, secret))

    @classmethod
    def open(cls, url: str, secret: Secret | None = None, durability: Durability = "full") -> Repository:
        """
        Open the repository at `url`. secret: what opens an encrypted one.

        Raises WrongKey, and RepositoryError when there is none that this version can use.
        """
        return cls.on(stores.connect(url, durability), secret)

    @classmethod
    def on(cls, place: Store, secret: Secret | None = None) -> Repository:
        """Open the repository that a store holds. Raises WrongKey, RepositoryError."""
        found = settings.read(place)
        return cls(place, found, master_key(place, found, secret))

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        return self._store.url

    def points(
        self, vm_id: str | None = None, unreadable: Callable[[Unreadable], None] | None = None
    ) -> list[Manifest]:
        """
        Return all recovery points, or those of one VM, newest first.

        unreadable: told of each one whose manifest cannot be read; without it that is raised, so nothing is left out
        unnoticed.

        Raises RepositoryError when the repository cannot be listed.
        """
        folder = layout.VMS if vm_id is None else layout.vm_folder(vm_id)
        ids = [ids for listed in self._store.listing(folder) if (ids := layout.point_of(listed.name)) is not None]
        found = []
        with ThreadPoolExecutor(self._store.side_by_side, thread_name_prefix="points") as threads:
            for (vm, point_id), reading in [(each, threads.submit(self.point, *each)) for each in ids]:
                try:
                    found.append(reading.result())
                except errors.NotFound:
                    # Deleted since it was listed.
                    continue
                except errors.RepositoryError as error:
                    if unreadable is None:
                        threads.shutdown(cancel_futures=True)
                        raise
                    unreadable(Unreadable(vm, point_id, layout.manifest(vm, point_id), str(error)))
        return sorted(found, key=lambda point: (point.created, point.id), reverse=True)

    def point(self, vm_id: str, point_id: str) -> Manifest:
        """Return one recovery point. Raises NotFound, Damaged, RepositoryError."""
        name = layout.manifest(vm_id, point_id)
        where = f"{self.url}/{name}"
        try:
            with manifest.way_out(vm_id, point_id):
                return manifest.decode(self._store.get(name, manifest.MAX_ENCODED), vm_id, point_id, where)
        except errors.NotFound:
            raise errors.NotFound(
                f"There is no recovery point {point_id} of VM {vm_id} in {self.url}.", "See `blockferry list`."
            ) from None

    def new_point(self, vm: Vm) -> AbstractContextManager[Draft]:
        """
        Begin a recovery point, which becomes visible when it is committed, or never. Raises RepositoryError.

            with repository.new_point(vm) as draft:
                writer = draft.disk(disk_id, size, "incremental", base=newest)
                for block in reading:
                    writer.write(block)
                writer.finish(…)
                draft.ovf(text)
                draft.commit(…)
        """
        return draft.begin(self._store, self._chunks, self.settings, vm)

    def copy_from(self, source: Repository, point: Manifest, progress: Callable[[copying.Step], None]) -> Copied:
        """
        Copy a point of another repository into this one; what this one has already is not written again.

        A point that is here already is left as it is. A copy that was broken off is begun anew, and finds its chunks.

        progress: called after every page of an index, by this thread.

        Raises RepositoryError, also when the windows differ; Damaged when the source is.
        """
        if source.settings.window != self.settings.window:
            raise errors.RepositoryError(
                f"The window of {source.url} is {source.settings.window} bytes, that of {self.url} "
                f"{self.settings.window}: points cannot be copied.",
                "Make another repository with `blockferry repository init --window`.",
            )
        if self._store.holds(layout.manifest(point.vm.id, point.id)):
            return Copied(point.vm.id, point.vm.name, point.id, False, 0, 0, 0)
        purpose = f"copy of point {point.id} of VM {point.vm.name}"
        with source.reading(purpose), locks.held(self._store, "writing", purpose) as lock:
            if not source._store.holds(layout.manifest(point.vm.id, point.id)):
                raise errors.NotFound(f"Recovery point {point.id} of VM {point.vm.name} was deleted.")
            base = self._common_base(source, point)
            chunks = self._chunks(marks.all_of(self._store), lock.reliance)
            side = copying.Side(self._store, chunks, self._names_key)
            done = copying.copy(source._side(), side, lock, point, base, progress)
            marks.take_away(self._store, chunks.healed)
        return done

    @contextmanager
    def reading(self, purpose: str) -> Iterator[Lock | None]:
        """
        Keep what is deleted meanwhile from being collected. purpose: for people, such as "restore of VM web".

        A repository that this user cannot write is read all the same, without being heeded: what somebody else deletes
        and collects meanwhile is missed then. Deleted points stay for a week unless somebody says otherwise.
        """
        with contextlib.ExitStack() as stack:
            lock = None
            try:
                lock = stack.enter_context(locks.held(self._store, "reading", purpose))
            except errors.RepositoryError as error:
                _log.info("Read without a lock: %s", error.message)
            yield lock

    def delete(self, point: Manifest) -> None:
        """Move a point into the trash. Raises Conflict when it is pinned, RepositoryError."""
        trash.delete(self._store, point)

    def forget(self, lost: Unreadable) -> None:
        """Delete a point whose manifest cannot be read, for good, also from the trash. Raises RepositoryError."""
        self._store.delete(lost.name)

    def undelete(self, vm_id: str, point_id: str) -> Manifest:
        """Bring a point back. Raises NotFound when the trash does not have it, Conflict, RepositoryError."""
        return trash.undelete(self._store, vm_id, point_id)

    def trash(self, unreadable: Callable[[Unreadable], None]) -> list[Trashed]:
        """
        Return the points in the trash, last deleted first. Raises RepositoryError.

        unreadable: told of each one whose manifest cannot be read.
        """
        return trash.contents(self._store, unreadable=unreadable)

    def pin(self, point: Manifest) -> None:
        """Keep a point from being deleted. Raises RepositoryError."""
        trash.pin(self._store, point)

    def unpin(self, point: Manifest) -> None:
        """Let a point be deleted. Raises RepositoryError."""
        trash.unpin(self._store, point)

    def pinned(self) -> set[tuple[str, str]]:
        """Return (vm id, point id) of all points that are pinned. Raises RepositoryError."""
        return trash.pinned(self._store)

    def collect(self, times: Times, progress: Callable[[str], None]) -> Collected:
        """
        Remove what no point needs, beside whatever else runs. progress: told what is being done, by several threads.

        Raises Conflict when another collection runs, RepositoryError.
        """
        return collection.collect(self._store, self._chunks(), self.points, times, progress)

    @contextmanager
    def scratch(self, durability: Durability) -> Iterator[Repository]:
        """
        Have an empty repository beside this one, on the same storage, with the same settings, to be removed at the end.

        It is encrypted when this one is, with a key that nobody keeps. Raises RepositoryError.
        """
        with stores.beside(self.url, durability) as place:
            made = settings.write(place, self.settings.window, self.settings.compression)
            yield Repository(place, made, None if self._names_key is None else keys.new_master())

    def disk(self, point: Manifest, disk_id: str) -> DiskReader:
        """Open a disk of a recovery point for reading. Raises NotFound, Damaged, RepositoryError."""
        return DiskReader(read_index(self._store, point, disk_id), self._chunks())

    def check_disk(self, point: Manifest, disk_id: str, chunks: bool = True) -> None:
        """
        Raise Damaged when it is known that a disk cannot be read: when its index cannot, or, with `chunks`, when it
        needs one that a verification marked, and that is damaged still. No other content is read.

        Raises NotFound, RepositoryError, too.
        """
        found = self._chunks(marks.all_of(self._store))
        reader = DiskReader(read_index(self._store, point, disk_id), found)
        for entry in reader.entries(0, reader.size):
            if chunks and found.is_damaged(entry.chunk):
                reader.chunk(entry.chunk)

    def ovf(self, point: Manifest) -> str:
        """Return the VM's configuration as it was. Raises NotFound when the point has none, Damaged."""
        if point.ovf is None:
            raise errors.NotFound(
                f"Recovery point {point.id} of VM {point.vm.name} has no OVF.", point.ovf_missing or ""
            )
        return read_file(self._store, layout.ovf(point.vm.id, point.id), point.ovf).decode()

    def verify(self, points: Sequence[Manifest], progress: Callable[[Step], None], share: float = 1.0) -> Verification:
        """
        Check what `points` need. Damage is returned with all points that it hurts, not raised; so are all points of the
        repository whose manifests cannot be read. Damaged chunks are marked, so that the next backup heals them.

        share: how much of the content is read, in [0, 1]; of all the rest it is seen that it is there. Below 1 what was
        never read comes first, the newest before the older.  progress: called often, by this thread.

        Raises RepositoryError when the repository cannot be listed.
        """
        with self.reading("verify") as lock:
            settled = float("-inf") if lock is None else lock.settled()
            unreadable: list[Unreadable] = []
            everything = self.points(unreadable=unreadable.append)
            there = {(point.vm.id, point.id) for point in everything}
            # Who has deleted a point since wants nothing to be said of it.
            asked = [point for point in points if (point.vm.id, point.id) in there]
            part = Share(share, settled)
            return verification.verify(self._store, self._chunks(), asked, everything, unreadable, progress, part)

    def _common_base(self, source: Repository, point: Manifest) -> copying.Base | None:
        """Return the newest earlier point of the VM that both repositories have."""
        listed = self._store.listing(layout.vm_folder(point.vm.id))
        there = {ids[1] for found in listed if (ids := layout.point_of(found.name))}
        # Ids sort by time, to the second.
        for point_id in sorted((other for other in there if other[:16] <= point.id[:16]), reverse=True):
            try:
                base = copying.Base(source.point(point.vm.id, point_id), self.point(point.vm.id, point_id))
            except (errors.NotFound, errors.Damaged):
                continue
            if base.source.created < point.created:
                return base
        return None

    def _side(self) -> copying.Side:
        return copying.Side(self._store, self._chunks(), self._names_key)

    def _chunks(self, damaged: Collection[bytes] = (), reliance: Reliance | None = None) -> Chunks:
        return Chunks(self._store, self.settings.compression, self._names_key, damaged, reliance)
