"""
VMs: commands on them, and what a backup forbids meanwhile.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from tests.lab import domains
from tests.lab.engine import model, ovf, rejections
from tests.lab.engine.context import Context
from tests.lab.engine.database import new_id, new_mac
from tests.lab.errors import HostError
from tests.lab.host import Host

_INTERFACES = {"virtio": "virtio", "virtio-scsi": "virtio_scsi"}
# Seconds after which a guest that does not go down is shown as up again.
_SHUTDOWN_TIMEOUT = 120


class Vms:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._db = context.db

    def find(self, vm_id: str) -> model.Vm:
        """Raises NotFound."""
        vm = self._db.vms.get(vm_id)
        if vm is None:
            raise rejections.NotFound
        return vm

    def add(self, spec: domains.VmSpec, host: Host, cluster_id: str, storage_domain_id: str) -> model.Vm:
        """Tell the engine about a VM that the host knows."""
        vm = model.Vm(
            id=spec.id,
            name=spec.name,
            cluster_id=cluster_id,
            host=host,
            memory=spec.memory,
            active_snapshot_id=new_id(),
            attachments=[
                model.Attachment(
                    disk_id=disk.id,
                    interface=_INTERFACES[disk.bus],
                    logical_name=f"/dev/{disk.target}",
                    bootable=number == 1,
                )
                for number, disk in enumerate(spec.disks, 1)
            ],
            nics=[model.Nic(new_id(), "nic1", new_mac())],
        )
        with self._db.changed:
            for number, disk in enumerate(spec.disks, 1):
                alias = f"{spec.name}_Disk{number}"
                self._db.disks[disk.id] = _disk(disk, alias, storage_domain_id)
            self._db.vms[vm.id] = vm
        return vm

    def ovf(self, vm: model.Vm) -> str | None:
        """
        The VM's configuration, or None: the engine leaves it out, without an error, while a disk is locked.

        (OvfHelper, GetVmOvfByVmIdQuery)
        """
        with self._db.changed:
            if any(disk.status is model.DiskStatus.LOCKED for disk in self._db.disks_of(vm)):
                return None
            return ovf.document(self._db, vm)

    def start(self, vm_id: str, correlation_id: str) -> model.Job:
        with self._db.changed:
            vm = self.find(vm_id)
            self._check_backup(vm, "run")
            self._check_snapshot(vm, "run")
            if vm.status != "down":
                raise rejections.Conflict("Cannot run VM. VM is running.")
            vm.transition = "powering_up"
        return self._command(f"Launching VM {vm.name}", vm, lambda: self._launch(vm, correlation_id), correlation_id)

    def stop(self, vm_id: str, force: bool, correlation_id: str) -> model.Job:
        """Power off, without asking the guest."""
        with self._db.changed:
            vm = self.find(vm_id)
            self._check_running(vm, "stop", force)
            vm.transition = "powering_down"
        self._context.events.add(33, vm, correlation_id)
        return self._command(f"Powering off VM {vm.name}", vm, lambda: vm.host.destroy_vm(vm.id), correlation_id)

    def shutdown(self, vm_id: str, force: bool, correlation_id: str) -> model.Job:
        """Ask the guest to power off."""
        with self._db.changed:
            vm = self.find(vm_id)
            self._check_running(vm, "shutdown", force)
            vm.transition = "powering_down"
        self._context.events.add(73, vm, correlation_id)
        return self._command(f"Shutting down VM {vm.name}", vm, lambda: self._power_off(vm), correlation_id)

    def remove(self, vm_id: str, detach_only: bool) -> None:
        """Forget a VM and its checkpoints, and its disks unless they are only to be detached."""
        with self._db.changed:
            vm = self.find(vm_id)
            if self._db.unfinished_backup(vm_id):
                raise rejections.Conflict("Cannot remove VM. The VM is during a backup operation.")
            if vm.status != "down":
                raise rejections.Conflict("Cannot remove VM. VM is running.")
            if detach_only:
                self._define(vm, [])
            for checkpoint in self._db.checkpoints_of(vm_id):
                del self._db.checkpoints[checkpoint.id]
            if not detach_only:
                for disk in self._db.disks_of(vm):
                    del self._db.disks[disk.id]
            del self._db.vms[vm_id]
        vm.host.remove_vm(vm_id)

    def attach(self, vm_id: str, attachment: model.Attachment) -> model.Attachment:
        """Attach a floating disk to a VM that is down."""
        with self._db.changed:
            vm = self.find(vm_id)
            disk = self._db.disks.get(attachment.disk_id)
            if disk is None:
                raise rejections.BadParameters("Cannot attach Virtual Disk. The specified disk does not exist.")
            if disk.status is not model.DiskStatus.OK:
                raise rejections.Conflict(
                    f"Cannot attach Virtual Disk: The following disks are locked: {disk.alias}."
                    " Please try again in a few minutes."
                )
            if vm.status != "down":
                raise rejections.Conflict("Cannot attach Virtual Disk. VM is running.")
            if attachment.bootable and any(other.bootable for other in vm.attachments):
                raise rejections.Conflict(
                    f"Cannot attach Virtual Disk. Virtual Machine {vm.name} has already a bootable disk."
                )
            self._define(vm, [*vm.attachments, attachment])
        return attachment

    def detach(self, vm: model.Vm, disk_id: str) -> None:
        with self._db.changed:
            self._define(vm, [each for each in vm.attachments if each.disk_id != disk_id])
            for checkpoint in self._db.checkpoints_of(vm.id):
                checkpoint.disk_ids = [each for each in checkpoint.disk_ids if each != disk_id]

    def _define(self, vm: model.Vm, attachments: list[model.Attachment]) -> None:
        """Change the disks of a VM that is down, here and on the host."""
        known = vm.host.vm(vm.id)
        disks = {disk.id: disk for disk in known.disks}
        taken = {disk.target for disk in known.disks}
        for attachment in attachments:
            if attachment.disk_id not in disks:
                disk = self._db.disks[attachment.disk_id]
                spec = _disk_spec(disk, attachment.interface, taken)
                attachment.logical_name = f"/dev/{spec.target}"
                disks[disk.id] = spec
        vm.host.define_vm(
            dataclasses.replace(known, disks=tuple(disks[attachment.disk_id] for attachment in attachments))
        )
        vm.attachments = attachments

    def _command(self, description: str, vm: model.Vm, operation: Callable[[], None], correlation_id: str) -> model.Job:
        """Run a command in the background; its transition ends with it."""

        def run() -> None:
            try:
                operation()
            finally:
                with self._db.changed:
                    vm.transition = None
                    self._db.changed.notify_all()

        return self._context.workers.start(description, run, correlation_id)

    def _launch(self, vm: model.Vm, correlation_id: str) -> None:
        try:
            vm.host.start_vm(vm.id)
        except HostError:
            self._context.events.add(54, vm, correlation_id)
        else:
            self._context.events.add(153, vm, correlation_id)

    def _power_off(self, vm: model.Vm) -> None:
        vm.host.shutdown_vm(vm.id)
        deadline = time.monotonic() + _SHUTDOWN_TIMEOUT
        # The guest decides; nothing in the database tells when it is down.
        while vm.host.vm_state(vm.id) != "down" and time.monotonic() < deadline:
            self._context.workers.pause(0.2)

    def _check_running(self, vm: model.Vm, action: str, force: bool) -> None:
        if not force:
            self._check_backup(vm, action)
        if vm.status == "down":
            raise rejections.Conflict(f"Cannot {action} VM. VM is not running.")

    def _check_backup(self, vm: model.Vm, action: str) -> None:
        """Live and cold backups forbid it; hybrid ones do not (shouldBlockDuringBackup, since 4.5.1.2)."""
        backup = self._db.unfinished_backup(vm.id)
        if backup and backup.kind is not model.BackupKind.HYBRID:
            raise rejections.Conflict(f"Cannot {action} VM. The VM is during a backup operation.")

    def _check_snapshot(self, vm: model.Vm, action: str) -> None:
        """A snapshot that is being made or merged away forbids it."""
        backup = self._db.unfinished_backup(vm.id)
        if backup and backup.phase in (model.BackupPhase.STARTING, model.BackupPhase.REMOVING_SNAPSHOT):
            raise rejections.Conflict(
                f"Cannot {action} VM. The VM is performing an operation on a Snapshot."
                " Please wait for the operation to finish, and try again."
            )


def _disk(spec: domains.DiskSpec, alias: str, storage_domain_id: str) -> model.Disk:
    format = "cow" if spec.format == "qcow2" else "raw"
    return model.Disk(
        id=spec.id,
        alias=alias,
        provisioned_size=spec.size,
        storage_domain_id=storage_domain_id,
        volumes=[model.Volume(id=spec.volume_id, path=spec.path, format=format)],
        backup="incremental" if format == "cow" else "none",
    )


def _disk_spec(disk: model.Disk, interface: str, taken: set[str]) -> domains.DiskSpec:
    """A new disk of a VM, under the first device name that is free."""
    prefix = "vd" if interface == "virtio" else "sd"
    target = next(name for letter in "abcdefghij" if (name := prefix + letter) not in taken)
    taken.add(target)
    return domains.DiskSpec(
        id=disk.id,
        target=target,
        bus="virtio" if interface == "virtio" else "virtio-scsi",
        format=disk.active.qemu_format,
        path=disk.active.path,
        size=disk.provisioned_size,
    )
