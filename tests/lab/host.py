"""
The lab's hypervisor: what vdsm does for the engine, with real libvirt, QEMU, qemu-nbd, ovirt-imageio and sshd.

All of the host's files are under one directory:

    storage/<disk>/<volume>       volumes
    run/vdsm/backup/<backup>      sockets of live backups (served by the VM's own QEMU)
    run/vdsm/nbd/<transfer>.sock  sockets of qemu-nbd
    run/imageio/{control,data}.sock

Methods may be called from any thread.  Each raises errors.HostError with vdsm's code when libvirt, QEMU or vdsm's
own rules refuse.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.lab import (
    backups,
    certificates,
    domains,
    host_python,
    imageio,
    nbd,
    processes,
    snapshots,
    sshd,
    storage,
)
from tests.lab.backups import BackupDisk, CheckpointSpec
from tests.lab.domains import State, VmSpec
from tests.lab.guest import Guest
from tests.lab.guest_image import GuestImage
from tests.lab.storage import Format, Volume


class Host:
    """
    before_ticket: called with each ticket before the daemon gets it, when its NBD server runs already: what an
    independent tool copies then is what a backup must hold.
    address: of imageio and sshd.  python: the Python that an agent finds here, 3.9 as on EL9.
    ssh_public_key: "ssh-ed25519 AAAA…".  ssh_fingerprint: "SHA256:…".
    """

    def __init__(self, directory: Path, ca: certificates.Authority, lab: Path) -> None:
        """Start the host's daemons and wait until they answer.  lab: the lab's directory."""
        self.id = str(uuid.uuid4())
        self.name = "host1"
        self.address = "127.0.0.1"
        self.directory = directory
        self.python = host_python.build()
        self.before_ticket: Callable[[dict[str, object]], None] | None = None
        image = GuestImage.build()

        for path in ("libvirt", "run/imageio", "boot"):
            (directory / path).mkdir(parents=True)
        for path in ("guests", "storage", "run/vdsm/backup", "run/vdsm/nbd", "transient_disks"):
            (directory / path).mkdir(parents=True)
            shutil.chown(directory / path, processes.USER, processes.GROUP)

        # All three start at the same time.
        self._libvirtd = domains.Libvirtd(directory / "libvirt", lab)
        certificate = ca.issue("host", self.address, "localhost")
        self._imageio = imageio.Daemon(directory / "run/imageio", certificate, ca.pem, lab)
        self._sshd = sshd.Sshd(directory / "sshd", sshd.new_key(directory / "client_key"), lab)
        self._libvirtd.connect()
        self._imageio.wait()
        self._sshd.wait()

        self._domains = domains.Domains(self._libvirtd, image.copy_to(directory / "boot"), directory / "guests")
        self._backups = backups.Backups(self._domains, directory / "run/vdsm/backup")
        self._nbd = nbd.Servers(directory / "run/vdsm/nbd", directory / "transient_disks", directory / "nbd.log", lab)

    @property
    def imageio_port(self) -> int:
        return self._imageio.port

    @property
    def control_socket(self) -> Path:
        return self._imageio.control_socket

    @property
    def data_socket(self) -> Path:
        return self._imageio.data_socket

    @property
    def libvirt_socket(self) -> Path:
        """Where `virsh` finds the host's libvirt."""
        return self._libvirtd.socket

    @property
    def ssh_port(self) -> int:
        return self._sshd.ssh_port

    @property
    def ssh_public_key(self) -> str:
        return self._sshd.ssh_public_key

    @property
    def ssh_fingerprint(self) -> str:
        return self._sshd.ssh_fingerprint

    @property
    def ssh_client_key(self) -> Path:
        """A private key with which root may log in."""
        return self._sshd.client_key

    def ssh_command(self, *words: str) -> list[str]:
        """The ssh command that runs words as root on the host (or logs in)."""
        return sshd.command(self._sshd, *words)

    def stop(self) -> None:
        """Stop the daemons.  VMs go on until the lab's reaper comes."""
        self._nbd.stop_all()
        self._sshd.stop()
        self._imageio.stop()
        self._libvirtd.stop()

    # VMs. Their domains are transient, as in oVirt: libvirt forgets checkpoints when the VM stops, qcow2 files keep
    # the bitmaps.

    @property
    def libvirt_uri(self) -> str:
        """Of its libvirtd, for tools that know nothing of the lab."""
        return f"qemu+unix:///session?socket={self._libvirtd.socket}"

    def define_vm(self, vm: VmSpec) -> None:
        """Remember a VM, so that it can be started.  Its volumes exist."""
        self._domains.define(vm)

    def vm(self, vm_id: str) -> VmSpec:
        """The VM as it is now: disk paths and volume ids follow snapshots."""
        return self._domains.spec(vm_id)

    def guest(self, vm_id: str) -> Guest:
        """The Linux in a VM."""
        return Guest(self._domains, vm_id)

    def start_vm(self, vm_id: str) -> None:
        """Start QEMU; returns before the guest has booted."""
        self._domains.start(vm_id)

    def shutdown_vm(self, vm_id: str) -> None:
        """Press the power button; returns at once, the guest goes down by itself a moment later."""
        self._domains.shutdown(vm_id)

    def destroy_vm(self, vm_id: str) -> None:
        """Stop QEMU gracefully, without asking the guest: bitmaps are stored.  Does nothing when the VM is down."""
        self._domains.destroy(vm_id)

    def kill_vm(self, vm_id: str) -> None:
        """SIGKILL to QEMU: bitmaps stay in-use.  Returns when libvirt has noticed."""
        self._domains.kill(vm_id)

    def pause_vm(self, vm_id: str) -> None:
        """Stop the VM's CPUs."""
        self._domains.pause(vm_id)

    def resume_vm(self, vm_id: str) -> None:
        """Let the VM's CPUs go on."""
        self._domains.resume(vm_id)

    def remove_vm(self, vm_id: str) -> None:
        """Destroy the VM if it runs, forget it, and remove the volumes of its disks."""
        self._domains.destroy(vm_id)
        for disk in self._domains.spec(vm_id).disks:
            shutil.rmtree(disk.path.parent)
        self._domains.forget(vm_id)

    def vm_state(self, vm_id: str) -> State:
        """Raises HostError with NO_SUCH_VM for a VM that was never defined."""
        return self._domains.state(vm_id)

    def freeze(self, vm_id: str) -> None:
        """Freeze the guest's file systems.  Raises when the guest has no working agent."""
        self._domains.freeze(vm_id)

    def thaw(self, vm_id: str) -> None:
        """Thaw the guest's file systems."""
        self._domains.thaw(vm_id)

    def qemu_io(self, vm_id: str, disk_id: str, command: str) -> None:
        """
        Do with a disk what its guest might, running or not: "write -P 7 1M 64k", "write -z 0 512", "discard 1M 1M".

        For a running VM, QEMU writes errors of the disk itself to its log only.
        """
        self._domains.qemu_io(vm_id, disk_id, command)

    # Live backup.

    def start_backup(
        self,
        vm_id: str,
        backup_id: str,
        disks: list[BackupDisk],
        *,
        from_checkpoint: str | None = None,
        to_checkpoint: str | None = None,
        require_consistency: bool = False,
    ) -> dict[str, str]:
        """
        Freeze, begin a pull-mode backup (with a checkpoint when to_checkpoint is given), thaw.

        Returns the NBD URL of each disk by disk id: nbd:unix:PATH:exportname=TARGET.
        """
        return self._backups.start(vm_id, backup_id, disks, from_checkpoint, to_checkpoint, require_consistency)

    def stop_backup(self, vm_id: str, backup_id: str) -> None:
        """End the backup.  Raises HostError with NO_SUCH_VM when the VM is down, NO_SUCH_BACKUP when it has no backup."""
        self._backups.stop(vm_id, backup_id)

    def redefine_checkpoint(self, vm_id: str, checkpoint: CheckpointSpec) -> None:
        """
        Tell libvirt about a checkpoint again, validated.

        Raises HostError with INCONSISTENT_CHECKPOINT when a bitmap is broken or missing.
        """
        self._backups.redefine_checkpoint(vm_id, checkpoint)

    def delete_checkpoint(self, vm_id: str, checkpoint_id: str) -> None:
        """Delete a checkpoint and its bitmaps from a running VM; a missing one is ignored."""
        self._backups.delete_checkpoint(vm_id, checkpoint_id)

    def list_checkpoints(self, vm_id: str) -> list[str]:
        """The checkpoints that libvirt knows, root first."""
        return self._backups.list_checkpoints(vm_id)

    # Storage.

    def volume_path(self, disk_id: str, volume_id: str) -> Path:
        """Where a volume of a disk lives (or will live)."""
        return self.directory / "storage" / disk_id / volume_id

    def extend_disk(self, vm_id: str, disk_id: str, size: int) -> None:
        """Make a disk of a VM, running or not, larger. size: bytes."""
        self._domains.extend_disk(vm_id, disk_id, size)

    def create_volume(self, path: Path, format: Format, size: int, backing: Path | None = None) -> None:
        """Create a sparse volume of size bytes that reads as zeros (or as its backing file)."""
        storage.create(path, format, size, backing)

    def remove_volume(self, path: Path) -> None:
        """Remove a volume; a missing one is ignored."""
        storage.remove(path)

    def volume(self, path: Path) -> Volume:
        """What qemu-img says about it; works while QEMU has it open (but QEMU stores bitmaps only when it closes)."""
        return storage.info(path)

    def add_bitmap(self, path: Path, name: str) -> None:
        """Add an empty bitmap, recording from now on, to a volume that no QEMU has open."""
        storage.add_bitmap(path, name)

    def remove_bitmap(self, path: Path, name: str) -> None:
        """Remove a bitmap from a volume that no QEMU has open; a missing one is ignored."""
        storage.remove_bitmap(path, name)

    # Hybrid: a snapshot with the new bitmap in its top layer, merged away later.

    def create_snapshot(self, vm_id: str, overlays: dict[str, str], bitmap: str) -> dict[str, Path]:
        """
        Put a new top layer over disks, running or stopped, all in one moment (frozen when there is a guest agent).

        overlays: the new volume's id by disk id.  bitmap: name of the new bitmap in each new layer.
        Returns the frozen layer's path by disk id: what a transfer reads.
        """
        paths = {disk_id: self.volume_path(disk_id, volume_id) for disk_id, volume_id in overlays.items()}
        return snapshots.create(self._domains, vm_id, paths, bitmap)

    def merge_snapshot(self, vm_id: str, disk_ids: list[str]) -> None:
        """
        Commit the top layer of each disk into the layer below, bitmaps too (not into raw), and remove it.

        Running or stopped, whatever the VM was when the snapshot was made.
        """
        snapshots.merge(self._domains, vm_id, disk_ids)

    # NBD servers for transfers that are not served by a running VM.

    def start_nbd(
        self,
        transfer_id: str,
        path: Path,
        format: Format,
        *,
        readonly: bool = True,
        bitmap: str | None = None,
        backing_chain: bool = True,
    ) -> str:
        """
        Serve a volume with qemu-nbd, after vdsm's checks of the bitmap.  Returns nbd:unix:PATH.

        Raises HostError: BITMAP_DOES_NOT_EXIST "Bitmap does not exist in <path>", or "Bitmap in use", "Bitmap is
        disabled", "Bitmap is missing in [...]".
        """
        return self._nbd.start(transfer_id, path, format, readonly, bitmap, backing_chain)

    def stop_nbd(self, transfer_id: str) -> None:
        """Stop the server; one that does not run is ignored."""
        self._nbd.stop(transfer_id)

    # Tickets, on the ovirt-imageio daemon's control socket.

    def add_ticket(self, ticket: dict[str, object]) -> None:
        """ticket: what the engine sends, with its id in "uuid"."""
        if self.before_ticket is not None:
            self.before_ticket(ticket)
        self._imageio.add_ticket(ticket)

    def get_ticket(self, ticket_id: str) -> dict[str, object] | None:
        """The daemon's view of a ticket, or None when it does not know it."""
        return self._imageio.get_ticket(ticket_id)

    def extend_ticket(self, ticket_id: str, timeout: int) -> None:
        """timeout: seconds from now."""
        self._imageio.extend_ticket(ticket_id, timeout)

    def remove_ticket(self, ticket_id: str) -> None:
        """Remove a ticket; a missing one is ignored.  Raises when a connection still uses it after ten seconds."""
        self._imageio.remove_ticket(ticket_id)

    def restart_imageio(self) -> None:
        """Restart the daemon on the same port and sockets; it forgets every ticket."""
        self._imageio.restart()
