"""
Live backups and checkpoints through libvirt, in vdsm's words (its lib/vdsm/virt/backup.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Literal

import libvirt

from tests.lab import errors, processes
from tests.lab.domains import Domains, VmSpec, libvirt_errors

Mode = Literal["full", "incremental"]


# Seconds. libvirt 9.0 has one thread for QEMU's events, and it waits 30 s for the backup's lock when the guest agent
# comes up in the middle of a backup; the end of the job is seen after that.
END_TIMEOUT = 60


@dataclasses.dataclass(frozen=True)
class BackupDisk:
    """
    A disk in a live backup.

    checkpoint: the disk becomes part of the new checkpoint (never for raw disks).
    scratch: qcow2 volume of the disk's current virtual size, made by the caller, who also removes it
    after `stop_backup`.
    """

    disk_id: str
    checkpoint: bool
    mode: Mode
    scratch: Path


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """
    A checkpoint as the engine remembers it, to be told to libvirt again after a VM's restart.

    created: seconds since the epoch.  disk_ids: the disks that hold its bitmap.
    """

    id: str
    created: int
    disk_ids: tuple[str, ...]


class Backups:
    """
    The live backups and checkpoints of a host's running VMs.
    """

    def __init__(self, domains: Domains, directory: Path) -> None:
        """directory: where QEMU makes one socket per backup; owned by QEMU's user."""
        self._domains = domains
        self._directory = directory

    def start(
        self,
        vm_id: str,
        backup_id: str,
        disks: list[BackupDisk],
        from_checkpoint: str | None,
        to_checkpoint: str | None,
        require_consistency: bool,
    ) -> dict[str, str]:
        if not disks:
            raise errors.HostError("Cannot start a backup without disks", errors.BACKUP_ERROR)
        domain = self._domains.running(vm_id)
        vm = self._domains.spec(vm_id)
        socket = self._directory / backup_id
        backup_xml = _backup_xml(vm, socket, disks, from_checkpoint)
        members = [disk.disk_id for disk in disks if disk.checkpoint]
        checkpoint_xml = None
        if to_checkpoint is not None and members:
            checkpoint_xml = _checkpoint_xml(vm, to_checkpoint, members, f"backup '{backup_id}'")
        try:
            self._freeze(vm_id, require_consistency)
            with libvirt_errors(errors.BACKUP_ERROR):
                domain.backupBegin(backup_xml, checkpoint_xml, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)
        finally:
            # Also when freezing failed: some of the file systems may be frozen.
            with contextlib.suppress(errors.HostError):
                self._domains.thaw(vm_id)
        return {disk.disk_id: f"nbd:unix:{socket}:exportname={vm.disk(disk.disk_id).target}" for disk in disks}

    def stop(self, vm_id: str, backup_id: str) -> None:
        domain = self._domains.running(vm_id)
        if not _in_backup(domain):
            raise errors.HostError(f"VM {vm_id} has no backup {backup_id}", errors.NO_SUCH_BACKUP)
        with libvirt_errors(errors.BACKUP_ERROR):
            domain.abortJob()
        try:
            processes.wait_for(f"the end of backup {backup_id}", lambda: not _in_backup(domain), END_TIMEOUT)
        except errors.LabError as error:
            raise errors.HostError(str(error), errors.BACKUP_ERROR) from error

    def redefine_checkpoint(self, vm_id: str, checkpoint: CheckpointSpec) -> None:
        domain = self._domains.running(vm_id)
        xml = _checkpoint_xml(
            self._domains.spec(vm_id),
            checkpoint.id,
            list(checkpoint.disk_ids),
            f"checkpoint '{checkpoint.id}'",
            created=checkpoint.created,
        )
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
        try:
            domain.checkpointCreateXML(xml, flags)
        except libvirt.libvirtError as error:
            inconsistent = error.get_error_code() == libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT
            code = errors.INCONSISTENT_CHECKPOINT if inconsistent else errors.CHECKPOINT_ERROR
            raise errors.HostError(str(error), code) from error

    def delete_checkpoint(self, vm_id: str, checkpoint_id: str) -> None:
        domain = self._domains.running(vm_id)
        try:
            domain.checkpointLookupByName(checkpoint_id).delete()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                raise errors.HostError(str(error), errors.CHECKPOINT_ERROR) from error

    def list_checkpoints(self, vm_id: str) -> list[str]:
        domain = self._domains.running(vm_id)
        with libvirt_errors(errors.CHECKPOINT_ERROR):
            checkpoints = domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
        return [checkpoint.getName() for checkpoint in checkpoints]

    def _freeze(self, vm_id: str, required: bool) -> None:
        try:
            self._domains.freeze(vm_id)
        except errors.HostError as error:
            if required:
                raise errors.HostError(f"Failed freeze VM: {error}", errors.BACKUP_ERROR) from error


def _in_backup(domain: libvirt.virDomain) -> bool:
    try:
        domain.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_NO_DOMAIN):
            return False  # the VM may have ended meanwhile
        raise errors.HostError(str(error), errors.BACKUP_ERROR) from error
    return True


def _backup_xml(vm: VmSpec, socket: Path, disks: list[BackupDisk], from_checkpoint: str | None) -> str:
    incremental = f"<incremental>{from_checkpoint}</incremental>" if from_checkpoint else ""
    return f"""
        <domainbackup mode='pull'>
          {incremental}
          <server transport='unix' socket='{socket}'/>
          <disks>{"".join(_backup_disk_xml(vm, disk, from_checkpoint) for disk in disks)}</disks>
        </domainbackup>"""


def _backup_disk_xml(vm: VmSpec, disk: BackupDisk, from_checkpoint: str | None) -> str:
    base = f"incremental='{from_checkpoint}'" if disk.mode == "incremental" else ""
    return f"""
            <disk name='{vm.disk(disk.disk_id).target}' type='file' backupmode='{disk.mode}' {base}>
              <scratch file='{disk.scratch}'><seclabel model='dac' relabel='no'/></scratch>
            </disk>"""


def _checkpoint_xml(
    vm: VmSpec, checkpoint_id: str, disk_ids: list[str], purpose: str, created: int | None = None
) -> str:
    """created: seconds since the epoch, only for a checkpoint that exists already."""
    time = f"<creationTime>{created}</creationTime>" if created is not None else ""
    disks = "".join(
        f"<disk name='{vm.disk(disk_id).target}' checkpoint='bitmap' bitmap='{checkpoint_id}'/>" for disk_id in disk_ids
    )
    return f"""
        <domaincheckpoint>
          <name>{checkpoint_id}</name>
          <description>checkpoint for {purpose}</description>
          {time}
          <disks>{disks}</disks>
        </domaincheckpoint>"""
