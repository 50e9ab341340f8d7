"""
Snapshots for hybrid backups: a new top layer that holds the new bitmap, later merged into the layer below.

    before      active: base [C1]
    create      active: overlay [C1 C2] -> frozen base [C1]     a transfer reads base with C1
    merge       active: base [C1 C2]                            C1 also has what was written to the overlay
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import libvirt

from tests.lab import errors, processes, storage
from tests.lab.domains import DiskSpec, Domains, VmSpec, libvirt_errors


def create(domains: Domains, vm_id: str, overlays: dict[str, Path], bitmap: str) -> dict[str, Path]:
    """
    Put a new layer over disks of a VM, all in one moment; file systems are frozen when the guest has an agent.

    overlays: the new volume by disk id.  Returns the layer that is frozen now, by disk id.
    A failure leaves the VM on its old layers.
    """
    vm = domains.spec(vm_id)
    running = domains.state(vm_id) != "down"
    frozen = {disk_id: vm.disk(disk_id).path for disk_id in overlays}
    try:
        for disk_id, overlay in overlays.items():
            disk = vm.disk(disk_id)
            storage.create(overlay, "qcow2", disk.size, backing=disk.path)
            if not running:
                # libvirt does this for a running VM.
                _copy_bitmap_names(disk.path, overlay)
            storage.add_bitmap(overlay, bitmap)
        if running:
            _switch(domains, vm, overlays)
    except errors.HostError:
        for overlay in overlays.values():
            storage.remove(overlay)
        raise
    for disk_id, overlay in overlays.items():
        domains.move_disk(vm_id, disk_id, overlay, "qcow2")
    return frozen


def merge(domains: Domains, vm_id: str, disk_ids: list[str]) -> None:
    """
    Merge the top layer of disks into the layer below, with its bitmaps (raw volumes have none), and remove it.
    """
    running = domains.state(vm_id) != "down"
    for disk_id in disk_ids:
        disk = domains.spec(vm_id).disk(disk_id)
        below = storage.info(disk.path).backing
        if below is None:
            raise errors.HostError(f"Volume {disk.path} has no layer below to merge it into")
        if running:
            _commit_live(domains, vm_id, disk)
        else:
            _commit_cold(disk.path, below)
        domains.move_disk(vm_id, disk_id, below, storage.info(below).format)
        storage.remove(disk.path)


def _copy_bitmap_names(source: Path, target: Path) -> None:
    """Bitmaps that are in use are of no use; the others go on recording in the new layer."""
    for name, flags in storage.info(source).bitmaps.items():
        if "in-use" not in flags:
            storage.add_bitmap(target, name)


def _switch(domains: Domains, vm: VmSpec, overlays: dict[str, Path]) -> None:
    """Make a running VM write to its new layers."""
    domain = domains.running(vm.id)
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    with contextlib.suppress(errors.HostError):
        domains.freeze(vm.id)
    try:
        with libvirt_errors():
            domain.snapshotCreateXML(_snapshot_xml(vm, overlays), flags)
    finally:
        with contextlib.suppress(errors.HostError):
            domains.thaw(vm.id)


def _snapshot_xml(vm: VmSpec, overlays: dict[str, Path]) -> str:
    disks = "".join(
        f"<disk name='{disk.target}' snapshot='external' type='file'><source file='{overlays[disk.id]}'/></disk>"
        if disk.id in overlays
        else f"<disk name='{disk.target}' snapshot='no'/>"
        for disk in vm.disks
    )
    return f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>"


def _commit_live(domains: Domains, vm_id: str, disk: DiskSpec) -> None:
    domain = domains.running(vm_id)
    flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
    with libvirt_errors():
        domain.blockCommit(disk.target, None, None, 0, flags)

    def pivoted() -> bool:
        try:
            domain.blockJobAbort(disk.target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
                raise errors.HostError(str(error)) from error
            return False  # still copying
        return True

    processes.wait_for(f"the merge of {disk.path}", pivoted, timeout=120)


def _commit_cold(overlay: Path, below: Path) -> None:
    storage.commit(overlay)
    if storage.info(below).format == "raw":
        return
    for name, flags in storage.info(overlay).bitmaps.items():
        if "in-use" not in flags:
            storage.merge_bitmap(overlay, below, name)
