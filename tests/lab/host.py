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

from pathlib import Path

from tests.lab.backups import BackupDisk, CheckpointSpec
from tests.lab.domains import State, VmSpec
from tests.lab.storage import Format, Volume


class Host:
    id: str
    name: str
    address: str  # "127.0.0.1"
    directory: Path
    imageio_port: int
    control_socket: Path
    data_socket: Path
    ssh_port: int
    ssh_public_key: str  # "ssh-ed25519 AAAA…"
    ssh_fingerprint: str  # "SHA256:…"
    python: Path  # Python 3.9, as on EL9

    # Domains. They are transient, as in oVirt: libvirt forgets checkpoints when the VM stops, qcow2 files keep the bitmaps.

    def define_vm(self, vm: VmSpec) -> None:
        """Remember a VM, so that it can be started.  Its volumes exist."""
        raise NotImplementedError

    def vm(self, vm_id: str) -> VmSpec:
        """The VM as it is now: disk paths and volume ids follow snapshots."""
        raise NotImplementedError

    def start_vm(self, vm_id: str) -> None:
        """Start QEMU; returns before the guest has booted."""
        raise NotImplementedError

    def shutdown_vm(self, vm_id: str) -> None:
        """Press the power button; returns at once, the guest goes down by itself a moment later."""
        raise NotImplementedError

    def destroy_vm(self, vm_id: str) -> None:
        """Stop QEMU gracefully, without asking the guest: bitmaps are stored.  Does nothing when the VM is down."""
        raise NotImplementedError

    def kill_vm(self, vm_id: str) -> None:
        """SIGKILL to QEMU: bitmaps stay in-use.  Returns when libvirt has noticed."""
        raise NotImplementedError

    def pause_vm(self, vm_id: str) -> None:
        raise NotImplementedError

    def resume_vm(self, vm_id: str) -> None:
        raise NotImplementedError

    def remove_vm(self, vm_id: str) -> None:
        """Destroy the VM if it runs, forget it, and remove the volumes of its disks."""
        raise NotImplementedError

    def vm_state(self, vm_id: str) -> State:
        raise NotImplementedError

    def freeze(self, vm_id: str) -> None:
        """Freeze the guest's file systems.  Raises when the guest has no working agent."""
        raise NotImplementedError

    def thaw(self, vm_id: str) -> None:
        raise NotImplementedError

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
        raise NotImplementedError

    def stop_backup(self, vm_id: str, backup_id: str) -> None:
        """End the backup.  Raises HostError with NO_SUCH_VM when the VM is down, NO_SUCH_BACKUP when it has no backup."""
        raise NotImplementedError

    def redefine_checkpoint(self, vm_id: str, checkpoint: CheckpointSpec) -> None:
        """Tell libvirt about a checkpoint again, validated.  Raises with INCONSISTENT_CHECKPOINT when a bitmap is broken or missing."""
        raise NotImplementedError

    def delete_checkpoint(self, vm_id: str, checkpoint_id: str) -> None:
        """Delete a checkpoint and its bitmaps from a running VM; a missing one is ignored."""
        raise NotImplementedError

    def list_checkpoints(self, vm_id: str) -> list[str]:
        """The checkpoints that libvirt knows, root first."""
        raise NotImplementedError

    # Storage.

    def volume_path(self, disk_id: str, volume_id: str) -> Path:
        """Where a volume of a disk lives (or will live)."""
        raise NotImplementedError

    def create_volume(
        self, path: Path, format: Format, size: int, backing: Path | None = None
    ) -> None:
        """Create a sparse volume of size bytes that reads as zeros (or as its backing file)."""
        raise NotImplementedError

    def remove_volume(self, path: Path) -> None:
        """Remove a volume; a missing one is ignored."""
        raise NotImplementedError

    def volume(self, path: Path) -> Volume:
        """What qemu-img says about it; works while QEMU has it open."""
        raise NotImplementedError

    def add_bitmap(self, path: Path, name: str) -> None:
        raise NotImplementedError

    def remove_bitmap(self, path: Path, name: str) -> None:
        """Remove a bitmap from a volume that no QEMU has open; a missing one is ignored."""
        raise NotImplementedError

    # Hybrid: a snapshot with the new bitmap in its top layer, merged away later.

    def create_snapshot(self, vm_id: str, overlays: dict[str, str], bitmap: str) -> dict[str, Path]:
        """
        Put a new top layer over disks, running or stopped, all in one moment (frozen when there is a guest agent).

        overlays: the new volume's id by disk id.  bitmap: name of the new bitmap in each new layer.
        Returns the frozen layer's path by disk id: what a transfer reads.
        """
        raise NotImplementedError

    def merge_snapshot(self, vm_id: str, disk_ids: list[str]) -> None:
        """
        Commit the top layer of each disk into the layer below, bitmaps too (not into raw), and remove it.

        Running or stopped, whatever the VM was when the snapshot was made.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    def stop_nbd(self, transfer_id: str) -> None:
        """Stop the server; one that does not run is ignored."""
        raise NotImplementedError

    # Tickets, on the ovirt-imageio daemon's control socket.

    def add_ticket(self, ticket: dict[str, object]) -> None:
        raise NotImplementedError

    def get_ticket(self, ticket_id: str) -> dict[str, object] | None:
        """The daemon's view of a ticket, or None when it does not know it."""
        raise NotImplementedError

    def extend_ticket(self, ticket_id: str, timeout: int) -> None:
        """timeout: seconds from now."""
        raise NotImplementedError

    def remove_ticket(self, ticket_id: str) -> None:
        """Remove a ticket; a missing one is ignored.  Raises when a connection is still using it after a while."""
        raise NotImplementedError

    def restart_imageio(self) -> None:
        """Restart the daemon on the same port and sockets; it forgets every ticket."""
        raise NotImplementedError
