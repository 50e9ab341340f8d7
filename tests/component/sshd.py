"""A real sshd for unit tests: a free loopback port, keys of every type, its own configuration."""

import getpass
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from blockferry.deploy import hostkey
from blockferry.deploy.login import Login
from blockferry.transport import tunnel

KEY_TYPES = ("ed25519", "ecdsa", "rsa")


class Sshd:
    """
    Lets the user who runs the tests in with `client_key`.

    host_keys: public keys by type ("ed25519"), as in a .pub file.
    """

    def __init__(self, directory: Path, key_types: tuple[str, ...] = KEY_TYPES, extra: str = "") -> None:
        self.directory = directory
        directory.mkdir()
        self.client_key = self.keygen("client_key", "ed25519")
        host_keys = [self.keygen(f"host_{kind}", kind) for kind in key_types]
        self.host_keys = {
            kind: key.with_suffix(".pub").read_text() for kind, key in zip(key_types, host_keys, strict=True)
        }
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self._config = directory / "sshd_config"
        self._config.write_text(
            "\n".join(
                [
                    f"ListenAddress 127.0.0.1:{self.port}",
                    *(f"HostKey {key}" for key in host_keys),
                    f"AuthorizedKeysFile {self.client_key}.pub",
                    "PidFile none",
                    "PermitRootLogin yes",
                    "PasswordAuthentication yes",
                    "KbdInteractiveAuthentication no",
                    "StrictModes no",
                    "UsePAM no",
                    "MaxStartups 100",
                    # Debian's bash reads .bashrc when sshd starts it, but not at a second level; some take long.
                    "SetEnv SHLVL=1",
                    *([extra] if extra else ["Subsystem sftp internal-sftp"]),
                ]
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def keygen(self, name: str, kind: str, passphrase: str = "") -> Path:
        """Make a key pair in the directory and return the private key's path."""
        path = self.directory / name
        size = ["-b", "2048"] if kind == "rsa" else []
        command = ["ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-C", "test", "-f", str(path)]
        subprocess.run(command, check=True)
        return path

    def __enter__(self) -> Self:
        # sshd insists on this directory for its unprivileged child; it is usually made when the machine boots.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        # It wants its full path, because it starts itself again for each connection.
        program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "/usr/sbin/sshd"
        with (self.directory / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen([program, "-D", "-e", "-f", self._config], stderr=log)
        deadline = time.monotonic() + 10
        while not self._answers():
            text = (self.directory / "sshd.log").read_text()
            assert self._process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """Of the process that listens."""
        assert self._process is not None
        return self._process.pid

    def way(self, socket: Path, **changes: object) -> tunnel.Way:
        """Return the way to an agent's socket, with some of it changed. No ssh_config of this machine plays a part."""
        config = self.directory / "ssh_config"
        config.touch()
        way = tunnel.Way(
            host_name="host1",
            address="127.0.0.1",
            port=self.port,
            user=getpass.getuser(),
            host_key=" ".join(next(iter(self.host_keys.values())).split()[:2]),
            alias="a1.agent.blockferry.invalid",
            socket=str(socket),
            key_file=self.client_key,
            config_file=config,
        )
        return way._replace(**changes)

    def login(self, **changes: object) -> Login:
        """Return how the tests log in, with some of it changed."""
        login = Login(
            "127.0.0.1",
            (hostkey.from_public_key(next(iter(self.host_keys.values()))),),
            port=self.port,
            user=getpass.getuser(),
            key_file=self.client_key,
        )
        return login._replace(**changes)
