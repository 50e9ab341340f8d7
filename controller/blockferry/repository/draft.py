"""A recovery point that is being written: nothing of it is visible until it is committed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime

from blake3 import blake3

from blockferry import __version__, errors
from blockferry.repository import layout, locks, manifest, marks
from blockferry.repository.chunks import Chunks
from blockferry.repository.index import Index
from blockferry.repository.locks import Lock
from blockferry.repository.manifest import BackupMode, DiskManifest, File, Manifest, Mode, Vm
from blockferry.repository.reader import read_index
from blockferry.repository.reliance import Reliance
from blockferry.repository.settings import Settings
from blockferry.repository.store import Batch, Store
from blockferry.repository.writer import DiskWriter
from blockferry_agent import errors as agent_errors


@contextlib.contextmanager
def begin(
    store: Store, chunks: Callable[[Collection[bytes], Reliance], Chunks], settings: Settings, vm: Vm
) -> Iterator[Draft]:
    """
    Begin a recovery point. What was not committed at the end is taken away, except for chunks: the next backup finds
    them and uses what is sound.

    chunks: returns those of the store, for the digests of damaged ones, and somebody who relies on them.
    """
    with (
        locks.held(store, "writing", f"backup of VM {vm.name}") as lock,
        store.batch() as batch,
        ThreadPoolExecutor(store.side_by_side, thread_name_prefix="chunks") as threads,
    ):
        draft = Draft(store, chunks(marks.all_of(store), lock.reliance), settings, vm, lock, batch, threads)
        try:
            yield draft
        finally:
            # Who gives up does not wait for a collection, nor for a storage that is gone.
            lock.reliance.give_up()
            threads.shutdown(cancel_futures=True)
            draft.discard()


class Draft:
    """
    The recovery point. Its disks may be written by a thread each.

    id: of the point to be.
    """

    def __init__(
        self, store: Store, chunks: Chunks, settings: Settings, vm: Vm, lock: Lock, batch: Batch, threads: Executor
    ) -> None:
        self._created = datetime.now(UTC)
        self.id = layout.new_point_id(self._created)
        self._store = store
        self._settings = settings
        self._vm = vm
        self._repository_lock = lock
        self._batch = batch
        self._threads = threads
        self._chunks = chunks
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._disks: dict[str, DiskManifest | None] = {}
        self._ovf: File | None = None
        self._ovf_missing: str | None = "It was not asked for."

    def disk(self, disk_id: str, size: int, backup_mode: BackupMode, base: Manifest | None = None) -> DiskWriter:
        """
        Begin to write a disk of `size` bytes, or begin it anew.

        backup_mode: "full" blocks must cover the disk; what "incremental" ones leave out is as in the base.
        base: the point that has what is unchanged. An incremental backup needs one; a full one may have one, so that
        blocks that are as they were need not be moved.

        Raises NotFound when the base has no such disk, or was deleted meanwhile; Damaged when its index is.
        """
        layout.index(self._vm.id, self.id, disk_id)
        # From now on a collection leaves alone what the base needs, even if that is deleted.
        if base is not None and not self._store.holds(layout.manifest(base.vm.id, base.id)):
            raise errors.NotFound(
                f"Recovery point {base.id}, on which this one builds, was deleted.", "Run this again."
            )
        if backup_mode == "incremental" and base is None:
            raise agent_errors.InvalidRequest(f"An incremental backup of disk {disk_id} needs a base.")
        with self._lock:
            self._disks[disk_id] = None
        return DiskWriter(
            disk_id=disk_id,
            size=size,
            window=self._settings.window,
            base=None if base is None else Index(read_index(self._store, base, disk_id), self._chunks),
            backup_mode=backup_mode,
            chunks=self._chunks,
            threads=self._threads,
            save_root=self._save_root,
            save=self._save_disk,
        )

    def ovf(self, text: str) -> None:
        """Keep the VM's configuration. Raises RepositoryError."""
        self._ovf = self._put(layout.ovf(self._vm.id, self.id), text.encode())
        self._ovf_missing = None

    def without_ovf(self, reason: str) -> None:
        """Note why there is no OVF, a sentence."""
        self._ovf_missing = reason

    def commit(
        self,
        *,
        mode: Mode,
        backup_id: str,
        checkpoint_id: str | None,
        parent: Manifest | None,
        seconds: float,
        tags: tuple[str, ...] = (),
    ) -> Manifest:
        """
        Make the recovery point durable, then visible.

        The arguments are fields of `Manifest`. Its disks come bootable ones first, then by alias: not in the order in
        which threads happened to begin them.

        Raises RepositoryError: the point is not there then.
        """
        disks = [disk for disk in self._disks.values() if disk is not None]
        if len(disks) < len(self._disks):
            raise agent_errors.InvalidRequest(f"Recovery point {self.id} has disks that are not finished.")
        incremental = any(disk.backup_mode == "incremental" for disk in disks)
        point = Manifest(
            id=self.id,
            vm=self._vm,
            created=self._created,
            mode=mode,
            backup_mode="incremental" if incremental else "full",
            backup_id=backup_id,
            checkpoint_id=checkpoint_id,
            parent_id=None if parent is None else parent.id,
            parent_checkpoint_id=None if parent is None else parent.checkpoint_id,
            ovf=self._ovf,
            ovf_missing=self._ovf_missing,
            controller_version=__version__,
            seconds=seconds,
            disks=tuple(sorted(disks, key=lambda disk: (not disk.bootable, disk.alias, disk.id))),
            tags=tags,
        )
        name = layout.manifest(self._vm.id, self.id)
        # This may take long; what follows does not.
        self._batch.flush()
        self._repository_lock.check()
        # From here on a power failure may bring the manifest back, deleted or not: what it names stays.
        self._names = [name]
        self._batch.commit(name, manifest.encode(point))
        # A machine that slept meanwhile may have lost what it relied on.
        self._repository_lock.check_age()
        self._names = []
        with contextlib.suppress(errors.RepositoryError):
            # If this fails, the chunks are only stored once more by the next backup.
            marks.take_away(self._store, self._chunks.healed)
        return point

    def discard(self) -> None:
        """
        Take away what is not committed, as far as the store lets us: without its manifest nobody sees the rest.

        A commit that failed may have left a manifest; then that alone is taken away.
        """
        with contextlib.suppress(errors.RepositoryError):
            for name in self._names:
                self._store.delete(name)

    def _save_root(self, disk_id: str, root: bytes) -> File:
        return self._put(layout.index(self._vm.id, self.id, disk_id), root)

    def _save_disk(self, disk: DiskManifest) -> None:
        with self._lock:
            self._disks[disk.id] = disk

    def _put(self, name: str, data: bytes) -> File:
        with self._lock:
            self._names.append(name)
        self._store.put(name, data)
        return File(len(data), blake3(data).hexdigest())
