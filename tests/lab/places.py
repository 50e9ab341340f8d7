"""
Where a host's daemons run: here, as processes of the lab's owner, or on a machine of its own (machines.hypervisor).
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from tests.lab import host_python, processes

# The users of an oVirt host that its daemons run as.
User = Literal["qemu", "vdsm", "ovirtimg"]


class Service(Protocol):
    """A daemon of a host."""

    def wait_until(self, ready: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until it is ready.  Raises LabError with the end of its log when it ends before."""

    def stop(self) -> None:
        """Stop it; one that has ended is fine."""


class Place(Protocol):
    """
    All paths are as the place's own programs see them; seen() says where they are found from here.

    address, imageio_port: where clients reach Image I/O.  files: for the host's files, under the same path here.
    python: the Python that an agent finds.
    backups, nbd: for sockets of live backups, and of qemu-nbd.  control_socket, data_socket: Image I/O's; the data
    socket may be an abstract one, "@…".  imageio: for its configuration.  libvirt: for libvirtd's files.
    runtime: where libvirtd makes the directory of its sockets.
    """

    address: str
    imageio_port: int
    files: Path
    backups: Path
    nbd: Path
    control_socket: Path
    data_socket: str
    imageio: Path
    libvirt: Path
    runtime: Path

    @property
    def python(self) -> Path: ...

    def agent_settings(self) -> dict[str, object]:
        """What an agent on this host must be told, because not all of it is as on an oVirt host."""

    def daemon(
        self,
        name: str,
        command: Sequence[str | Path],
        user: User,
        environment: Mapping[str, str],
        lasting: bool = True,
    ) -> Service:
        """
        Start a daemon.

        name: unique on the host.  command: a program of this machine, wherever it runs.  environment: added to what it
        has.  lasting: it starts again when the place is booted.
        """

    def directory(self, path: Path, user: User) -> Path:
        """
        Make a directory that belongs to a user, unless it is there, and return where it is seen from here.

        It is there after a boot, too.
        """

    def seen(self, path: Path) -> Path:
        """Where a path of the place is found from here; another one after a boot."""

    def kill(self, pid: int) -> None:
        """SIGKILL to a process, by the number that it has at the place."""


class Here:
    """
    This machine.  All daemons but Image I/O run as one unprivileged user.
    """

    def __init__(self, directory: Path, lab: Path) -> None:
        """directory: for everything, short, because sockets go into it.  lab: the lab's directory."""
        self._lab = lab
        self.address = "127.0.0.1"
        self.imageio_port = processes.free_port()
        self.files = directory
        self.backups = directory / "run/vdsm/backup"
        self.nbd = directory / "run/vdsm/nbd"
        self.imageio = directory / "run/imageio"
        self.control_socket = self.imageio / "control.sock"
        self.data_socket = str(self.imageio / "data.sock")
        self.libvirt = directory / "libvirt"
        self.runtime = self.libvirt / "run"

    @property
    def python(self) -> Path:
        """3.9, as on EL9."""
        return host_python.build()

    def agent_settings(self) -> dict[str, object]:
        return {
            "port": processes.free_port(),
            "directory": str(self.files / "agent"),
            "python": str(self.python),
            "control_socket": str(self.control_socket),
            "data_socket": self.data_socket,
            "nbd_directories": [str(self.backups), str(self.nbd)],
        }

    def daemon(
        self,
        name: str,
        command: Sequence[str | Path],
        user: User,
        environment: Mapping[str, str],
        lasting: bool = True,
    ) -> processes.Daemon:
        # Image I/O may connect to every socket, as on an oVirt host, where its user is in the others' groups.
        as_user = () if user == "ovirtimg" else processes.AS_USER
        return processes.Daemon(
            [*as_user, *command], lab=self._lab, log=self.files / f"{name}.log", environment=dict(environment)
        )

    def directory(self, path: Path, user: User) -> Path:
        if not path.exists():
            path.mkdir(parents=True)
            if user != "ovirtimg":
                shutil.chown(path, processes.USER, processes.GROUP)
        return path

    def seen(self, path: Path) -> Path:
        return path

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
