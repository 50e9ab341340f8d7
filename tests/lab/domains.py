"""
VMs as libvirt domains, defined the way vdsm defines them, in a libvirtd of the lab's own.

Domains are transient, as in oVirt: when a VM stops, libvirt forgets its checkpoints, and the qcow2 files keep their
bitmaps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import libvirt
import libvirt_qemu

from tests.lab import errors, processes, storage
from tests.lab.guest_image import GuestImage
from tests.lab.places import Place
from tests.lab.storage import Format

Bus = Literal["virtio", "virtio-scsi"]
State = Literal["up", "down", "paused"]

_QUICKLY = "quiet nokaslr mitigations=off no_timer_check lpj=4000000 cryptomgr.notests audit=0"
"""For the kernel: nothing that an emulated CPU of a test has to do."""


@dataclasses.dataclass(frozen=True)
class DiskSpec:
    """
    A disk of a VM.

    id: the engine's disk id (vdsm's imageID), the serial number that the guest sees.
    target: device name on the bus, "vda" or "sda": the export's name in a live backup.
    path, format: of the active volume, which a snapshot changes (a raw disk's top layer is qcow2).
    size: virtual size in bytes.
    """

    id: str
    target: str
    bus: Bus
    format: Format
    path: Path
    size: int

    @property
    def volume_id(self) -> str:
        """The engine's disk image id (vdsm's volumeID) of the active volume."""
        return self.path.name


@dataclasses.dataclass(frozen=True)
class VmSpec:
    """A VM.  memory: bytes."""

    id: str
    name: str
    disks: tuple[DiskSpec, ...]
    memory: int

    def disk(self, disk_id: str) -> DiskSpec:
        """Raises HostError when the VM has no such disk."""
        for disk in self.disks:
            if disk.id == disk_id:
                return disk
        raise errors.HostError(f"VM {self.name} has no disk {disk_id}")


class Libvirtd:
    """
    A session libvirtd as an unprivileged user: no D-Bus, no KVM, no mounts, nothing outside its directory.

    connection: may be used from any thread; valid until stop().
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.sockets = place.runtime / "libvirt"
        home, configuration, cache = (place.libvirt / name for name in ("home", "cfg", "cache"))
        for path in (place.libvirt, home, cache, configuration, self.sockets):
            place.directory(path, "qemu")
        # No virtlogd, which would have to be started and reaped as well.
        qemu_conf = place.directory(configuration / "libvirt", "qemu") / "qemu.conf"
        qemu_conf.write_text('stdio_handler = "file"\n')
        self._daemon = place.daemon(
            "libvirtd",
            ["libvirtd", "--timeout", "0"],
            "qemu",
            {
                "HOME": str(home),
                "XDG_RUNTIME_DIR": str(place.runtime),
                "XDG_CONFIG_HOME": str(configuration),
                "XDG_CACHE_HOME": str(cache),
            },
        )
        # libvirt prints every error besides raising it.
        libvirt.registerErrorHandler(lambda context, error: None, None)

    @property
    def socket(self) -> Path:
        """Where it is found from here; another path after a boot."""
        return self.place.seen(self.sockets / "libvirt-sock")

    def connect(self) -> None:
        """Wait until it answers."""
        self._daemon.wait_until(self._try_to_connect)

    def _try_to_connect(self) -> bool:
        """The socket is there a moment before the daemon listens to it."""
        try:
            self.connection = libvirt.open(f"qemu+unix:///session?socket={self.socket}")
        except libvirt.libvirtError:
            return False
        return True

    def stop(self) -> None:
        """Stop the daemon.  QEMU processes go on."""
        self.connection.close()
        self._daemon.stop()


class Domains:
    """
    The VMs of a host: those defined, whether they run or not.
    """

    def __init__(self, libvirtd: Libvirtd, image: GuestImage, directory: Path) -> None:
        """directory: for the guests' consoles and agent sockets, owned by QEMU's user."""
        self._libvirtd = libvirtd
        self._image = image
        self._directory = directory
        self._vms: dict[str, VmSpec] = {}
        self._lock = threading.Lock()

    def define(self, vm: VmSpec) -> None:
        """Remember a VM, or what has changed in one that is down."""
        if vm.id in self._vms and self.state(vm.id) != "down":
            raise errors.HostError(f"Virtual machine {vm.id} exists already", errors.VM_EXISTS)
        with self._lock:
            self._vms[vm.id] = vm

    def spec(self, vm_id: str) -> VmSpec:
        with self._lock:
            try:
                return self._vms[vm_id]
            except KeyError:
                raise _no_such_vm(vm_id) from None

    def move_disk(self, vm_id: str, disk_id: str, path: Path, format: Format) -> None:
        """Remember that another volume is a disk's active one now."""
        self._change_disk(vm_id, disk_id, lambda disk: dataclasses.replace(disk, path=path, format=format))

    def extend_disk(self, vm_id: str, disk_id: str, size: int) -> None:
        disk = self.spec(vm_id).disk(disk_id)
        if self.state(vm_id) == "down":
            storage.extend(disk.path, size)
        else:
            with libvirt_errors():
                self.running(vm_id).blockResize(disk.target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        self._change_disk(vm_id, disk_id, lambda disk: dataclasses.replace(disk, size=size))

    def _change_disk(self, vm_id: str, disk_id: str, change: Callable[[DiskSpec], DiskSpec]) -> None:
        with self._lock:
            vm = self._vms[vm_id]
            disks = tuple(change(disk) if disk.id == disk_id else disk for disk in vm.disks)
            self._vms[vm_id] = dataclasses.replace(vm, disks=disks)

    def forget(self, vm_id: str) -> None:
        with self._lock:
            del self._vms[vm_id]

    def start(self, vm_id: str) -> None:
        with libvirt_errors():
            self._libvirtd.connection.createXML(self._xml(self.spec(vm_id)), 0)

    def running(self, vm_id: str) -> libvirt.virDomain:
        """The domain of a VM.  Raises HostError with NO_SUCH_VM when it is down."""
        try:
            return self._libvirtd.connection.lookupByUUIDString(vm_id)
        except libvirt.libvirtError:
            raise _no_such_vm(vm_id) from None

    def state(self, vm_id: str) -> State:
        self.spec(vm_id)
        try:
            state, _reason = self._libvirtd.connection.lookupByUUIDString(vm_id).state()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return "down"
        return "paused" if state == libvirt.VIR_DOMAIN_PAUSED else "up"

    def shutdown(self, vm_id: str) -> None:
        domain = self.running(vm_id)
        with libvirt_errors():
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def destroy(self, vm_id: str) -> None:
        if self.state(vm_id) == "down":
            return
        domain = self.running(vm_id)
        with libvirt_errors():
            domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

    def kill(self, vm_id: str) -> None:
        self.running(vm_id)
        place = self._libvirtd.place
        place.kill(int(place.seen(self._libvirtd.sockets / f"qemu/run/{vm_id}.pid").read_text()))
        processes.wait_for(f"the end of VM {vm_id}", lambda: self.state(vm_id) == "down")

    def pause(self, vm_id: str) -> None:
        domain = self.running(vm_id)
        with libvirt_errors():
            domain.suspend()

    def resume(self, vm_id: str) -> None:
        domain = self.running(vm_id)
        with libvirt_errors():
            domain.resume()

    def freeze(self, vm_id: str) -> None:
        domain = self.running(vm_id)
        with libvirt_errors(errors.NON_RESPONSIVE_GUEST_AGENT):
            domain.fsFreeze()

    def thaw(self, vm_id: str) -> None:
        domain = self.running(vm_id)
        with libvirt_errors(errors.NON_RESPONSIVE_GUEST_AGENT):
            domain.fsThaw()

    def qemu_io(self, vm_id: str, disk_id: str, command: str) -> None:
        disk = self.spec(vm_id).disk(disk_id)
        if self.state(vm_id) == "down":
            processes.run("qemu-io", "--discard=unmap", "-f", disk.format, "-c", command, disk.path)
            return
        # The device's way: it sets bitmaps and goes through the filter of a backup.
        device = f"ua-{disk_id}" + ("/virtio-backend" if disk.bus == "virtio" else "")
        with libvirt_errors():
            reply = libvirt_qemu.qemuMonitorCommand(
                self.running(vm_id),
                f'qemu-io -d {device} "{command}"',
                libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
            )
        if reply:
            raise errors.HostError(reply.strip())

    def _xml(self, vm: VmSpec) -> str:
        targets = ",".join(disk.target for disk in vm.disks)
        return f"""
            <domain type='qemu'>
              <name>{vm.id}</name>
              <uuid>{vm.id}</uuid>
              <title>{escape(vm.name)}</title>
              <memory unit='b'>{vm.memory}</memory>
              <os>
                <type arch='x86_64' machine='q35'>hvm</type>
                <kernel>{self._image.unpacked}</kernel>
                <initrd>{self._image.initramfs}</initrd>
                <cmdline>console=ttyS0 {_QUICKLY} lab.disks={targets}</cmdline>
              </os>
              <features><acpi/></features>
              <on_poweroff>destroy</on_poweroff>
              <on_crash>destroy</on_crash>
              <devices>
                {"".join(map(_disk_xml, vm.disks))}
                <controller type='scsi' model='virtio-scsi'/>
                <controller type='usb' model='none'/>
                <channel type='unix'>
                  <source mode='bind' path='{self._directory / vm.id}.agent'/>
                  <target type='virtio' name='org.qemu.guest_agent.0'/>
                </channel>
                <serial type='file'><source path='{self._directory / vm.id}.console'/></serial>
                <video><model type='none'/></video>
                <memballoon model='none'/>
              </devices>
            </domain>"""


def _disk_xml(disk: DiskSpec) -> str:
    bus = "virtio" if disk.bus == "virtio" else "scsi"
    return f"""
                <disk type='file' device='disk'>
                  <driver name='qemu' type='{disk.format}' cache='none' io='threads' discard='unmap' error_policy='stop'/>
                  <source file='{disk.path}'/>
                  <target dev='{disk.target}' bus='{bus}'/>
                  <serial>{disk.id}</serial>
                  <alias name='ua-{disk.id}'/>
                </disk>"""


def _no_such_vm(vm_id: str) -> errors.HostError:
    return errors.HostError(f"Virtual machine does not exist: {{'vmId': '{vm_id}'}}", errors.NO_SUCH_VM)


@contextlib.contextmanager
def libvirt_errors(code: int = errors.GENERAL_ERROR) -> Iterator[None]:
    """Turn libvirt's errors into HostError with libvirt's text and vdsm's code."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise errors.HostError(str(error), code) from error
