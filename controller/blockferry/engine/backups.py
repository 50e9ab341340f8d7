"""
One backup of one VM, from its start to its sure end.

    with backups.run(session, request, journal) as backup:
        with backup.transfer(backup.disks[0]) as transfer:
            ...

Leaving a `with` block finalizes; leaving it with an exception, any exception, cancels the transfer or gives the backup
up. What goes wrong while giving up is logged, never raised in place of the first error.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

from ovirtsdk4 import types

from blockferry import errors
from blockferry.engine import ending, events, inventory, polling, records, starting, transfers
from blockferry.engine.model import BackupDisk, Journal, JournalEntry, Mode, Transfer
from blockferry.engine.session import Session

log = logging.getLogger(__name__)


class Backup:
    """
    A backup that is ready to be read. Transfers of its disks may be opened from several threads.

    mode: how it runs, whatever was asked for.
    to_checkpoint_id: what the next backup can start from once this one has ended well; None when there is none
    (a live or cold backup of raw disks only).
    """

    def __init__(
        self,
        session: Session,
        request: starting.Request,
        journal: Journal,
        *,
        backup_id: str,
        mode: Mode,
        to_checkpoint_id: str | None,
        disks: list[BackupDisk],
    ) -> None:
        self.id = backup_id
        self.vm = request.vm
        self.description = request.description
        self.mode = mode
        self.to_checkpoint_id = to_checkpoint_id
        self.disks = disks
        self._session = session
        self._request = request
        self._journal = journal
        self._patience = polling.Patience()
        self._open: set[str] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def transfer(self, disk: BackupDisk) -> Iterator[Transfer]:
        """
        Open the way to one disk; leaving the block ends it.

        Raises CheckpointUnusable when the disk's bitmap cannot be served (cold and hybrid: it shows only now), and
        Interrupted after `stop_waiting`.
        """
        self._check_vm()
        correlation_id = events.new_correlation_id()
        transfer_id = transfers.request(self._session, self.id, disk, correlation_id)
        self._opened(transfer_id)
        try:
            yield self._wait_for_ticket(transfer_id, disk, correlation_id)
            transfers.finalize(self._session, transfer_id)
        except BaseException:
            with aside():
                transfers.cancel(self._session, transfer_id)
            raise
        finally:
            self._closed(transfer_id)

    def stop_waiting(self) -> None:
        """Let threads that wait for a transfer, and those that will, raise Interrupted at once. From any thread."""
        self._patience.end()

    def finish(self) -> None:
        """End a backup that was read. Raises EngineError when the engine says that it failed after all."""
        self._cancel_open()
        outcome = ending.end(
            self._session,
            self.vm.id,
            self.id,
            deadline=self._session.deadlines.finalize,
            correlation_id=self._request.correlation_id,
        )
        if outcome == "failed" or (outcome == "gone" and not self._has_checkpoint()):
            raise errors.EngineError(
                f"Backup {self.id} of VM '{self.vm.name}' failed while it was finalized, so its checkpoint does not"
                f" exist.{events.explanation(self._session, self._request.correlation_id)}",
                "Run the backup again. If this was a live backup, see whether the VM stopped meanwhile.",
            )
        self._name_left_snapshot()

    def give_up(self) -> None:
        """End a backup that is of no use any more; once the engine finalizes it, it does not need us for that."""
        self._cancel_open()
        deadlines = self._session.deadlines
        with contextlib.suppress(ending.StillFinalizing):
            ending.end(self._session, self.vm.id, self.id, deadline=deadlines.give_up, linger=deadlines.linger)

    def _name_left_snapshot(self) -> None:
        """The engine calls a hybrid backup a success even when it could not merge its snapshot away."""
        if self.mode == "hybrid" and events.tell_of(self._session, self._request.correlation_id, events.SNAPSHOT_LEFT):
            log.warning(
                "The backup of VM '%s' succeeded, but the engine may have left its snapshot behind: delete the VM's"
                " snapshots named 'Auto-generated for Backup VM' in the engine, or its disks' chains grow.",
                self.vm.name,
            )

    def _check_vm(self) -> None:
        """A live backup lives in the VM's QEMU; the engine calls it ready even when that is gone."""
        if self.mode == "live" and (status := inventory.vm_status(self._session, self.vm)) == "down":
            raise errors.EngineError(
                f"VM '{self.vm.name}' is {status} since its live backup started, and the backup is gone with it.",
                "Run the backup again: it will be a cold one.",
            )

    def _wait_for_ticket(self, transfer_id: str, disk: BackupDisk, correlation_id: str) -> Transfer:
        try:
            return transfers.wait_for_ticket(self._session, transfer_id, disk, correlation_id, self._patience)
        except transfers.Lost as lost:
            if disk.incremental and self.mode != "live":
                # qemu-nbd starts with the transfer, and does not when the bitmap is broken or missing.
                raise starting.unusable(self._request, lost.message) from lost
            raise

    def _opened(self, transfer_id: str) -> None:
        with self._lock:
            self._open.add(transfer_id)
        self._journal(JournalEntry(self.vm.id, self.description, self.id, transfer_id))

    def _closed(self, transfer_id: str) -> None:
        with self._lock:
            self._open.discard(transfer_id)

    def _cancel_open(self) -> None:
        """End transfers whose threads have not come to it; the engine finalizes no backup with an open transfer."""
        with self._lock:
            still_open = sorted(self._open)
        for transfer_id in still_open:
            transfers.cancel(self._session, transfer_id)
            self._closed(transfer_id)

    def _has_checkpoint(self) -> bool:
        """Engines before 4.4.7.6 forget a backup at its end: whether it was a good one, its checkpoint tells."""
        if self.to_checkpoint_id is None:
            return True
        known = inventory.checkpoints(self._session, self.vm)
        return any(checkpoint.id == self.to_checkpoint_id and checkpoint.usable for checkpoint in known)


@contextlib.contextmanager
def run(session: Session, request: starting.Request, journal: Journal) -> Iterator[Backup]:
    """Start a backup and wait until it is ready; leaving the block ends it. See Connection.backup."""
    vm_id = request.vm.id
    backup_id = None
    journal(JournalEntry(vm_id, request.description))
    try:
        backup_id, vm_status = starting.start(session, request)
        journal(JournalEntry(vm_id, request.description, backup_id))
        record = _wait_ready(session, request, backup_id)
        backup = Backup(
            session,
            request,
            journal,
            backup_id=backup_id,
            mode=_mode(record, vm_status),
            to_checkpoint_id=record.to_checkpoint_id,
            disks=_disks(session, request, backup_id),
        )
    except BaseException:
        with aside():
            abandon(session, vm_id, backup_id, request.description)
        raise
    try:
        yield backup
        backup.finish()
    except ending.StillFinalizing:
        raise
    except BaseException:
        with aside():
            backup.give_up()
        raise


def abandon(session: Session, vm_id: str, backup_id: str | None, description: str) -> None:
    """End what is left of a backup; see Connection.abandon."""
    try:
        backup_id = backup_id or records.find(session, vm_id, description)
    except errors.NotFound:
        return  # the VM is gone, and its backups with it
    if backup_id is not None:
        ending.end(session, vm_id, backup_id, deadline=session.deadlines.give_up)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Clean up after an error, which stays the one that is raised: what goes wrong here is logged."""
    try:
        yield
    except errors.Error as second:
        log.warning("%s", second)


def _wait_ready(session: Session, request: starting.Request, backup_id: str) -> Any:
    """Return the engine's record of the backup once its phase is ready."""
    phase = ""
    for _ in polling.ticks(session.deadlines.ready):
        try:
            record = session.ask(
                "read a backup",
                lambda api: (
                    api.vms_service().vm_service(request.vm.id).backups_service().backup_service(backup_id).get()
                ),
            )
        except errors.NotFound:
            phase = "failed"  # engines before 4.4.7.6 have no such phase, but forget the backup
        else:
            phase = records.phase(record)
        if phase == "ready":
            return record
        if phase in ("finalizing", *records.FINAL_PHASES):
            raise _start_failed(session, request, backup_id, phase)
    raise errors.EngineError(
        f"Backup {backup_id} of VM '{request.vm.name}' did not become ready within {session.deadlines.ready:g} s: its"
        f" phase is '{phase}'.{events.explanation(session, request.correlation_id)}",
        "See the engine's events and its log, /var/log/ovirt-engine/engine.log.",
    )


def _start_failed(session: Session, request: starting.Request, backup_id: str, phase: str) -> errors.EngineError:
    reason = (
        f"Backup {backup_id} of VM '{request.vm.name}' ended before it was ready (phase {phase})."
        f"{events.explanation(session, request.correlation_id)}"
    )
    if request.since is not None:
        # Nothing tells a broken bitmap from other reasons; a full backup works for the first and fails for the others.
        return starting.unusable(request, reason)
    return errors.EngineError(reason, "See the engine's events and, on the host, the log of vdsm.")


def _mode(record: types.Backup, vm_status: str) -> Mode:
    if record.snapshot is not None:
        return "hybrid"
    return "cold" if vm_status == "down" else "live"


def _disks(session: Session, request: starting.Request, backup_id: str) -> list[BackupDisk]:
    """Return the disks that are in the backup; raise EngineError when the engine left one out without a word."""
    found = session.ask(
        "list a backup's disks",
        lambda api: (
            api.vms_service()
            .vm_service(request.vm.id)
            .backups_service()
            .backup_service(backup_id)
            .disks_service()
            .list()
        ),
    )
    by_id = {disk.id: disk for disk in found}
    if missing := [disk for disk in request.disks if disk.id not in by_id]:
        names = ", ".join(f"'{disk.alias}' ({disk.id})" for disk in missing)
        raise errors.EngineError(
            f"The engine left these disks of VM '{request.vm.name}' out of the backup: {names}.",
            "Shareable disks and direct LUNs cannot be backed up: leave them out.",
        )
    return [
        BackupDisk(
            id=disk.id,
            alias=disk.alias,
            size=by_id[disk.id].provisioned_size,
            # An engine that does not say (before 4.4.3.8) gets a full read, which is never wrong.
            incremental=by_id[disk.id].backup_mode == types.DiskBackupMode.INCREMENTAL,
        )
        for disk in request.disks
    ]
