"""
A whole oVirt in a box: one engine simulator, its hosts, one storage, one certificate authority, one directory.

    with Lab.up() as lab:
        vm = lab.new_vm("db01")
        vm.guest.run("echo hello >/mnt/vda/hello")

The host is on this machine, or, in Lab.up(machines=["bullseye", "trixie"]), each is a machine of its own.

When the lab's owner ends, however it ends, nothing of the lab is left (see `reaper`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import certificates, places, processes, reaper, sshd, storage
from tests.lab.domains import Bus, DiskSpec, VmSpec
from tests.lab.errors import LabError
from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.machines import fleet, support
from tests.lab.machines.machine import Machine
from tests.lab.machines.roots import Release
from tests.lab.storage import Format

if TYPE_CHECKING:
    from tests.lab.engine import EngineSimulator

KiB = 1 << 10
MiB = 1 << 20

# Enough for the kernel, its initramfs and a shell.
GUEST_MEMORY = 192 * MiB

PROGRAMS = (
    *("libvirtd", "qemu-system-x86_64", "qemu-img", "qemu-nbd", "nbdcopy", "nbdinfo", "ssh", "sshd"),
    *("ssh-keygen", "setpriv", "mke2fs", "busybox", "cpio", "depmod", "mmdebstrap", "dpkg-deb"),
)


@dataclasses.dataclass(frozen=True)
class NewDisk:
    """
    A disk of a VM to be made.

    size: bytes, a multiple of 512.  ext4: with a file system on it, which the guest mounts; else empty.
    content: a raw file that it begins as, in place of both.
    """

    size: int
    format: Format = "qcow2"
    bus: Bus = "virtio"
    ext4: bool = True
    content: Path | None = None


# The second one's size is a multiple of neither the window (1 MiB) nor the bitmap's grain (64 KiB).
DEFAULT_DISKS = (
    NewDisk(256 * MiB),
    NewDisk(128 * MiB + 9 * 64 * KiB + 7 * 512, bus="virtio-scsi"),
    NewDisk(96 * MiB, format="raw"),
)


class Vm:
    """
    A VM of the lab, with its guest.

    spec: as it is now; disk paths follow snapshots.
    """

    def __init__(self, host: Host, vm_id: str) -> None:
        self._host = host
        self.id = vm_id
        self.guest: Guest = host.guest(vm_id)

    @property
    def spec(self) -> VmSpec:
        return self._host.vm(self.id)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def disks(self) -> tuple[DiskSpec, ...]:
        return self.spec.disks

    def start(self) -> None:
        """Start it and wait until the guest is up."""
        self._host.start_vm(self.id)
        self.guest.wait_until_up()

    def power_off(self) -> None:
        """Press the power button and wait until the guest has gone down cleanly."""
        self._host.shutdown_vm(self.id)
        self.wait_until_down()

    def discard(self) -> None:
        """Stop it and free the space of its disks.  The engine goes on listing it, as powered off."""
        self._host.destroy_vm(self.id)
        for disk in self.disks:
            shutil.rmtree(disk.path.parent, ignore_errors=True)

    def wait_until_down(self) -> None:
        """Wait until the guest has gone down by itself."""
        processes.wait_for(f"shutdown of VM {self.name}", lambda: self._host.vm_state(self.id) == "down", 30)


class Lab:
    """
    directory: everything is in it.  ca: the engine's CA, PEM.  username, password: of the engine.
    client_key: with which root may log in on every host.  hosts: in their order.  machines: the hosts' own, if any.
    """

    def __init__(self, directory: Path, machines: Sequence[Release] = ()) -> None:
        """Start everything.  directory: of the reaper's making.  machines: releases of hosts that are machines."""
        # Imported here because the engine's simulator imports the host's modules beside this one.
        from tests.lab.engine import EngineSimulator

        self.directory = directory
        self.username = "admin@internal"
        self.password = secrets.token_urlsafe(12)
        authority = certificates.Authority(directory)
        self.ca = authority.pem
        self.password_file = directory / "password"
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(self.password + "\n")
        self.client_key = sshd.new_key(directory / "client_key")
        volumes = directory / "storage"
        self.machines: list[Machine] = []
        if machines:
            self.machines = fleet.boot(directory, machines, self.client_key, volumes)
            self.hosts = fleet.hosts(directory, self.machines, volumes, authority)
        else:
            self.hosts = [_host_here(directory, self.client_key, volumes, authority)]
        self.engine: EngineSimulator = EngineSimulator(
            directory / "engine",
            ca=authority,
            hosts=self.hosts,
            username=self.username,
            password=self.password,
        )
        self.engine.start()

    @classmethod
    @contextlib.contextmanager
    def up(cls, directory: Path | None = None, machines: Sequence[Release] = ()) -> Iterator[Lab]:
        """
        Run a lab for the length of a with statement.

        directory: must not exist; its name must be short, because sockets go into it.  Default: a new one in
        /var/tmp.  machines: one for each host; none: the one host is on this machine.
        Raises LabError when something is missing on this machine.
        """
        check_machine()
        if machines and (reason := support.unavailable()):
            raise LabError(reason)
        reaper.sweep()
        keeper = reaper.Reaper(directory)
        try:
            lab = cls(keeper.directory, machines)
            try:
                yield lab
            finally:
                lab.engine.stop()
                for host in lab.hosts:
                    host.stop()
        finally:
            keeper.release()

    @property
    def host(self) -> Host:
        """The first one, in most labs the only one."""
        return self.hosts[0]

    def new_vm(
        self,
        name: str | None = None,
        disks: Sequence[NewDisk] = DEFAULT_DISKS,
        *,
        start: bool = True,
        host: Host | None = None,
    ) -> Vm:
        """
        Make a VM with its disks, known to the engine; booted when start is true.

        name: default, a new one.  host: on which it lives, default the first.
        """
        host = host or self.host
        vm_id = str(uuid.uuid4())
        spec = VmSpec(
            id=vm_id,
            name=name or f"vm-{vm_id[:8]}",
            disks=tuple(self._new_disks(disks)),
            memory=GUEST_MEMORY,
        )
        host.define_vm(spec)
        self.engine.add_vm(spec, host)
        vm = Vm(host, vm_id)
        if start:
            vm.start()
        return vm

    def _new_disks(self, disks: Sequence[NewDisk]) -> Iterator[DiskSpec]:
        letters: dict[Bus, Iterator[str]] = {"virtio": iter("abcdef"), "virtio-scsi": iter("abcdef")}
        for disk in disks:
            disk_id = str(uuid.uuid4())
            path = self.host.volume_path(disk_id, str(uuid.uuid4()))
            if disk.content is not None:
                storage.create_from(path, disk.format, disk.size, disk.content)
            elif disk.ext4:
                storage.create_ext4(path, disk.format, disk.size)
            else:
                storage.create(path, disk.format, disk.size)
            prefix = "vd" if disk.bus == "virtio" else "sd"
            yield DiskSpec(
                id=disk_id,
                target=prefix + next(letters[disk.bus]),
                bus=disk.bus,
                format=disk.format,
                path=path,
                size=disk.size,
            )


def _host_here(directory: Path, client_key: Path, volumes: Path, ca: certificates.Authority) -> Host:
    files = directory / "host"
    files.mkdir()
    place = places.Here(files, directory)
    place.directory(volumes, "vdsm")
    return Host("host1", place, sshd.Sshd(files / "sshd", client_key, directory), volumes, ca)


def check_machine() -> None:
    """Raises LabError when this machine cannot run a lab."""
    if os.geteuid() != 0:
        raise LabError("The lab needs root: it runs sshd for root, and QEMU as another user")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise LabError(f"The lab cannot run here, programs are missing: {', '.join(missing)}; run `sh tests/setup`")
