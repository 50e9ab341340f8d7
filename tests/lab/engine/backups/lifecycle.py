"""
Starting and finalizing backups, and following them in between.
"""

from __future__ import annotations

import contextlib

from tests.lab.engine import model, rejections
from tests.lab.engine.backups import validation
from tests.lab.engine.backups.cold import Cold
from tests.lab.engine.backups.hybrid import Hybrid
from tests.lab.engine.backups.live import Live
from tests.lab.engine.backups.mode import Aborted, Mode
from tests.lab.engine.checkpoints import Checkpoints
from tests.lab.engine.context import Context
from tests.lab.engine.database import new_id
from tests.lab.engine.model import BackupKind, BackupPhase
from tests.lab.engine.vms import Vms
from tests.lab.errors import HostError

_MODES: dict[BackupKind, type[Mode]] = {
    BackupKind.LIVE: Live,
    BackupKind.COLD: Cold,
    BackupKind.HYBRID: Hybrid,
}


class Backups:
    def __init__(self, context: Context, vms: Vms, checkpoints: Checkpoints) -> None:
        self._context = context
        self._db = context.db
        self._vms = vms
        self._checkpoints = checkpoints

    def find(self, vm_id: str, backup_id: str) -> model.Backup:
        """Raises NotFound."""
        self._vms.find(vm_id)
        backup = self._db.backups.get(backup_id)
        if backup is None or backup.vm_id != vm_id:
            raise rejections.NotFound
        return backup

    def start(self, vm_id: str, request: validation.Request, correlation_id: str) -> model.Backup:
        """Returns as soon as the command was accepted; the phases follow. Raises Rejection."""
        with self._db.changed:
            vm = self._vms.find(vm_id)
            validation.check(self._db, vm, request)
            backup = self._row(vm, request, correlation_id)
            mode = _MODES[backup.kind](self._context, self._checkpoints, vm, backup)
            mode.lock()
            self._db.backups[backup.id] = backup
        try:
            mode.prepare()
        except rejections.Rejection:
            self._fail(mode, 10792)
            raise
        mode.event(10790)
        self._context.workers.start(f"Backing up VM {vm.name}", lambda: self._follow(mode), correlation_id)
        return backup

    def finalize(self, vm_id: str, backup_id: str, correlation_id: str) -> None:
        """Ask for the end of a backup; the phases follow. Raises Rejection."""
        with self._db.changed:
            backup = self.find(vm_id, backup_id)
            vm = self._vms.find(vm_id)
            if backup.phase in model.UNFINISHED_BEFORE_READY:
                # A premature stop is the way to give up: the worker cleans up.
                backup.phase = BackupPhase.FINALIZING_FAILURE
                self._db.changed.notify_all()
                raise rejections.BadParameters(
                    f"vm '{vm_id}' backup '{backup_id}' is not in ready phase, the backup will be aborted"
                )
            if backup.phase is not BackupPhase.READY:
                raise rejections.BadParameters(
                    f"vm '{vm_id}' backup '{backup_id}' is already in '{backup.phase.name.lower()}' phase,"
                    " no need to stop the backup again"
                )
            if any(
                transfer.backup_id == backup_id and not transfer.phase.finished
                for transfer in self._db.transfers.values()
            ):
                raise rejections.Conflict("Cannot stop VM backup. There is an active image transfer for VM backup")
            backup.phase = BackupPhase.FINALIZING
            backup.modified = model.now()
            self._db.changed.notify_all()
        code = 10796 if backup.kind is BackupKind.HYBRID else 10794
        self._context.events.add(code, vm, correlation_id, backup=backup_id)

    def fail_unmonitored(self) -> None:
        """
        What a restarted engine does to backups whose ids clients chose: they are marked as failed, though the host
        still runs them (since 4.5.3).
        """
        with self._db.changed:
            for backup in self._db.backups.values():
                if backup.unmonitored_after_restart and not backup.finished:
                    backup.phase = BackupPhase.FAILED
                    vm = self._db.vms[backup.vm_id]
                    self._context.events.add(10814, vm, backup=backup.id)

    def _row(self, vm: model.Vm, request: validation.Request, correlation_id: str) -> model.Backup:
        base = self._db.checkpoints.get(request.from_checkpoint_id or "")
        return model.Backup(
            id=request.id or new_id(),
            vm_id=vm.id,
            kind=self._kind(vm, request.legacy),
            # Shareable disks are left out without a word.
            disks={
                disk_id: model.BackupDisk(disk_id, "incremental" if base and disk_id in base.disk_ids else "full")
                for disk_id in request.disk_ids
                if not self._db.disks[disk_id].shareable
            },
            from_checkpoint_id=request.from_checkpoint_id,
            description=request.description,
            correlation_id=correlation_id,
            require_consistency=request.require_consistency,
            unmonitored_after_restart=request.id is not None,
        )

    def _kind(self, vm: model.Vm, legacy: bool) -> BackupKind:
        if self._db.clusters[vm.cluster_id].hybrid_by_default and not legacy:
            return BackupKind.HYBRID
        return BackupKind.LIVE if vm.status == "up" else BackupKind.COLD

    def _follow(self, mode: Mode) -> None:
        """The worker of one backup."""
        try:
            mode.start()
        except (HostError, Aborted):
            self._fail(mode, 10792)
            return
        backup = mode.backup
        self._context.workers.wait(lambda: backup.phase is not BackupPhase.READY)
        if backup.finished:
            return
        try:
            mode.stop()
        except HostError:
            self._fail(mode, 10792)
            return
        self._context.workers.wait(lambda: not self._context.faults.holds(BackupPhase.SUCCEEDED.shown))
        with self._db.changed:
            mode.unlock()
            mode.set_phase(BackupPhase.SUCCEEDED)
        mode.event(10793)

    def _fail(self, mode: Mode, code: int) -> None:
        """End a backup as failed: undo what was done, give the disks back."""
        mode.set_phase(BackupPhase.FINALIZING_FAILURE)
        with contextlib.suppress(HostError):
            mode.undo()
        with self._db.changed:
            mode.unlock()
            mode.set_phase(BackupPhase.FAILED)
        mode.event(code)
