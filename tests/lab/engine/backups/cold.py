"""
Cold backup: the VM is down, and every transfer starts its own NBD server (StartVmBackupCommand, VmBackupType.Cold).
"""

from __future__ import annotations

from tests.lab.engine import model
from tests.lab.engine.backups.mode import Mode
from tests.lab.engine.model import BackupPhase


class Cold(Mode):
    def lock(self) -> None:
        for disk in self.disks():
            disk.status = model.DiskStatus.LOCKED
            self.backup.disks[disk.id].volume = disk.active

    def unlock(self) -> None:
        for disk in self.disks():
            disk.status = model.DiskStatus.OK

    def prepare(self) -> None:
        members = [disk.id for disk in self.disks() if disk.format == "cow"]
        if members:
            self.add_checkpoint(members)

    def start(self) -> None:
        checkpoint = self.db.checkpoints.get(self.checkpoint_id)
        self.enter(BackupPhase.ADDING_BITMAPS)
        if checkpoint:
            for disk_id in checkpoint.disk_ids:
                self.vm.host.add_bitmap(self.db.disks[disk_id].active.path, checkpoint.id)
        self.enter(BackupPhase.WAITING_FOR_BITMAPS)
        self.enter(BackupPhase.READY, to_checkpoint_id=checkpoint.id if checkpoint else None)

    def stop(self) -> None:
        """Nothing runs on the host: transfers have stopped their NBD servers themselves."""

    def undo(self) -> None:
        """Like the engine, leave bitmaps that were added already."""
        self.checkpoints.drop(self.checkpoint_id)
