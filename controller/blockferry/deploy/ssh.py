"""
The way to a host: SSH with pinned host keys, commands as argument lists, files through SFTP.

The border to paramiko: what it, sockets and the system raise leaves here as DeployError or HostKeyMismatch, with the
host's name and the next step. Bulk data does not go this way (paramiko#822).
"""

import contextlib
import logging
import posixpath
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import UnknownKeyType

from blockferry import errors
from blockferry.deploy import hostkey
from blockferry_agent.units import KiB

# What paramiko logs on its own threads reaches the operator as an error of ours; its tracebacks help nobody.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

_OUTPUT_LIMIT = 256 * KiB
_KEEPALIVE = 15


class Login(NamedTuple):
    """
    How to reach a host and who we are there.

    address: IP address or DNS name.  pins: the keys that the host may show; none means: no connection.
    key_file: private key; without it the SSH agent's keys are offered.  password: tried last.
    timeout: seconds to connect, and for any one answer of the SSH server.
    """

    address: str
    pins: tuple[hostkey.Pin, ...]
    port: int = 22
    user: str = "root"
    key_file: Path | None = None
    password: str | None = None
    timeout: float = 20.0

    def __repr__(self) -> str:
        """Without the password: values end up in logs and tracebacks."""
        return f"Login({self.user}@{self.address}:{self.port})"


class Output(NamedTuple):
    """What a command left. status: 0 when all was well; 127 when there is no such command."""

    status: int
    stdout: str
    stderr: str


def connect(login: Login) -> "Connection":
    """Log in to a host. Who connects closes the connection. Raises HostKeyMismatch, DeployError."""
    where = f"{login.address}:{login.port}"
    if not login.pins:
        raise errors.DeployError(
            f"No SSH host key is known for {where}, and none is trusted unseen.",
            "In the engine's Edit Host dialog, under Advanced Parameters, fetch the host's SSH public key.",
        )
    shown: list[str] = []
    for algorithms in hostkey.negotiations(login.pins):
        with _border(where, login.timeout), contextlib.ExitStack() as opened:
            transport = _transport(login)
            opened.callback(transport.close)
            transport.get_security_options().key_types = algorithms
            try:
                transport.start_client(timeout=login.timeout)
            except paramiko.ssh_exception.IncompatiblePeer as error:
                if "host key" not in str(error):
                    raise
                continue  # it has no key of this type
            key = transport.get_remote_server_key()
            if key.fingerprint not in {pin.fingerprint for pin in login.pins}:
                shown.append(f"{key.get_name()} {key.fingerprint}")
                continue
            _authenticate(transport, login)
            transport.set_keepalive(_KEEPALIVE)
            opened.pop_all()
            return Connection(transport, where, login.timeout)
    raise errors.HostKeyMismatch(
        f"{where} shows {', '.join(shown) or 'no key of the pinned type'}, "
        f"but {', '.join(sorted(pin.fingerprint for pin in login.pins))} is pinned.",
        "Somebody may stand between: compare with `ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub` on the host's "
        "console, and update the pin only if the host was reinstalled.",
    )


def _transport(login: Login) -> paramiko.Transport:
    connected = socket.create_connection((login.address, login.port), timeout=login.timeout)
    try:
        # A command's request, input and end of input go out as three small packets: without this each call waits 40 ms.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(connected)
    except BaseException:
        connected.close()
        raise
    transport.banner_timeout = login.timeout
    transport.handshake_timeout = login.timeout
    transport.auth_timeout = login.timeout
    transport.channel_timeout = login.timeout
    return transport


def _authenticate(transport: paramiko.Transport, login: Login) -> None:
    offered = []
    for what, prove in _proofs(transport, login):
        offered.append(what)
        with contextlib.suppress(paramiko.AuthenticationException):
            prove()
        if transport.is_authenticated():
            return
    raise errors.DeployError(
        f"{login.address}:{login.port} does not let {login.user} in with {' or '.join(offered) or 'nothing to show'}.",
        f"Add the public key to {login.user}'s authorized_keys on the host, or configure another key or password.",
    )


def _proofs(transport: paramiko.Transport, login: Login) -> Iterator[tuple[str, Callable[[], object]]]:
    """Generate what can be shown to the server, each with its name for messages."""
    if login.key_file is not None:
        yield f"the key {login.key_file}", partial(transport.auth_publickey, login.user, _private_key(login.key_file))
    else:
        with contextlib.closing(paramiko.Agent()) as agent:
            for key in agent.get_keys():
                what = f"the SSH agent's key {key.fingerprint}"
                yield what, partial(transport.auth_publickey, login.user, key)
    if login.password is not None:
        yield "the password", partial(transport.auth_password, login.user, login.password)


def _private_key(path: Path) -> paramiko.PKey:
    try:
        key = paramiko.PKey.from_path(path)
    except TypeError as error:  # how cryptography says that a key needs a password
        raise errors.DeployError(
            f"The SSH key {path} is encrypted.", f"Load it into an SSH agent (`ssh-add {path}`)."
        ) from error
    except (OSError, ValueError, UnsupportedAlgorithm, UnknownKeyType, paramiko.SSHException) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no private key of a known type"
        raise errors.DeployError(
            f"The SSH key {path} cannot be used: {reason}.", "Configure another one, or make one with `ssh-keygen`."
        ) from error
    assert isinstance(key, paramiko.PKey)
    return key


class Connection:
    """
    A login on a host, for one thread at a time.

    where: "address:port", for messages.  peer: the IP address that answered.
    host_key: the pinned key that the host showed, "ssh-ed25519 AAAA…".
    """

    def __init__(self, transport: paramiko.Transport, where: str, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self.where = where
        self.peer: str = transport.getpeername()[0]
        key = transport.get_remote_server_key()
        self.host_key = f"{key.get_name()} {key.get_base64()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Log out. Closing twice is allowed."""
        self._transport.close()

    def call(self, command: Sequence[str], stdin: bytes = b"", timeout: float = 60.0) -> Output:
        """
        Run a command to its end, whatever its exit status.

        timeout: seconds for all of it.  Raises DeployError when it takes longer, prints more than 256 KiB, or the
        connection breaks; the command may then still run.
        """
        deadline = time.monotonic() + timeout
        with _border(self.where, timeout), contextlib.closing(self._transport.open_session()) as channel:
            channel.settimeout(timeout)
            channel.exec_command(shlex.join(command))
            # A command that ends without reading its input closes the channel; its status says more than our failure.
            with contextlib.suppress(OSError):
                channel.sendall(stdin)
                channel.shutdown_write()
            # One after the other: a command that fills the window of stderr first is stopped by the time limit.
            stdout = self._read(channel, channel.recv, deadline)
            stderr = self._read(channel, channel.recv_stderr, deadline)
            if not channel.status_event.wait(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            return Output(channel.recv_exit_status(), stdout, stderr)

    def run(self, command: Sequence[str], stdin: bytes = b"", timeout: float = 60.0) -> str:
        """Run a command that must succeed and return what it printed. Raises DeployError with its last words."""
        output = self.call(command, stdin, timeout)
        if output.status:
            words = output.stderr.strip().splitlines() or ["it printed nothing"]
            hint = "It was killed, or the connection broke: try again." if output.status < 0 else ""
            raise errors.DeployError(f"{command[0]} failed on {self.where} ({output.status}): {words[-1]}.", hint)
        return output.stdout

    def upload(self, data: bytes, path: str, mode: int) -> None:
        """Write a file whose directory exists, completely or not at all. Raises DeployError."""
        unfinished = posixpath.join(posixpath.dirname(path), f".{secrets.token_hex(8)}")
        with _border(self.where, self._timeout), contextlib.closing(self._sftp()) as sftp:
            try:
                with sftp.open(unfinished, "wx") as file:
                    file.chmod(mode)
                    file.set_pipelined(True)
                    file.write(data)
                sftp.posix_rename(unfinished, path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    sftp.remove(unfinished)
                raise errors.DeployError(
                    f"Writing {path} on {self.where} failed: {error.strerror or error}.",
                    "See whether its file system is full or read-only.",
                ) from error

    def _sftp(self) -> paramiko.SFTPClient:
        try:
            sftp = self._transport.open_sftp_client()
        except (paramiko.SSHException, EOFError) as error:
            if not self._transport.is_active():
                raise
            raise errors.DeployError(
                f"The SSH server at {self.where} has no SFTP.", "Switch on `Subsystem sftp` in its sshd_config."
            ) from error
        channel = sftp.get_channel()
        assert channel is not None
        channel.settimeout(self._timeout)
        return sftp

    def _read(self, channel: paramiko.Channel, receive: Callable[[int], bytes], deadline: float) -> str:
        parts: list[bytes] = []
        size = 0
        while size <= _OUTPUT_LIMIT:
            channel.settimeout(max(0.001, deadline - time.monotonic()))
            part = receive(32 * KiB)
            if not part:
                return b"".join(parts).decode(errors="replace")
            parts.append(part)
            size += len(part)
        raise errors.DeployError(f"A command on {self.where} prints without end.", "See what its shell's profile does.")


@contextlib.contextmanager
def _border(where: str, timeout: float) -> Iterator[None]:
    """Turn what paramiko and sockets raise into errors of ours."""
    try:
        yield
    except errors.Error:
        raise
    except socket.gaierror as error:
        raise errors.DeployError(
            f"There is no address for {where}: {error.strerror}.", "Check the host's name and the controller's DNS."
        ) from error
    except TimeoutError as error:
        raise errors.DeployError(
            f"{where} did not answer over SSH in {timeout:g} seconds.", "Check that the host is up and its firewall."
        ) from error
    except ConnectionRefusedError as error:
        raise errors.DeployError(
            f"Nothing listens for SSH at {where}.", "Check the port, and that sshd runs on the host."
        ) from error
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise errors.DeployError(
            f"The SSH connection to {where} failed: {str(error) or 'it was closed'}.",
            "See what the host's sshd logs, then try again.",
        ) from error
