"""
Back up one VM: from the engine's backup to a committed recovery point.

    find the VM, take its OVF ─▶ choose the base ─▶ start the backup ─▶ for each disk, side by side:
        transfer ─▶ the transports, one after another ─▶ blocks ─▶ repository ─▶ finish the transfer
    ─▶ commit ─▶ finish the backup ─▶ drop the checkpoints that nothing needs any more

Whatever fails before the commit leaves no recovery point, nothing open in the engine, and the old base in force.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import NamedTuple

from blockferry import engine, errors
from blockferry.config import AskedMode, Compression, TransportName
from blockferry.jobs import base, copying, journal, selection
from blockferry.jobs.base import Base
from blockferry.jobs.progress import Progress
from blockferry.jobs.site import Site
from blockferry.repository import Draft, Manifest, Repository, Vm
from blockferry.transport.disk import Target, Transport
from blockferry.transport.ladder import Ladder
from blockferry_agent import errors as agent_errors

# Disks beyond this wait for one of the others: each has a transfer, connections and blocks in memory.
MAX_DISKS_AT_ONCE = 8


class Options(NamedTuple):
    """
    What the operator asked for.

    mode: of the engine's backup.  transports: names, the ladder.  full: read the whole disks, whatever the base.
    fresh: build on nothing; store again what is stored already, unless it proves whole.
    disks: ids or aliases of the disks to take; empty means all that can be backed up.
    compression: of blocks on their way.  bytes_per_second: read no disk faster; 0 means without a limit.
    tags: of the point.
    """

    mode: AskedMode
    transports: Sequence[TransportName]
    full: bool = False
    fresh: bool = False
    disks: Sequence[str] = ()
    compression: Compression = "auto"
    bytes_per_second: int = 0
    tags: tuple[str, ...] = ()


def run(site: Site, vm_name: str, options: Options, progress: Progress) -> Manifest:
    """
    Take a recovery point and return its manifest.

    Raises any of our errors. When the point was committed and only what comes after failed, the error says so.
    """
    repository = site.repository()
    transports = site.transports(options.transports)
    with site.engine() as connection:
        vm = connection.find_vm(vm_name)
        with journal.opened(site.state, vm.id) as log:
            end_left_open(connection, log, progress)
            job = _Job(repository, transports, connection, vm, options, log, progress)
            return job.run()


def end_left_open(connection: engine.Connection, log: journal.Journal, progress: Progress) -> None:
    """End what runs that were killed, or lost the engine, left open there."""
    if log.open:
        progress.step("An earlier backup of this VM did not end well: ending what it may have left open in the engine")
        _end_all(connection, log)


def _end_all(connection: engine.Connection, log: journal.Journal) -> None:
    for left in list(log.open):
        connection.abandon(left.vm_id, left.backup_id, left.transfer_ids, left.description)
        log.ended(left)


def description(repository: Repository) -> str:
    """
    Return what a backup, and with it its checkpoint, is called in the engine.

    By it a checkpoint that a run left behind is known as ours, and the next backup into the repository drops it.
    """
    return f"blockferry {repository.settings.id}"


def possible_disks(
    connection: engine.Connection, vm: engine.Vm, wanted: Sequence[str], progress: Progress
) -> list[engine.Disk]:
    """
    Return the disks that are wanted (ids or aliases; empty: all), and warn of those that no backup can have.

    Raises NotFound when one that was asked for cannot be backed up, or none can; Ambiguous.
    """
    chosen = selection.disks(connection.disks(vm), wanted, f"VM {vm.name}")
    for disk in chosen:
        if disk.obstacle:
            if wanted:
                raise errors.NotFound(f"Disk {disk.alias} cannot be backed up: {disk.obstacle}.")
            progress.warn(f"Disk {disk.alias} is left out: {disk.obstacle}.")
    possible = [disk for disk in chosen if not disk.obstacle]
    if not possible:
        raise errors.NotFound(f"VM {vm.name} has no disk that can be backed up.")
    return possible


class _Job:
    """The backup of one VM, whose journal is open."""

    def __init__(
        self,
        repository: Repository,
        transports: Sequence[Transport],
        connection: engine.Connection,
        vm: engine.Vm,
        options: Options,
        log: journal.Journal,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._transports = transports
        self._connection = connection
        self._vm = vm
        self._options = options
        self._log = log
        self._progress = progress
        self._description = description(repository)
        self._committed: Manifest | None = None

    def run(self) -> Manifest:
        disks = possible_disks(self._connection, self._vm, self._options.disks, self._progress)
        points = self._repository.points(self._vm.id, lambda unreadable: self._progress.warn(unreadable.reason))
        try:
            manifest = self._take_from(self._base(points, disks), points, disks)
            self._drop_checkpoints(manifest)
        except (errors.Error, KeyboardInterrupt) as error:
            if self._committed is None:
                raise
            raise _after_commit(self._committed, error) from error
        return manifest

    def _take_from(self, chosen: Base, points: Sequence[Manifest], disks: list[engine.Disk]) -> Manifest:
        """Take the point from the base that was chosen, or from a lesser one when that turns out to be of no use."""
        try:
            return self._take(disks, chosen)
        except (errors.CheckpointUnusable, agent_errors.BitmapMissing) as error:
            if chosen.checkpoint_id is None:
                raise
            self._progress.warn(f"{error.message} Taking a full backup instead.")
            _end_all(self._connection, self._log)
            return self._take_from(base.without_checkpoint(points), points, disks)
        except errors.Damaged as error:
            if chosen.point is None:
                raise
            self._progress.warn(f"The base {chosen.point.id} is damaged: {error.message} Building on nothing instead.")
            _end_all(self._connection, self._log)
            return self._take(disks, base.NOTHING)

    def _base(self, points: Sequence[Manifest], disks: Sequence[engine.Disk]) -> Base:
        if self._options.fresh:
            return base.NOTHING
        if self._options.full:
            return base.without_checkpoint(points)
        checkpoints = {point.id for point in self._connection.checkpoints(self._vm) if point.usable}
        return base.choose(points, checkpoints, [disk.id for disk in disks])

    def _take(self, disks: list[engine.Disk], chosen: Base) -> Manifest:
        # Before the backup: disks that it locks hide the configuration.
        ovf = self._connection.ovf(self._vm)
        parent = chosen.point if chosen.checkpoint_id else None
        since = f"what changed since {parent.id}" if parent else "everything"
        self._progress.step(f"VM {self._vm.name}: asking the engine for a backup of {since}")
        started = time.monotonic()
        with self._repository.new_point(Vm(self._vm.id, self._vm.name)) as draft:
            draft.ovf(ovf)
            with self._connection.backup(
                self._vm,
                disks,
                since=chosen.checkpoint_id,
                mode=self._options.mode,
                description=self._description,
                journal=self._log.record,
            ) as backup:
                self._progress.step(f"VM {self._vm.name}: the engine made a {backup.mode} backup, {backup.id}")
                self._copy(draft, backup, {disk.id: disk for disk in disks}, chosen)
                manifest = self._committed = draft.commit(
                    mode=backup.mode,
                    backup_id=backup.id,
                    checkpoint_id=backup.to_checkpoint_id,
                    parent=parent,
                    seconds=time.monotonic() - started,
                    tags=self._options.tags,
                )
                self._progress.step(f"VM {self._vm.name}: {manifest.id} is committed; ending the backup")
        self._log.ended(self._log.open[-1])
        return manifest

    def _copy(
        self,
        draft: Draft,
        backup: engine.Backup,
        disks: dict[str, engine.Disk],
        chosen: Base,
    ) -> None:
        """Copy all disks side by side. The first error stops the others and is the one raised."""
        stop = copying.Stop()
        with futures.ThreadPoolExecutor(MAX_DISKS_AT_ONCE, thread_name_prefix="disk") as threads:
            copies = [
                threads.submit(self._copy_disk, draft, backup, part, disks[part.id], chosen, stop)
                for part in backup.disks
            ]
            try:
                for done in futures.as_completed(copies):
                    done.result()
            except BaseException:
                backup.stop_waiting()
                stop.stop()
                raise

    def _copy_disk(
        self,
        draft: Draft,
        backup: engine.Backup,
        part: engine.BackupDisk,
        disk: engine.Disk,
        chosen: Base,
        stop: copying.Stop,
    ) -> None:
        """
        Copy one disk, through a transfer that ends with it.

        The transfer does not wait for the commit: while the slowest disk is read, the engine would cancel the others'.
        """
        stop.check()
        with backup.transfer(part) as transfer, naming(disk.alias):
            self._copy_transfer(draft, part, disk, chosen, transfer, stop)

    def _copy_transfer(
        self,
        draft: Draft,
        part: engine.BackupDisk,
        disk: engine.Disk,
        chosen: Base,
        transfer: engine.Transfer,
        stop: copying.Stop,
    ) -> None:
        before = chosen.point if chosen.point and disk.id in {old.id for old in chosen.point.disks} else None
        incremental = part.incremental and before is not None and chosen.checkpoint_id is not None
        writer = draft.disk(part.id, part.size, "incremental" if incremental else "full", before)
        started = time.monotonic()
        copied = copying.copy(
            Ladder(self._transports, target_of(transfer), stop.pause),
            writer,
            self._terms(part.size, incremental),
            disk.alias,
            stop,
            self._progress,
        )
        writer.finish(
            alias=disk.alias,
            format=disk.format,
            bootable=disk.bootable,
            interface=disk.interface,
            carriers=copied.carriers,
            dirty=copied.dirty,
            read=copied.read,
            moved=copied.moved,
            seconds=time.monotonic() - started,
        )

    def _terms(self, size: int, incremental: bool) -> copying.Terms:
        """Return how to read a disk of `size` bytes."""
        return copying.Terms(
            size,
            incremental,
            self._repository.settings.window,
            self._options.compression,
            self._options.bytes_per_second,
        )

    def _drop_checkpoints(self, new: Manifest) -> None:
        """
        Delete the checkpoints that `new` has made useless as a base: each costs the VM a bitmap.

        They are those of points whose disks `new` has too, and those that backups into this repository left behind
        when they failed after the engine had made them. Others are somebody else's.
        """
        if new.checkpoint_id is None:
            return
        checkpoints = self._connection.checkpoints(self._vm)
        if new.checkpoint_id not in {checkpoint.id for checkpoint in checkpoints if checkpoint.usable}:
            return
        # Only older ones: a newer one may be of a backup that is still to be committed. As a VM is in one backup at a
        # time, and a backup is committed before it ends, the older ones whose points are not here never get any.
        older = itertools.takewhile(lambda checkpoint: checkpoint.id != new.checkpoint_id, checkpoints)
        covered = {disk.id for disk in new.disks}
        points = self._repository.points(self._vm.id, lambda unreadable: None)
        needed = {point.checkpoint_id for point in points if not covered >= {disk.id for disk in point.disks}}
        named = {point.checkpoint_id for point in points}
        for checkpoint in older:
            ours = checkpoint.id in named or checkpoint.description.startswith(self._description)
            if ours and checkpoint.id not in needed:
                try:
                    self._connection.delete_checkpoint(self._vm, checkpoint.id)
                except errors.Error as error:
                    self._progress.warn(f"An old checkpoint stays for now: {error.message}")


def _after_commit(point: Manifest, error: errors.Error | KeyboardInterrupt) -> errors.Error:
    """Return the error of a backup whose recovery point is there all the same."""
    if isinstance(error, KeyboardInterrupt):
        return errors.Interrupted(
            f"Recovery point {point.id} is complete. A signal stopped what comes after it.",
            "The next backup of this VM ends what is still open in the engine.",
        )
    return errors.EngineError(
        f"Recovery point {point.id} is complete, but its backup did not end well: {error.message}", error.hint
    )


# What may go wrong between a disk and the controller. These classes are made of a message and a hint.
_DATA_PATH = (errors.TransportError, agent_errors.BitmapMissing, agent_errors.SourceError)


@contextlib.contextmanager
def naming(alias: str) -> Iterator[None]:
    """Put the disk's name before the errors of its data path: transports know transfers and sockets only."""
    try:
        yield
    except _DATA_PATH as error:
        raise type(error)(f"Disk {alias}: {error.message}", error.hint) from error


def target_of(transfer: engine.Transfer) -> Target:
    """Return what a transport needs to know of a transfer."""
    return Target(
        host_name=transfer.host.name,
        host_address=transfer.host.address,
        transfer_id=transfer.id,
        ticket_id=transfer.ticket_id,
        transfer_url=transfer.transfer_url,
        proxy_url=transfer.proxy_url,
        size=transfer.size,
    )
