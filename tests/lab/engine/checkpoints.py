"""
Checkpoints: the engine's record of the bitmaps in a VM's disks.

The record is made before the host makes the bitmaps, and it is dropped when that fails. libvirt forgets checkpoints
when a VM stops; the record is what they are redefined from.
"""

from __future__ import annotations

import contextlib

from tests.lab import backups as host_backups
from tests.lab.engine import model, rejections
from tests.lab.engine.context import Context
from tests.lab.engine.vms import Vms
from tests.lab.errors import INCONSISTENT_CHECKPOINT, HostError


class Checkpoints:
    def __init__(self, context: Context, vms: Vms) -> None:
        self._context = context
        self._db = context.db
        self._vms = vms

    def find(self, vm_id: str, checkpoint_id: str) -> model.Checkpoint:
        """Raises NotFound."""
        self._vms.find(vm_id)
        checkpoint = self._db.checkpoints.get(checkpoint_id)
        if checkpoint is None or checkpoint.vm_id != vm_id:
            raise rejections.NotFound
        return checkpoint

    def add(self, checkpoint_id: str, vm_id: str, description: str | None, disk_ids: list[str]) -> model.Checkpoint:
        """Add the new leaf of a VM's chain."""
        with self._db.changed:
            chain = self._db.checkpoints_of(vm_id)
            checkpoint = model.Checkpoint(
                id=checkpoint_id,
                vm_id=vm_id,
                parent_id=chain[-1].id if chain else None,
                description=description,
                disk_ids=disk_ids,
            )
            self._db.checkpoints[checkpoint_id] = checkpoint
            return checkpoint

    def drop(self, checkpoint_id: str) -> None:
        """Forget a checkpoint; its children get its parent. Bitmaps stay where they are."""
        with self._db.changed:
            dropped = self._db.checkpoints.pop(checkpoint_id, None)
            if dropped is None:
                return
            for checkpoint in self._db.checkpoints.values():
                if checkpoint.parent_id == checkpoint_id:
                    checkpoint.parent_id = dropped.parent_id
            self._db.changed.notify_all()

    def forget_disk(self, vm_id: str, disk_id: str) -> None:
        """A disk has lost its bitmaps: no checkpoint has it any more."""
        with self._db.changed:
            for checkpoint in self._db.checkpoints_of(vm_id):
                checkpoint.disk_ids = [each for each in checkpoint.disk_ids if each != disk_id]

    def wipe(self, vm: model.Vm) -> None:
        """Forget all of a VM's checkpoints, on the host as far as that works (DeleteAllVmCheckpoints)."""
        with self._db.changed:
            chain = self._db.checkpoints_of(vm.id)
            for checkpoint in chain:
                del self._db.checkpoints[checkpoint.id]
            self._db.changed.notify_all()
        for checkpoint in chain:
            with contextlib.suppress(HostError):
                vm.host.delete_checkpoint(vm.id, checkpoint.id)

    def redefine(self, vm: model.Vm, checkpoint: model.Checkpoint) -> None:
        """
        Tell libvirt about one checkpoint, unless it knows it. Raises HostError when a bitmap is broken or missing.

        Cluster levels before 4.6 would redefine the whole chain from its root.
        """
        if checkpoint.id in vm.host.list_checkpoints(vm.id):
            return
        vm.host.redefine_checkpoint(
            vm.id,
            host_backups.CheckpointSpec(
                id=checkpoint.id,
                created=int(checkpoint.created.timestamp()),
                disk_ids=tuple(checkpoint.disk_ids),
            ),
        )

    def redefine_base(self, vm: model.Vm, checkpoint: model.Checkpoint) -> None:
        """As redefine, for the base of an incremental backup: a test can make this one fail."""
        if self._context.faults.fails("redefine"):
            raise HostError(
                f"checkpoint inconsistent: missing or broken bitmap '{checkpoint.id}'", INCONSISTENT_CHECKPOINT
            )
        self.redefine(vm, checkpoint)

    def remove(self, vm_id: str, checkpoint_id: str, correlation_id: str) -> None:
        """Delete a checkpoint with its bitmaps, in the background."""
        with self._db.changed:
            vm = self._vms.find(vm_id)
            checkpoint = self._db.checkpoints.get(checkpoint_id)
            if checkpoint is None:
                raise rejections.BadParameters(
                    f"Cannot remove checkpoint. Checkpoint ID {checkpoint_id} doesn't exist."
                )
            if self._db.unfinished_backup(vm_id):
                raise rejections.Conflict("Cannot remove checkpoint. The VM is during a backup operation.")
            locked = [disk.alias for disk in self._db.disks_of(vm) if disk.status is model.DiskStatus.LOCKED]
            if locked:
                raise rejections.Conflict(
                    f"Cannot remove checkpoint: The following disks are locked: {', '.join(locked)}."
                    " Please try again in a few minutes."
                )
            if vm.removing_checkpoint:
                raise rejections.Conflict("Cannot remove checkpoint. The VM is during a checkpoint removal operation.")
            vm.removing_checkpoint = True
        self._context.workers.start(
            f"Removing checkpoint {checkpoint_id} of VM {vm.name}",
            lambda: self._remove(vm, checkpoint, correlation_id),
            correlation_id,
        )

    def _remove(self, vm: model.Vm, checkpoint: model.Checkpoint, correlation_id: str) -> None:
        try:
            self._context.workers.pause(self._context.settings.phase_delay)
            if vm.host.vm_state(vm.id) == "down":
                self._remove_cold(vm, checkpoint)
            else:
                self.redefine(vm, checkpoint)
                vm.host.delete_checkpoint(vm.id, checkpoint.id)
        except HostError:
            self._context.events.add(10798, vm, correlation_id, checkpoint=checkpoint.id)
        else:
            self.drop(checkpoint.id)
            self._context.events.add(10797, vm, correlation_id, checkpoint=checkpoint.id)
        finally:
            with self._db.changed:
                vm.removing_checkpoint = False
                self._db.changed.notify_all()

    def _remove_cold(self, vm: model.Vm, checkpoint: model.Checkpoint) -> None:
        checkpoint.state = "invalid"
        for disk_id in checkpoint.disk_ids:
            for volume in self._db.disks[disk_id].volumes:
                if volume.format == "cow":
                    vm.host.remove_bitmap(volume.path, checkpoint.id)
