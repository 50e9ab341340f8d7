"""
A real sshd on a port of its own, for root, with a key that the lab made; and the way into any host of a lab.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Protocol

from tests.lab import processes

# sshd insists on this directory for its unprivileged child; it is usually made when the machine boots.
PRIVILEGE_SEPARATION = Path("/run/sshd")


class Login(Protocol):
    """
    The way into a host.

    address, ssh_port: where sshd listens.  ssh_public_key: the host's, "ssh-ed25519 AAAA…".
    ssh_fingerprint: the host key's, "SHA256:…".  client_key: a private key that root may log in with.
    """

    address: str
    ssh_port: int
    client_key: Path

    @property
    def ssh_public_key(self) -> str: ...

    @property
    def ssh_fingerprint(self) -> str: ...

    def wait(self) -> None:
        """Wait until somebody can log in."""

    def stop(self) -> None:
        """Let nobody in any more."""


class Sshd:
    """
    A Login of this machine.
    """

    address = "127.0.0.1"

    def __init__(self, directory: Path, client_key: Path, lab: Path) -> None:
        """directory: for its files, not there yet.  client_key: the private key that root may log in with."""
        directory.mkdir(parents=True)
        self.ssh_port = processes.free_port()
        self.client_key = client_key
        host_key = new_key(directory / "host_key")
        self.ssh_public_key = public_key(host_key)
        self.ssh_fingerprint = fingerprint(host_key)
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        configuration = directory / "sshd_config"
        configuration.write_text(f"""
ListenAddress 127.0.0.1:{self.ssh_port}
HostKey {host_key}
PidFile none
AuthorizedKeysFile {self.client_key}.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp
# What a login starts belongs to the lab.
SetEnv {processes.MARK}={lab}
""")
        # sshd wants to be called by its full path, because it starts itself again for each connection.
        program = shutil.which("sshd") or "sshd"
        self._daemon = processes.Daemon([program, "-D", "-e", "-f", configuration], lab=lab, log=directory / "sshd.log")

    def wait(self) -> None:
        """Wait until it answers."""
        self._daemon.wait_until(lambda: answers(self.address, self.ssh_port))

    def stop(self) -> None:
        """Stop listening; sessions go on."""
        self._daemon.stop()


def answers(address: str, port: int) -> bool:
    """Whether an sshd greets there now."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def command(login: Login, *words: str, user: str = "root") -> list[str]:
    """The ssh command that logs in, with words as what to run there."""
    options = ["-o", "BatchMode=yes", "-o", "UserKnownHostsFile=/dev/null"]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
    key = ["-F", "none", "-i", str(login.client_key), "-p", str(login.ssh_port)]
    return ["ssh", *options, *key, f"{user}@{login.address}", *words]


def new_key(path: Path) -> Path:
    """Make a pair of keys and return the private one; the public one gets the suffix .pub."""
    processes.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", path)
    return path


def public_key(key: Path) -> str:
    """The public part of a key, without its comment."""
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


def fingerprint(key: Path) -> str:
    """A key's "SHA256:…"."""
    return processes.run("ssh-keygen", "-l", "-f", key).split()[1]
