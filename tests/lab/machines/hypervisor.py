"""
A machine as an oVirt host: where its users, directories, sockets and daemons are, as vdsm and its packages leave them.

The machines' Debian releases have other versions of QEMU and libvirt than this one, so the host's daemons come from
here: they see this machine's /usr as theirs (read-only), and run as units of the machine's systemd, with its users, in its
network. An agent on the machine sees none of that, only their sockets.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.lab import processes
from tests.lab.errors import LabError
from tests.lab.machines import roots
from tests.lab.machines.machine import Bind, Machine
from tests.lab.places import User

# User and group; as vdsm's packages have them.
OWNERS: dict[User, tuple[int, int]] = {
    "vdsm": (roots.VDSM_ID, roots.VDSM_ID),
    "qemu": (roots.QEMU_ID, roots.QEMU_ID),
    "ovirtimg": (roots.IMAGEIO_ID, roots.IMAGEIO_ID),
}

# On the machine: what the host's daemons see as their root.
PROGRAMS = Path("/srv/programs")

# Made at every boot.
TMPFILES = """\
d /run/vdsm 0755 vdsm kvm -
d /run/vdsm/backup 0770 vdsm kvm -
d /run/vdsm/nbd 0755 vdsm kvm -
d /run/ovirt-imageio 0750 ovirtimg ovirtimg -
d /run/libvirt 0755 qemu qemu -
"""

# KillMode: QEMU, which libvirtd starts, goes on without it. UMask: a live backup's socket is its group's, too; Image
# I/O's control socket is nobody's but its group's.
UNIT = """\
[Service]
Type=exec
ExecStart={command}
User={user}
{environment}
UMask={umask}
KillMode=process
RootDirectory={programs}
MountAPIVFS=no
BindPaths=/proc /sys /dev /run /var {directories}
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
"""

UMASKS: dict[User, str] = {"vdsm": "0022", "qemu": "0002", "ovirtimg": "0117"}


class Unit:
    """
    A daemon of a host, as a unit of its systemd.
    """

    def __init__(self, machine: Machine, name: str, text: str, lasting: bool) -> None:
        """lasting: it starts again when the machine boots."""
        self._machine = machine
        self._name = f"{name}.service"
        self._lasting = lasting
        (machine.root / self._file).write_text(text)
        machine.run("systemctl", "daemon-reload")
        if lasting:
            machine.run("systemctl", "enable", "--quiet", self._name)
        try:
            machine.run("systemctl", "start", self._name)
        except LabError:
            raise self._ended() from None

    def wait_until(self, ready: Callable[[], bool], timeout: float = 60) -> None:
        def active_and_ready() -> bool:
            if ready():
                return True
            if self._show("ActiveState") in ("failed", "inactive"):
                raise self._ended()
            return False

        processes.wait_for(f"start of {self._name} on {self._machine.name}", active_and_ready, timeout)

    def stop(self) -> None:
        self._machine.run("systemctl", "stop", self._name)
        if not self._lasting:
            (self._machine.root / self._file).unlink()

    @property
    def _file(self) -> str:
        return f"{'etc' if self._lasting else 'run'}/systemd/system/{self._name}"

    def _ended(self) -> LabError:
        journal = self._machine.run("journalctl", "--no-pager", "-n", "20", "-u", self._name)
        return LabError(f"{self._name} of {self._machine.name} ended: {journal}")

    def _show(self, name: str) -> str:
        return self._machine.run("systemctl", "show", "--value", "--property", name, self._name).strip()


class Hypervisor:
    """
    The Place that a machine is.
    """

    python = Path("/usr/bin/python3")

    def __init__(self, machine: Machine, files: Path, volumes: Path) -> None:
        """machine: up, with binds(files, volumes).  files: for the host's files.  volumes: the lab's storage."""
        self._machine = machine
        self._directories = (files, volumes)
        self.address = machine.address
        self.imageio_port = 54322
        self.files = files
        self.backups = Path("/run/vdsm/backup")
        self.nbd = Path("/run/vdsm/nbd")
        self.control_socket = Path("/run/ovirt-imageio/sock")
        self.data_socket = "@/org/ovirt/imageio"
        self.imageio = files / "imageio"
        self.libvirt = files / "libvirt"
        self.runtime = Path("/run")
        self._set_up_programs()
        (machine.root / "etc/tmpfiles.d/lab.conf").write_text(TMPFILES)
        machine.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/lab.conf")

    def agent_settings(self) -> dict[str, object]:
        """Everything is where an agent looks for it."""
        return {}

    def daemon(
        self,
        name: str,
        command: Sequence[str | Path],
        user: User,
        environment: Mapping[str, str],
        lasting: bool = True,
    ) -> Unit:
        variables = {"PYTHONPATH": str(self.files / "python"), **environment}
        text = UNIT.format(
            command=" ".join(_quoted(str(word)) for word in self._with_path(command)),
            user=user,
            environment="\n".join(f"Environment={_quoted(f'{key}={value}')}" for key, value in variables.items()),
            umask=UMASKS[user],
            programs=PROGRAMS,
            directories=" ".join(map(str, self._directories)),
        )
        return Unit(self._machine, name, text, lasting)

    def directory(self, path: Path, user: User) -> Path:
        seen = self.seen(path)
        if not seen.exists():
            seen.mkdir(parents=True)
            os.chown(seen, *OWNERS[user])
        return seen

    def seen(self, path: Path) -> Path:
        if any(path.is_relative_to(directory) for directory in self._directories):
            return path
        return self._machine.root / path.relative_to("/")

    def kill(self, pid: int) -> None:
        self._machine.run("kill", "-KILL", str(pid))

    def _set_up_programs(self) -> None:
        """Make a root around this machine's /usr, which is there already, and the machine's own users."""
        root = self._machine.root / PROGRAMS.relative_to("/")
        for link in ("bin", "sbin", "lib", "lib64"):
            (root / link).symlink_to(f"usr/{link}")
        for directory in ("proc", "sys", "dev", "run", "tmp", "var", "etc"):
            (root / directory).mkdir()
        (root / "tmp").chmod(0o1777)
        for file in ("passwd", "group", "nsswitch.conf"):
            shutil.copy(self._machine.root / "etc" / file, root / "etc" / file)
        shutil.copy("/etc/ld.so.cache", root / "etc/ld.so.cache")
        # Image I/O is not in /usr but in our virtual environment, which no machine sees.
        package = Path(sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages", "ovirt_imageio")
        shutil.copytree(package, self.files / "python/ovirt_imageio")
        shutil.copy(Path(sys.prefix, "bin/ovirt-imageio"), self.files / "python/ovirt-imageio")

    def _with_path(self, command: Sequence[str | Path]) -> list[str | Path]:
        """A command with its program's full path, as the host's daemons see it."""
        program, *arguments = command
        if Path(program).is_relative_to(sys.prefix):
            return [Path(sys.executable).resolve(), self.files / "python" / Path(program).name, *arguments]
        found = shutil.which(program)
        if found is None:
            raise LabError(f"The program {program} is missing: run `sh tests/setup`, which installs what the lab needs")
        return [Path(found).resolve(), *arguments]


def binds(*directories: Path) -> list[Bind]:
    """What a machine must see of this one to be a host: directories of the lab, and the programs of the daemons."""
    lab = [Bind(directory, directory, writable=True) for directory in directories]
    return [*lab, Bind(Path("/usr"), PROGRAMS / "usr", writable=False)]


def _quoted(word: str) -> str:
    """A word as systemd reads it back."""
    for special, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(special, escaped)
    return f'"{word}"'
