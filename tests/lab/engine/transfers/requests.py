"""
What clients ask for: new transfers, and actions on them.
"""

from __future__ import annotations

import dataclasses

from tests.lab.engine import model, rejections
from tests.lab.engine.context import Context
from tests.lab.engine.database import new_id
from tests.lab.engine.disks import Disks
from tests.lab.engine.model import BackupPhase, TransferPhase
from tests.lab.engine.transfers.monitor import Monitor
from tests.lab.engine.transfers.session import Session
from tests.lab.host import Host


@dataclasses.dataclass(frozen=True)
class Request:
    """
    A transfer as a client asks for it. None: the engine's default.  inactivity_timeout: seconds.
    """

    disk_id: str
    direction: str
    format: str | None
    backup_id: str | None
    inactivity_timeout: int | None
    timeout_policy: str
    shallow: bool
    host_id: str | None


class Transfers:
    def __init__(self, context: Context, disks: Disks) -> None:
        self._context = context
        self._db = context.db
        self._disks = disks

    def find(self, transfer_id: str) -> model.Transfer:
        """Raises NotFound."""
        transfer = self._db.transfers.get(transfer_id)
        if transfer is None:
            raise rejections.NotFound
        return transfer

    def add(self, request: Request, correlation_id: str) -> model.Transfer:
        """Start a transfer. Raises Rejection."""
        with self._db.changed:
            disk = self._db.disks.get(request.disk_id)
            if disk is None:
                raise rejections.BadParameters("Cannot transfer Virtual Disk. The specified disk does not exist.")
            if request.backup_id is not None:
                self._check_backup(request.backup_id, request.format)
            else:
                self._check_plain(disk)
            if self._db.unfinished_transfer(disk.id):
                raise rejections.Conflict(f"Cannot transfer Virtual Disk: Disk {disk.alias} is being transferred.")
            if request.backup_id is None:
                disk.status = model.DiskStatus.LOCKED
            transfer = self._row(request, disk, correlation_id)
            session = Session(self._context, transfer, self._host(request))
            monitor = Monitor(self._context, self._disks, transfer, session)
            self._db.transfers[transfer.id] = transfer
        self._context.events.add(1031, None, correlation_id, transfer=request.direction.capitalize(), disk=disk.alias)
        self._context.workers.start(
            f"{request.direction.capitalize()}ing disk {disk.alias}", monitor.run, correlation_id
        )
        return transfer

    # Actions. An unknown id and a transition that makes no sense are answered like success, as in the engine.

    def finalize(self, transfer_id: str) -> None:
        with self._db.changed:
            transfer = self._db.transfers.get(transfer_id)
            if transfer and not transfer.phase.finished and not _is_ending(transfer.phase):
                self._set(transfer, TransferPhase.FINALIZING_SUCCESS)

    def cancel(self, transfer_id: str) -> None:
        with self._db.changed:
            transfer = self._db.transfers.get(transfer_id)
            if transfer and not transfer.phase.finished and not _is_ending(transfer.phase):
                self._set(transfer, TransferPhase.CANCELLED_USER)

    def pause(self, transfer_id: str, correlation_id: str) -> None:
        with self._db.changed:
            transfer = self._db.transfers.get(transfer_id)
            if transfer and transfer.direction == "download":
                raise rejections.BadParameters(
                    "Cannot pause image download as it's handled by the client."
                    " Note that it can be canceled if you wish to stop it."
                )
            if transfer and transfer.phase is TransferPhase.TRANSFERRING:
                self._set(transfer, TransferPhase.PAUSED_USER)
                self._event(1073, transfer, correlation_id)

    def resume(self, transfer_id: str, correlation_id: str) -> None:
        with self._db.changed:
            transfer = self._db.transfers.get(transfer_id)
            if transfer is None:
                return
            if not transfer.phase.paused:
                raise rejections.Conflict("Cannot resume image transfer as it's not in a paused state.")
            self._set(transfer, TransferPhase.RESUMING)
            self._event(1074, transfer, correlation_id)

    def extend(self, transfer_id: str) -> None:
        """Touches the record only: neither the ticket nor its idle time change."""
        with self._db.changed:
            transfer = self._db.transfers.get(transfer_id)
            if transfer:
                transfer.modified = model.now()

    def _row(self, request: Request, disk: model.Disk, correlation_id: str) -> model.Transfer:
        timeout = request.inactivity_timeout
        if timeout is None:
            timeout = self._context.settings.client_inactivity_timeout
        return model.Transfer(
            id=new_id(),
            disk_id=disk.id,
            direction=request.direction,
            format="raw" if request.backup_id else request.format or disk.format,
            backup_id=request.backup_id,
            inactivity_timeout=timeout,
            timeout_policy=request.timeout_policy,
            shallow=request.shallow,
            correlation_id=correlation_id,
        )

    def _check_backup(self, backup_id: str, format: str | None) -> None:
        backup = self._db.backups.get(backup_id)
        if backup is None:
            raise rejections.BadParameters("Cannot transfer Virtual Disk. The specified VM backup does not exist.")
        if backup.phase is not BackupPhase.READY:
            raise rejections.Conflict(
                "Cannot transfer Virtual Disk. The VM backup is not in READY phase,"
                f" backup phase is {backup.phase.name}."
            )
        if format == "cow":
            raise rejections.BadParameters(
                "Cannot transfer Virtual Disk. The specified format is not applicable for VM backup."
            )

    def _check_plain(self, disk: model.Disk) -> None:
        running = [vm.name for vm, _ in self._db.owners_of(disk.id) if vm.status != "down"]
        if running:
            raise rejections.Conflict(
                f"Cannot transfer Virtual Disk. The disk {disk.alias} is plugged to non-Down VMs: {', '.join(running)}"
            )
        if disk.status is model.DiskStatus.LOCKED and not self._db.unfinished_transfer(disk.id):
            raise rejections.Conflict(
                f"Cannot transfer Virtual Disk: The following disks are locked: {disk.alias}."
                " Please try again in a few minutes."
            )

    def _host(self, request: Request) -> Host:
        """A live backup is read on the VM's host, the rest where the client wants it, or anywhere."""
        backup = self._db.backups.get(request.backup_id or "")
        if backup is not None:
            return self._db.vms[backup.vm_id].host
        row = self._db.hosts.get(request.host_id or "")
        return row.host if row else self._db.spm

    def _event(self, code: int, transfer: model.Transfer, correlation_id: str) -> None:
        disk = self._db.disks[transfer.disk_id]
        self._context.events.add(code, None, correlation_id, disk=disk.alias)

    def _set(self, transfer: model.Transfer, phase: TransferPhase) -> None:
        transfer.phase = phase
        transfer.modified = model.now()
        self._db.changed.notify_all()


def _is_ending(phase: TransferPhase) -> bool:
    """The monitor is cleaning up already."""
    return phase in (
        TransferPhase.FINALIZING_SUCCESS,
        TransferPhase.FINALIZING_FAILURE,
        TransferPhase.FINALIZING_CLEANUP,
    )
