"""
A tunnel from here to an agent's Unix socket: the `ssh` program, which this module starts, watches and ends.

    controller ── /tmp/blockferry-…/agent.sock ── ssh ═══════ sshd ── <agent.directory>/run/agent.sock ── agent
                          (0700)                       host key pinned           (0600)

The program, because bulk data breaks paramiko (paramiko#822), and because it knows the operator's ssh_config with its
ProxyJump, IdentityFile, and his SSH agent. What must not be left to that file stands on the command line, which wins;
what may be changed in it comes last in a file of our own that includes it:

    Include ~/.ssh/config
    Include /etc/ssh/ssh_config
    Match final all
        Ciphers ^aes128-gcm@openssh.com,…
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blockferry import errors
from blockferry.transport import leash

# Seconds: for one connection to sshd, for all until the agent answers through the tunnel, and to end when asked to.
CONNECT_TIMEOUT = 10
READY_TIMEOUT = 20.0
END_TIMEOUT = 2.0

# Seconds in which ssh says why a connection through it was closed.
_NEWS = 0.2

# A link that fell silent is given up after ALIVE_COUNT * ALIVE_INTERVAL seconds; gRPC's own pings come about as soon.
ALIVE_INTERVAL = 15
ALIVE_COUNT = 3

# Not TMPDIR: the path of a Unix socket has 107 bytes at the most.
PLACE = "/tmp"  # noqa: S108 -- mkdtemp makes a private directory in it

_LINES_KEPT = 20
_LINE_LENGTH = 300

_USERS_FILE = "~/.ssh/config"
_SYSTEMS_FILE = "/etc/ssh/ssh_config"

# What a line of ssh's stderr may say, and the next step; the first that fits. {alias}: the host's, which tells its key
# from that of a jump host.
_HINTS = (
    (
        r"{alias}.* (has changed|is known for|strict checking)",
        "The host shows another key than when the agent was deployed. Somebody may stand between: compare with "
        "`ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub` on the host's console. If the host was reinstalled, "
        "deploy the agent again.",
    ),
    (
        r"Host key verification failed",
        "A jump host shows a key that is not in your known_hosts: log in there by hand first.",
    ),
    (
        r"Permission denied|Too many authentication failures",
        "A password is only for deploying: set agent.ssh_key_file, name a key in your ssh_config, or load one into "
        "your SSH agent.",
    ),
    (
        # sshd says the same when it may not forward.
        r"open failed",
        "Deploy the agent again, if it does not run there as this user; else the host's sshd_config must allow "
        "AllowStreamLocalForwarding, and the key's options in authorized_keys too.",
    ),
    (
        r"Connection refused|timed out|No route|unreachable|Could not resolve"
        r"|closed by|reset by|Broken pipe|not responding",
        "Check that sshd runs there and can be reached from here, through ProxyJump of your ssh_config if need be.",
    ),
)


class Way(NamedTuple):
    """
    How an agent's socket is reached.

    host_name: for messages.  address: IP address or DNS name.  port: 0 leaves it to ssh_config.
    user: whose agent it is.  host_key: the only one that is accepted, "ssh-ed25519 AAAA…".
    alias: stands for the host wherever its key is looked up, so that no other key of that address counts.
    socket: the agent's, on the host.
    key_file: private key; None leaves it to ssh_config and the SSH agent.  config_file: in place of the user's own.
    """

    host_name: str
    address: str
    port: int
    user: str
    host_key: str
    alias: str
    socket: str
    key_file: Path | None = None
    config_file: Path | None = None

    @property
    def where(self) -> str:
        """The agent, for messages."""
        return f"the agent on {self.host_name} (through SSH)"


class Tunnel:
    """
    An ssh process, and the socket at which it listens here. Who made it closes it; the process of a controller that is
    killed ends too, and only a directory with a few small files stays in /tmp.

    path: of the socket, at which an agent answered when the tunnel was made.
    """

    def __init__(self, way: Way) -> None:
        """Raises AgentUnreachable, with what ssh said and the next step."""
        if shutil.which("ssh") is None:
            raise errors.AgentUnreachable("There is no ssh program here.", "Install the OpenSSH client.")
        self._way = way
        with _border():
            self._directory = Path(tempfile.mkdtemp(prefix="blockferry-", dir=PLACE))
        self.path = self._directory / "agent.sock"
        self._said: deque[str] = deque(maxlen=_LINES_KEPT)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()
        # It starts the process and lives as long: see `leash`.
        self._keeper = threading.Thread(target=self._keep, name="ssh", daemon=True)
        try:
            with _border():
                self._configure()
            self._keeper.start()
            self._wait_until_agent_answers()
        except BaseException:
            self.close()
            raise

    def broken(self) -> errors.AgentUnreachable | None:
        """Return why the tunnel ended by itself, None when it stands. What broke just now is seen a moment later."""
        self._keeper.join(_NEWS)
        return None if self._keeper.is_alive() else self._failure("ssh was ended")

    def close(self) -> None:
        """End the process and remove the socket. May be called again."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._keeper.join(END_TIMEOUT)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _configure(self) -> None:
        (self._directory / "known_hosts").write_text(f"{self._way.alias} {self._way.host_key}\n", encoding="ascii")
        own = [_USERS_FILE, _SYSTEMS_FILE]
        if self._way.config_file is not None:
            self._way.config_file.open().close()  # ssh leaves out in silence what it cannot include
            own = [str(self._way.config_file)]
        lines = [f'Include "{file}"' for file in own]
        # Ahead of OpenSSH's first choice, chacha20-poly1305, which has no help from the processor. At the end of all:
        # so late come the ciphers of Red Hat's crypto policy, too.
        lines += ["Match final all", "Ciphers ^aes128-gcm@openssh.com,aes256-gcm@openssh.com"]
        (self._directory / "ssh_config").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _command(self) -> list[str]:
        way = self._way
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": CONNECT_TIMEOUT,
            "ServerAliveInterval": ALIVE_INTERVAL,
            "ServerAliveCountMax": ALIVE_COUNT,
            "ExitOnForwardFailure": "yes",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": way.alias,
            "UserKnownHostsFile": self._directory / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "VerifyHostKeyDNS": "no",
            "UpdateHostKeys": "no",
            "CheckHostIP": "no",
            # A connection of its own, not a part of another one: that would share its one processor.
            "ControlMaster": "no",
            "ControlPath": "none",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "Tunnel": "no",
            "PermitLocalCommand": "no",
            # At this level ssh says why a forwarding failed.
            "LogLevel": "INFO",
        }
        command = ["ssh", "-F", str(self._directory / "ssh_config"), "-N", "-T", "-l", way.user]
        command += [f"-o{key}={value}" for key, value in options.items()]
        if way.key_file is not None:
            command += ["-oIdentitiesOnly=yes", "-i", str(way.key_file)]
        if way.port:
            command += ["-p", str(way.port)]
        return [*command, "-L", f"{self.path}:{way.socket}", "--", way.address]

    def _keep(self) -> None:
        """Start the process, read what it says, and stay until it has ended."""
        leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *self._command()]
        # A jump host's ssh would ask for a password through a window otherwise.
        environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}
        try:
            with subprocess.Popen(
                leashed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                # No terminal to ask at, and no part in the operator's Ctrl-C: who closes the tunnel ends it.
                start_new_session=True,
            ) as process:
                self._process = process
                self._started.set()
                assert process.stderr is not None
                while line := process.stderr.readline(_LINE_LENGTH):
                    self._said.append(line.decode(errors="replace").strip())
        except OSError as error:
            self._said.append(f"ssh cannot be started ({error.strerror})")
        finally:
            self._started.set()

    def _wait_until_agent_answers(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        self._started.wait()
        while not self._agent_answers(deadline):
            if self._process is None or self._process.poll() is not None:
                self._keeper.join(END_TIMEOUT)  # until its last words are read
                raise self._failure("ssh ended")
            if time.monotonic() > deadline:
                raise self._failure(f"no answer in {READY_TIMEOUT:g} seconds")
            time.sleep(0.01)
        self._said.clear()  # the host's banner is not why it breaks later

    def _agent_answers(self, deadline: float) -> bool:
        """Return whether the agent speaks, as a server does first in HTTP/2. Raises AgentUnreachable if it hangs up."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection.connect(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            try:
                if connection.recv(1):
                    return True
            except TimeoutError:
                return False
            except OSError:
                pass  # as good as an end
        # ssh is there, the agent is not. Why, ssh says at the same time.
        self._keeper.join(_NEWS)
        raise self._failure("the host closed the forwarded connection")

    def _failure(self, what: str) -> errors.AgentUnreachable:
        """Return the error: what ssh said if it is known for a reason, else `what` happened, with ssh's last words."""
        said = list(self._said)
        alias = re.escape(self._way.alias)
        known = [(re.compile(pattern.replace("{alias}", alias)), hint) for pattern, hint in _HINTS]
        line, hint = next(
            ((line, hint) for pattern, hint in known for line in reversed(said) if pattern.search(line)),
            (f"{what} ({said[-1]})" if said else what, f"See what `ssh -l {self._way.user} {self._way.address}` says."),
        )
        reason = line.replace(self._way.alias, "the host").rstrip(".")
        return errors.AgentUnreachable(
            f"{self._way.where[0].upper()}{self._way.where[1:]} cannot be reached as "
            f"{self._way.user}@{self._way.address}: {reason}.",
            hint,
        )


@contextlib.contextmanager
def _border() -> Iterator[None]:
    """Turn what the controller's own files raise into AgentUnreachable: another transport may do without them."""
    try:
        yield
    except OSError as error:
        raise errors.AgentUnreachable(
            f"No SSH tunnel can be made with {error.filename}: {error.strerror}.",
            f"Look at it; the file systems of {PLACE} must not be full.",
        ) from None
