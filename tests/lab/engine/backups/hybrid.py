"""
Hybrid backup: a snapshot freezes the disks for reading, and is merged away at the end (HybridBackupCommand).

    before              ready                      after finalize
    base: C1            base: C1 (frozen, read)    base: C1 (merged), C2
                        overlay: C1, C2 (guest)
"""

from __future__ import annotations

import contextlib

from tests.lab.engine import model
from tests.lab.engine.backups.mode import Mode
from tests.lab.engine.database import new_id
from tests.lab.engine.model import BackupPhase
from tests.lab.errors import HostError

DESCRIPTION = "Auto-generated for Backup VM"


class Hybrid(Mode):
    _snapshot: model.Snapshot | None = None

    def lock(self) -> None:
        for disk in self.disks():
            disk.locked_in_memory = True

    def unlock(self) -> None:
        for disk in self.disks():
            disk.locked_in_memory = False

    def start(self) -> None:
        self._snapshot_event(45)
        self.enter(BackupPhase.STARTING)
        try:
            snapshot = self._create_snapshot()
        except HostError:
            self._snapshot_event(117)
            raise
        self._snapshot_event(68)
        # Raw disks are members too, for now: their active layer is qcow2.
        self.add_checkpoint(list(self.backup.disks))
        for disk in self.backup.disks.values():
            disk.volume = snapshot.volumes[disk.disk_id]
        self.enter(BackupPhase.READY, to_checkpoint_id=self.checkpoint_id, snapshot_id=snapshot.id)

    def stop(self) -> None:
        """A merge that fails leaves the snapshot behind; the backup has succeeded all the same (since 4.5.1)."""
        try:
            self.enter(BackupPhase.REMOVING_SNAPSHOT)
            self._merge()
        except HostError:
            self._snapshot_event(357)
            self.event(10813)

    def undo(self) -> None:
        with contextlib.suppress(HostError):
            self._merge()
        self.checkpoints.drop(self.checkpoint_id)

    def _create_snapshot(self) -> model.Snapshot:
        overlays = {disk_id: new_id() for disk_id in self.backup.disks}
        snapshot = model.Snapshot(id=new_id(), vm_id=self.vm.id, description=DESCRIPTION)
        with self.db.changed:
            self.db.snapshots[snapshot.id] = snapshot
        try:
            self.vm.host.create_snapshot(self.vm.id, overlays, self.checkpoint_id)
        except HostError:
            with self.db.changed:
                del self.db.snapshots[snapshot.id]
            raise
        with self.db.changed:
            for disk in self.disks():
                snapshot.volumes[disk.id] = disk.active
                path = self.vm.host.volume_path(disk.id, overlays[disk.id])
                disk.volumes.append(model.Volume(overlays[disk.id], path, "cow"))
            snapshot.status = "ok"
        self._snapshot = snapshot
        return snapshot

    def _merge(self) -> None:
        snapshot = self._snapshot
        if snapshot is None:
            return
        self._snapshot_event(342)
        self.vm.host.merge_snapshot(self.vm.id, list(snapshot.volumes))
        with self.db.changed:
            for disk in self.disks():
                disk.volumes.pop()
                if disk.format == "raw":
                    self.checkpoints.forget_disk(self.vm.id, disk.id)
            del self.db.snapshots[snapshot.id]
        self._snapshot = None
        self._snapshot_event(356)

    def _snapshot_event(self, code: int) -> None:
        self.event(code, snapshot=DESCRIPTION)
