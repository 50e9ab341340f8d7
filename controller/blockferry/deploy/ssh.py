"""
The way to a host: SSH with pinned host keys, commands as argument lists, as root where sudo lets us.

The border to paramiko: what it, sockets and the system raise leaves here as DeployError or HostKeyMismatch, with the
host's name and the next step. Bulk data does not go this way (paramiko#822).
"""

import contextlib
import logging
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
from blockferry.deploy.login import Login
from blockferry_agent.units import KiB

# What paramiko logs on its own threads reaches the operator as an error of ours; its tracebacks help nobody.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

_OUTPUT_LIMIT = 256 * KiB
_KEEPALIVE = 15


class Output(NamedTuple):
    """What a command left. status: 0 when all was well; 127 when there is no such command."""

    status: int
    stdout: str
    stderr: str


def connect(login: Login) -> "Connection":
    """Log in to a host. Who connects closes the connection. Raises HostKeyMismatch, DeployError."""
    where = f"{login.address}:{login.port}"
    if not login.pins and not login.trust_new:
        raise errors.DeployError(
            f"No SSH host key is known for {where}, and none is trusted unseen.",
            "In the engine's Edit Host dialog, under Advanced Parameters, fetch the host's SSH public key; or put it "
            "into your known_hosts; or look at it on the host, and give --trust-new-host-key once.",
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
            if login.pins and key.fingerprint not in {pin.fingerprint for pin in login.pins}:
                shown.append(f"{key.get_name()} {key.fingerprint}")
                continue
            _authenticate(transport, login)
            transport.set_keepalive(_KEEPALIVE)
            opened.pop_all()
            return Connection(transport, login)
    raise errors.HostKeyMismatch(
        f"{where} shows {', '.join(shown) or 'no key of the pinned type'}, "
        f"but {', '.join(sorted(pin.fingerprint for pin in login.pins))} is pinned.",
        "Somebody may stand between: compare with `ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub` on the host's "
        "console, and update the pin only if the host was reinstalled.",
    )


def _transport(login: Login) -> paramiko.Transport:
    connected = _connected(login)
    try:
        transport = paramiko.Transport(connected)
    except BaseException:
        connected.close()
        raise
    transport.banner_timeout = login.timeout
    transport.handshake_timeout = login.timeout
    transport.auth_timeout = login.timeout
    transport.channel_timeout = login.timeout
    return transport


def _connected(login: Login) -> socket.socket:
    """Return what leads to the host's SSH."""
    if login.proxy:
        # OpenSSH's own client, with the operator's configuration and known_hosts: what is between is his.
        proxy: socket.socket = paramiko.ProxyCommand(shlex.join(login.proxy))  # type: ignore[assignment]
        return proxy
    connected = socket.create_connection((login.address, login.port), timeout=login.timeout)
    # A command's request, input and end of input go out as three small packets: without this each call waits 40 ms.
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


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
        for path in login.key_files:
            with contextlib.suppress(errors.DeployError):  # one that is encrypted is in an agent, or of no use here
                yield f"the key {path}", partial(transport.auth_publickey, login.user, _private_key(path))
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
    host_key: the key that the host showed, "ssh-ed25519 AAAA…".  fingerprint: of it, "SHA256:…".
    first_met: nobody had vouched for that key.  sudo: commands are run as root by sudo.
    """

    def __init__(self, transport: paramiko.Transport, login: Login) -> None:
        self._transport = transport
        self._login = login
        self.where = f"{login.address}:{login.port}"
        key = transport.get_remote_server_key()
        self.host_key = f"{key.get_name()} {key.get_base64()}"
        self.fingerprint = str(key.fingerprint)
        self.first_met = not login.pins
        self.sudo = login.sudo

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Log out. Closing twice is allowed."""
        self._transport.close()

    @property
    def peer(self) -> str:
        """The IP address at which the host is reached, as it sees it itself. Raises DeployError."""
        # "client-address client-port own-address own-port": right also behind a jump host.
        words = self._exec("echo $SSH_CONNECTION", b"", self._login.timeout).stdout.split()
        if len(words) < 3:
            raise errors.DeployError(f"{self.where} does not say its own address ($SSH_CONNECTION).")
        return words[2]

    def call(self, command: Sequence[str], stdin: bytes = b"", timeout: float = 60.0) -> Output:
        """
        Run a command to its end, whatever its exit status; as root when the login says so.

        timeout: seconds for all of it.  Raises DeployError when it takes longer, prints more than 256 KiB, or the
        connection breaks; the command may then still run. Raises DeployError when sudo refuses.
        """
        line = shlex.join(command)
        if not self.sudo:
            return self._exec(line, stdin, timeout)
        if self._login.sudo_password is None:
            output = self._exec(f"sudo -n -- {line}", stdin, timeout)
        else:
            # sudo takes one line, and leaves the rest of the input to the command.
            password = self._login.sudo_password.encode() + b"\n"
            output = self._exec(f"sudo -S -k -p '' -- {line}", password + stdin, timeout)
        if output.status == 1 and "sudo" in output.stderr:
            raise errors.DeployError(
                f"sudo refuses {self._login.user} on {self.where}: {output.stderr.strip().splitlines()[-1]}.",
                "Allow it in sudoers (NOPASSWD), or give its password (agent.sudo_password_file).",
            )
        return output

    def _exec(self, line: str, stdin: bytes, timeout: float) -> Output:
        deadline = time.monotonic() + timeout
        with _border(self.where, timeout), contextlib.closing(self._transport.open_session()) as channel:
            channel.settimeout(timeout)
            channel.exec_command(line)
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
