"""
A machine of its own: a Debian root booted by systemd-nspawn, with its own systemd, sshd, users and network.

Its root is an overlay over the cached one; all its mounts are in a mount namespace of its own, so that nothing of it
can be left over here.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.lab import processes, sshd
from tests.lab.errors import LabError
from tests.lab.machines import control_group, roots
from tests.lab.machines.network import Network
from tests.lab.machines.roots import Release

SSH_PORT = 22

# Seconds; a boot takes two to five when nobody else wants the processors.
BOOT_TIMEOUT = 60

# What systemd-nspawn ends with when the machine wants to boot again, and has to be started anew.
REBOOT = 133

# $1: control group. $2: the machine's directory. $3: the root below. $4...: options of systemd-nspawn.
# systemd-nspawn looks at /sys/fs/cgroup for what kind of control groups there are: the machine gets version 2 only.
# /run/systemd is where it keeps locks and names that must be unique on one machine.
LAUNCHER = f"""
echo $$ >"$1/cgroup.procs"
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mount -t overlay -o "lowerdir=$3,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
directory=$2
shift 3
while
    status=0
    systemd-nspawn --directory="$directory/root" "$@" || status=$?
    [ $status = {REBOOT} ]
do :; done
exit $status
"""


class Bind(NamedTuple):
    """A directory of this machine that another one sees at target."""

    source: Path
    target: Path
    writable: bool


class Machine:
    """
    Booted when it is made; wait() until it is up.

    address, ssh_port: where its sshd listens.  client_key: a private key that root, operator and clerk may log in
    with.  python: the version that `python3` has there, "3.9".
    """

    def __init__(
        self,
        directory: Path,
        release: Release,
        network: Network,
        client_key: Path,
        lab: Path,
        name: str = "",
        binds: Sequence[Bind] = (),
    ) -> None:
        """
        directory: not there yet, for its changes.  binds: directories of this machine that it shall see.

        lab: the lab's directory.  name: its host name, unique in the lab, default the release.
        """
        self.name = name or release
        self.release = release
        self.python = roots.PYTHONS[release]
        self.ssh_port = SSH_PORT
        self.client_key = client_key
        self._lab = lab
        self._directory = directory
        self._host_key = directory / "host_key"
        self._base = roots.build(release)
        for path in ("upper", "work", "root"):
            (directory / path).mkdir(parents=True)
        self._personalize()
        self._wire = network.wire()
        self.address = self._wire.address
        self._options = [f"--bind{'' if bind.writable else '-ro'}={bind.source}:{bind.target}" for bind in binds]
        self.start()

    @property
    def ssh_public_key(self) -> str:
        """The machine's, "ssh-ed25519 AAAA…"."""
        return sshd.public_key(self._host_key)

    @property
    def ssh_fingerprint(self) -> str:
        """Of the machine's key, "SHA256:…"."""
        return sshd.fingerprint(self._host_key)

    @property
    def root(self) -> Path:
        """Its tree as it is seen from here, with all that is mounted there; another path after a boot."""
        return Path(f"/proc/{self._init}/root")

    def start(self) -> None:
        """Turn it on; returns before it is up."""
        self._group = control_group.of_machine(self._lab, self.name)
        self._launcher = processes.Daemon(
            [
                *("nsenter", f"--net={self._wire.namespace.path}", "unshare", "--mount"),
                *("sh", "-euc", LAUNCHER, "sh", self._group, self._directory, self._base),
                *("--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no", "--console=pipe"),
                *(
                    "--network-namespace-path=/proc/self/ns/net",
                    "--capability=CAP_NET_ADMIN",
                    "--system-call-filter=bpf",
                ),
                *("--link-journal=no", "--resolv-conf=off", "--timezone=off", f"--machine={self.name}"),
                *self._options,
            ],
            lab=self._lab,
            log=self._directory / "console.log",
        )

    def wait(self) -> None:
        """Wait until it is up: all units are started, and sshd answers."""
        self._launcher.wait_until(self._is_up, BOOT_TIMEOUT)

    def reboot(self) -> None:
        """Shut it down in order, and return when it is up again."""
        before = self._init
        self.run("systemctl", "--no-block", "reboot")
        processes.wait_for(f"shutdown of {self.name}", lambda: not Path(f"/proc/{before}").exists(), BOOT_TIMEOUT)
        self.wait()

    def lose_power(self) -> None:
        """Turn it off in the middle of whatever it does; start() turns it on again."""
        control_group.kill(self._group)
        self._launcher.stop()

    def stop(self) -> None:
        """Turn it off for good."""
        self.lose_power()
        self._wire.close()

    def cut_link(self) -> None:
        """Let nothing in or out; nobody is told."""
        self._wire.cut()

    def join_link(self) -> None:
        """Undo cut_link()."""
        self._wire.join()

    def limit_link(self, bytes_per_second: int | None) -> None:
        """Let no more than this pass, each way; None: no limit."""
        self._wire.limit(bytes_per_second)

    def run(self, *words: str, input: bytes | None = None, timeout: float = 60) -> str:
        """
        Run a command as root on the machine, past its network, and return what it printed.

        Raises LabError with its error text when it fails.
        """
        return processes.run(*self.command(*words), input=input, timeout=timeout)

    def command(self, *words: str) -> list[str]:
        """The command of this machine that runs words as root on that one, past its network."""
        enter = ["nsenter", f"--target={self._init}", "--all", "--root", "--wd", "--", "env", "-i"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, path, "HOME=/root", "LANG=C.UTF-8", *words]

    def ssh_command(self, *words: str, user: str = "root") -> list[str]:
        """The ssh command that runs words on it, or logs in."""
        return sshd.command(self, *words, user=user)

    @property
    def _init(self) -> int:
        """The process here that is the machine's first.  Raises LabError when it is off."""
        # The launcher is nsenter, then unshare, then sh; systemd-nspawn is its child, and the machine's first its.
        for nspawn in _children(self._launcher.pid):
            for child in _children(nspawn):
                if _is_first_of_its_kind(child):
                    return child
        raise LabError(f"The machine {self.name} is off: see {self._directory / 'console.log'}")

    def _is_up(self) -> bool:
        try:
            # Fails, too, when a unit has failed; the machine is up all the same.
            state = self.run("sh", "-c", "systemctl is-system-running || true").strip()
        except LabError:
            return False
        return state in ("running", "degraded") and sshd.answers(self.address, self.ssh_port)

    def _personalize(self) -> None:
        """Give it the files that no two machines share."""
        etc = self._directory / "upper/etc"
        (etc / "ssh").mkdir(parents=True)
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        sshd.new_key(self._host_key)
        for suffix in ("", ".pub"):
            shutil.copy(f"{self._host_key}{suffix}", etc / f"ssh/ssh_host_ed25519_key{suffix}")
        authorized_keys = self._directory / "upper" / roots.AUTHORIZED_KEYS
        authorized_keys.write_bytes(self.client_key.with_suffix(".pub").read_bytes())
        authorized_keys.chmod(0o644)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _is_first_of_its_kind(pid: int) -> bool:
    """Whether a process is number 1 of a process namespace."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    (numbers,) = [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")]
    return len(numbers) > 1 and numbers[-1] == "1"
