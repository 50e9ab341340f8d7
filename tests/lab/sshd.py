"""
A real sshd on a port of its own, for root, with a key that the lab made.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from tests.lab import processes

# sshd insists on this directory for its unprivileged child; it is usually made when the machine boots.
PRIVILEGE_SEPARATION = Path("/run/sshd")


class Sshd:
    """
    port: on 127.0.0.1.  public_key: the host's, "ssh-ed25519 AAAA…".  fingerprint: its "SHA256:…".
    client_key: a private key that root may log in with.
    """

    def __init__(self, directory: Path, lab: Path) -> None:
        self.port = processes.free_port()
        self.client_key = directory / "client_key"
        host_key = directory / "host_key"
        for key in (host_key, self.client_key):
            processes.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", key)
        self.public_key = " ".join(host_key.with_suffix(".pub").read_text().split()[:2])
        self.fingerprint = processes.run("ssh-keygen", "-l", "-f", host_key).split()[1]
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        configuration = directory / "sshd_config"
        configuration.write_text(f"""
ListenAddress 127.0.0.1:{self.port}
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
        self._daemon.wait_until(self._answers)

    def command(self, *words: str) -> list[str]:
        """The ssh command that logs in as root, with words as what to run there."""
        options = ["-o", "BatchMode=yes", "-o", "UserKnownHostsFile=/dev/null"]
        options += ["-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
        key = ["-F", "none", "-i", str(self.client_key), "-p", str(self.port)]
        return ["ssh", *options, *key, "root@127.0.0.1", *words]

    def stop(self) -> None:
        """Stop listening; sessions go on."""
        self._daemon.stop()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False
