"""
Live backup: the VM's own QEMU serves the disks while the guest runs (StartVmBackupCommand).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.lab import backups as host_backups
from tests.lab.engine import model, rejections
from tests.lab.engine.backups.mode import Mode
from tests.lab.engine.database import new_id
from tests.lab.engine.model import BackupPhase
from tests.lab.errors import BACKUP_ERROR, HostError


class Live(Mode):
    _scratch: dict[str, Path]
    _begun = False

    def lock(self) -> None:
        self._scratch = {}
        self.backup.host = self.vm.host
        for disk in self.disks():
            disk.status = model.DiskStatus.LOCKED

    def unlock(self) -> None:
        for disk in self.disks():
            disk.status = model.DiskStatus.OK

    def prepare(self) -> None:
        """Redefine the base checkpoint. When that fails all checkpoints of the VM are gone: a full backup is needed."""
        base = self.db.checkpoints.get(self.backup.from_checkpoint_id or "")
        if base is not None:
            try:
                self.checkpoints.redefine_base(self.vm, base)
            except HostError as error:
                self.checkpoints.wipe(self.vm)
                self.event(10791)
                raise rejections.BadParameters from error
        members = [disk.id for disk in self.disks() if disk.format == "cow"]
        if members:
            self.add_checkpoint(members)

    def start(self) -> None:
        self.enter(BackupPhase.CREATING_SCRATCH_DISKS)
        self.event(10799)
        try:
            self._create_scratch_disks()
        except HostError:
            self.event(10806)
            raise
        self.event(10805)
        self.enter(BackupPhase.STARTING)
        checkpoint = self.db.checkpoints.get(self.checkpoint_id)
        for disk_id, url in self._begin(checkpoint).items():
            self.backup.disks[disk_id].url = url
        self.enter(BackupPhase.READY, to_checkpoint_id=checkpoint.id if checkpoint else None)

    def stop(self) -> None:
        self.vm.host.stop_backup(self.vm.id, self.backup.id)
        self._begun = False
        self._remove_scratch_disks()

    def undo(self) -> None:
        if self._begun:
            with contextlib.suppress(HostError):
                self.vm.host.stop_backup(self.vm.id, self.backup.id)
        self._remove_scratch_disks()
        self.checkpoints.drop(self.checkpoint_id)

    def _begin(self, checkpoint: model.Checkpoint | None) -> dict[str, str]:
        """Begin the backup on the host. Returns the NBD URL of each disk."""
        if self.context.faults.fails("start"):
            raise HostError("internal error: unable to execute QEMU command 'transaction'", BACKUP_ERROR)
        members = checkpoint.disk_ids if checkpoint else []
        urls = self.vm.host.start_backup(
            self.vm.id,
            self.backup.id,
            [
                host_backups.BackupDisk(
                    disk_id=disk.disk_id,
                    checkpoint=disk.disk_id in members,
                    mode=disk.mode,
                    scratch=self._scratch[disk.disk_id],
                )
                for disk in self.backup.disks.values()
            ],
            from_checkpoint=self.backup.from_checkpoint_id,
            to_checkpoint=checkpoint.id if checkpoint else None,
            require_consistency=self.backup.require_consistency,
        )
        self._begun = True
        return urls

    def _create_scratch_disks(self) -> None:
        for disk in self.disks():
            path = self.vm.host.volume_path(new_id(), new_id())
            self._scratch[disk.id] = path
            self.vm.host.create_volume(path, "qcow2", disk.provisioned_size)

    def _remove_scratch_disks(self) -> None:
        for path in self._scratch.values():
            self.vm.host.remove_volume(path)
