"""
The lab's hypervisor: what vdsm does for the engine, with real libvirt, QEMU, qemu-nbd, ovirt-imageio and sshd.

Where its daemons run is a matter of its place.  Each place has

    storage/<disk>/<volume>       volumes, the same for all hosts of a lab
    backups/<backup>              sockets of live backups (served by the VM's own QEMU)
    nbd/<transfer>.sock           sockets of qemu-nbd
    Image I/O's control socket and data socket

Methods may be called from any thread.  Each raises errors.HostError with vdsm's code when libvirt, QEMU or vdsm's
own rules refuse.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.lab import (
    backups,
    certificates,
    domains,
    imageio,
    nbd,
    snapshots,
    sshd,
    storage,
)
from tests.lab.backups import BackupDisk, CheckpointSpec
from tests.lab.domains import State, VmSpec
from tests.lab.guest import Guest
from tests.lab.guest_image import GuestImage
from tests.lab.places import Place
from tests.lab.storage import Format, Volume


class Host:
    """
    before_ticket: called with each ticket before the daemon gets it, when its NBD server runs already: what an
    independent tool copies then is what a backup must hold.  The ticket's url is as it is seen from here; the
    daemon gets the ticket as it is left.
    address: of imageio and sshd.  place: where it is.  login: the way in.  volumes: the lab's storage.
    """

    def __init__(self, name: str, place: Place, login: sshd.Login, volumes: Path, ca: certificates.Authority) -> None:
        """
        Start the host's daemons and wait until they answer.

        place, login: their own; stop() stops the login.  volumes: the lab's storage, found under this path at the place.
        """
        self.id = str(uuid.uuid4())
        self.name = name
        self.address = place.address
        self.place = place
        self.login = login
        self.volumes = volumes
        self.before_ticket: Callable[[dict[str, object]], None] | None = None
        image = GuestImage.build()

        boot = place.files / "boot"
        boot.mkdir()
        guests = place.directory(place.files / "guests", "qemu")
        place.directory(place.backups, "vdsm")
        place.directory(place.nbd, "vdsm")

        # Both start at the same time.
        self._libvirtd = domains.Libvirtd(place)
        self._imageio = imageio.Daemon(place, ca.issue(name, self.address, "localhost"), ca.pem)
        self.wait()

        self._domains = domains.Domains(self._libvirtd, image.copy_to(boot), guests)
        self._backups = backups.Backups(self._domains, place.backups)
        self._nbd = nbd.Servers(place)

    def wait(self) -> None:
        """Wait until its daemons answer, after a boot for example."""
        self.login.wait()
        self._libvirtd.connect()
        self._imageio.wait()

    @property
    def imageio_port(self) -> int:
        return self._imageio.port

    @property
    def libvirt_socket(self) -> Path:
        """Where `virsh` finds the host's libvirt."""
        return self._libvirtd.socket

    @property
    def directory(self) -> Path:
        """For files of a host that is here, an agent's for example."""
        return self.place.files

    @property
    def python(self) -> Path:
        """The Python that an agent finds."""
        return self.place.python

    @property
    def ssh_port(self) -> int:
        return self.login.ssh_port

    @property
    def ssh_public_key(self) -> str:
        """ "ssh-ed25519 AAAA…"."""
        return self.login.ssh_public_key

    @property
    def ssh_fingerprint(self) -> str:
        """ "SHA256:…"."""
        return self.login.ssh_fingerprint

    def ssh_command(self, *words: str) -> list[str]:
        """The ssh command that runs words as root on the host (or logs in)."""
        return sshd.command(self.login, *words)

    def stop(self) -> None:
        """Stop the daemons.  VMs go on until the lab's reaper comes."""
        self._nbd.stop_all()
        self._imageio.stop()
        self._libvirtd.stop()
        self.login.stop()

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
        return self.volumes / disk_id / volume_id

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
            url = str(ticket["url"])
            seen = self._seen(url)
            ticket = {**ticket, "url": seen}
            self.before_ticket(ticket)
            if ticket["url"] == seen:
                ticket["url"] = url
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

    def _seen(self, url: str) -> str:
        """A ticket's url, with the path that its socket has from here."""
        match = re.fullmatch(r"(nbd:unix:|file://)([^:]+)(.*)", url)
        assert match is not None, url
        scheme, path, export = match.groups()
        return f"{scheme}{self.place.seen(Path(path))}{export}"
