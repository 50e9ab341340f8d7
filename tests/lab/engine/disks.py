"""
Disks: creating, removing, and who may touch them.
"""

from __future__ import annotations

import dataclasses

from tests.lab.engine import model, rejections
from tests.lab.engine.context import Context
from tests.lab.engine.database import new_id
from tests.lab.engine.vms import Vms


@dataclasses.dataclass(frozen=True)
class NewDisk:
    """
    A disk as a client asks for it. id: chosen by the client, or None.  provisioned_size: bytes.
    """

    id: str | None
    alias: str
    format: str
    provisioned_size: int
    sparse: bool
    backup: str
    description: str
    storage_domain_id: str


class Disks:
    def __init__(self, context: Context, vms: Vms) -> None:
        self._context = context
        self._db = context.db
        self._vms = vms

    def find(self, disk_id: str) -> model.Disk:
        """Raises NotFound."""
        disk = self._db.disks.get(disk_id)
        if disk is None:
            raise rejections.NotFound
        return disk

    def add(self, new: NewDisk, correlation_id: str) -> model.Disk:
        """Create a floating disk. It is locked until its volume is there."""
        host = self._db.spm
        with self._db.changed:
            self._check(new)
            disk_id = new.id or new_id()
            volume_id = new_id()
            volume = model.Volume(volume_id, host.volume_path(disk_id, volume_id), new.format)
            disk = model.Disk(
                id=disk_id,
                alias=new.alias,
                provisioned_size=new.provisioned_size,
                storage_domain_id=new.storage_domain_id,
                volumes=[volume],
                backup=new.backup,
                description=new.description,
                sparse=new.sparse,
                status=model.DiskStatus.LOCKED,
            )
            self._db.disks[disk.id] = disk

        def create() -> None:
            host.create_volume(volume.path, volume.qemu_format, disk.provisioned_size)
            with self._db.changed:
                disk.status = model.DiskStatus.OK
                self._db.changed.notify_all()

        self._context.workers.start(f"Adding Disk {disk.alias}", create, correlation_id)
        return disk

    def extend(self, disk_id: str, size: int, correlation_id: str) -> None:
        """Make a disk of a VM larger, running or not. It is locked meanwhile. size: bytes."""
        with self._db.changed:
            disk = self.find(disk_id)
            if disk.status is model.DiskStatus.LOCKED or disk.locked_in_memory:
                raise rejections.Conflict(
                    f"Cannot edit Virtual Disk: The following disks are locked: {disk.alias}."
                    " Please try again in a few minutes."
                )
            if size < disk.provisioned_size:
                raise rejections.BadParameters("Cannot edit Virtual Disk. New disk size cannot be smaller than before.")
            (vm, _), *_ = self._db.owners_of(disk_id)
            disk.status = model.DiskStatus.LOCKED

        def extend() -> None:
            try:
                vm.host.extend_disk(vm.id, disk_id, size)
                disk.provisioned_size = size
            finally:
                with self._db.changed:
                    disk.status = model.DiskStatus.OK
                    self._db.changed.notify_all()

        self._context.workers.start(f"Extending Disk {disk.alias}", extend, correlation_id)

    def remove(self, disk_id: str) -> None:
        """Raises Conflict while the disk is locked or belongs to a running VM."""
        with self._db.changed:
            disk = self.find(disk_id)
            if disk.status is model.DiskStatus.LOCKED or disk.locked_in_memory:
                raise rejections.Conflict(
                    f"Cannot remove Virtual Disk: The following disks are locked: {disk.alias}."
                    " Please try again in a few minutes."
                )
            running = [vm for vm, _ in self._db.owners_of(disk_id) if vm.status != "down"]
            if running:
                raise rejections.Conflict("Cannot remove Virtual Disk. At least one of the VMs is not down.")
        self.drop(disk)

    def drop(self, disk: model.Disk) -> None:
        """Remove a disk whatever its status is: rows, attachments, checkpoints' share, volumes."""
        with self._db.changed:
            for vm, _ in self._db.owners_of(disk.id):
                self._vms.detach(vm, disk.id)
            self._db.disks.pop(disk.id, None)
        host = self._db.spm
        for volume in disk.volumes:
            host.remove_volume(volume.path)

    def _check(self, new: NewDisk) -> None:
        existing = self._db.disks.get(new.id or "")
        if existing:
            raise rejections.BadParameters(
                f"Cannot add Virtual Disk. The selected disk ID: {new.id} is already used by the following"
                f" existing disk: {existing.alias}."
            )
        allocation = "Sparse" if new.sparse else "Preallocated"
        incremental = new.backup == "incremental"
        if (new.format == "raw" and incremental) or (new.format == "cow" and not new.sparse and not incremental):
            raise rejections.BadParameters(
                f"Cannot add Virtual Disk. Disk configuration ({new.format.upper()} {allocation}"
                f" backup-{new.backup.capitalize()}) is incompatible with the storage domain type."
            )
