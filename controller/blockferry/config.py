"""
The configuration: one TOML file, parsed once at the edge into values that travel inward.

Found by `--config`, else the environment's BLOCKFERRY_CONFIG, else /etc/blockferry/config.toml. Secrets are never in
it: a password stands in a file that the configuration names, or in an environment variable.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from blockferry import errors
from blockferry_agent.units import GiB, KiB, MiB

DEFAULT_PATH = Path("/etc/blockferry/config.toml")
PATH_VARIABLE = "BLOCKFERRY_CONFIG"
ENGINE_PASSWORD_VARIABLE = "BLOCKFERRY_ENGINE_PASSWORD"  # noqa: S105 -- the variable's name, no password
REPOSITORY_PASSPHRASE_VARIABLE = "BLOCKFERRY_REPOSITORY_PASSPHRASE"  # noqa: S105 -- the variable's name, no passphrase
SUDO_PASSWORD_VARIABLE = "BLOCKFERRY_SUDO_PASSWORD"  # noqa: S105 -- the variable's name, no password
SSH_PASSWORD_VARIABLE = "BLOCKFERRY_SSH_PASSWORD"  # noqa: S105 -- the variable's name, no password

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Durability = Literal["full", "none"]
AskedMode = Literal["engine", "live", "hybrid"]
TransportName = Literal["netcat", "grpc", "ssh", "imageio"]
Ladder = Annotated[tuple[TransportName, ...], msgspec.Meta(min_length=1)]
Compression = Literal["auto", "off", "zstd"]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class Size(int):
    """Bytes; in the file a text such as "512 MiB"."""


class Bandwidth(int):
    """Bytes per second, 0 for no limit; in the file a text such as "200 MiB/s", or an empty one."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file; a key that it does not know is an error."""


class Engine(Section, frozen=True):
    """
    [engine]: how to reach the oVirt engine.

    url: of its API, https://FQDN/ovirt-engine/api.  username: user@profile.
    password_file: file with the password alone; without it BLOCKFERRY_ENGINE_PASSWORD is used.
    ca_file: PEM file with the CA of the engine, which signs the hosts' Image I/O too.
    timeout: seconds for one request.
    """

    url: Text
    username: Text
    ca_file: Path
    password_file: Path | None = None
    timeout: Seconds = 60.0

    def password(self) -> str:
        """Return the password. Raises ConfigError."""
        return _secret(self.password_file, ENGINE_PASSWORD_VARIABLE, "engine.password_file")


class Repository(Section, frozen=True):
    """
    [repository]: where recovery points are kept.

    url: a directory, as a path or a file:// URL, or a bucket: s3://, az:// or gs://.
    passphrase_file: file with the passphrase of an encrypted repository alone, else BLOCKFERRY_REPOSITORY_PASSPHRASE.
    key_file: its key file, in place of a passphrase; an exported master key is one, too.
    durability: what a power failure may cost a directory: "full" nothing that was reported done; "none" flushes
    nothing, so that points of the last half minute may be gone or damaged. Killing the controller costs nothing.
    """

    url: Text
    passphrase_file: Path | None = None
    key_file: Path | None = None
    durability: Durability = "full"

    def below(self, directory: Path) -> Repository:
        """Return the same with a relative path taken from `directory`."""
        if "://" in self.url:
            return self
        return msgspec.structs.replace(self, url=str(directory / Path(self.url).expanduser()))

    def passphrase(self) -> str | None:
        """Return the passphrase, None when there is none. Raises ConfigError."""
        if self.passphrase_file is None and REPOSITORY_PASSPHRASE_VARIABLE not in os.environ:
            return None
        return _secret(self.passphrase_file, REPOSITORY_PASSPHRASE_VARIABLE, "repository.passphrase_file")


class Backup(Section, frozen=True):
    """
    [backup]: how backups are taken.

    mode: "engine" leaves the choice to the engine (hybrid from cluster level 4.7 on), "live" and "hybrid" insist.
    transport: "auto" walks the ladder; a name allows this one and no other.
    transports: the ladder; the first that answers carries a disk. Those that the configuration gives no means for, such
    as netcat without ports, are left out.
    bandwidth: of one disk's transfer.
    compression: of blocks on their way: "zstd" always, "auto" where that is measured to be faster.
    ready_timeout: seconds until the engine must have a backup or a transfer ready.
    finalize_timeout: seconds until the engine must have ended one (a hybrid backup merges its snapshot then).
    """

    mode: AskedMode = "engine"
    transport: Literal["auto"] | TransportName = "auto"
    transports: Ladder = get_args(TransportName)
    bandwidth: Bandwidth = Bandwidth(0)
    compression: Compression = "auto"
    ready_timeout: Seconds = 600.0
    finalize_timeout: Seconds = 3600.0

    @property
    def ladder(self) -> tuple[TransportName, ...]:
        """The transports that may carry a disk, the best first."""
        return self.transports if self.transport == "auto" else (self.transport,)


class Agent(Section, frozen=True):
    """
    [agent]: how agents are deployed, and where they find things on a host.

    port: TCP port of the agent; 0: none, it is reached through SSH alone.
    directory: the agent's own directory on the host; nothing else is touched.
    netcat_ports: that the agent may open for transport netcat, one for each disk that is read; none by default.
    netcat_clear_text: netcat goes without TLS, for networks that nobody else is on.
    bandwidth: of one agent, all disks together.  max_reads: disks that one agent reads at once.
    memory: that the agent may have.  cpu_weight, io_weight: against other services; 100 is usual. Kept by systemd.
    firewall: open the agent's ports in firewalld, where it runs.
    upgrade_wait: seconds that an upgrade waits for an agent that reads.
    ssh_user: who logs in.  sudo: makes another user than root to root; without it, the agent runs as him.
    ssh_key_file: private key; without it the SSH agent, or the password.
    ssh_password_file: file with the password alone, else BLOCKFERRY_SSH_PASSWORD. Only for deploying.
    sudo_password_file: the same for sudo, else BLOCKFERRY_SUDO_PASSWORD; without one sudo must not ask.
    ssh_config_file: in place of the user's own ssh_config and the system's.
    python: the host's Python (3.9 or later); empty means: find it.
    control_socket, data_socket: Image I/O's local sockets; a leading @ means an abstract socket.
    nbd_directories: the only directories in which the agent opens NBD sockets.
    """

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 54330
    directory: Text = "/opt/blockferry-agent"
    netcat_ports: range = range(0)
    netcat_clear_text: bool = False
    bandwidth: Bandwidth = Bandwidth(0)
    max_reads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16
    memory: Size = Size(512 * MiB)
    cpu_weight: Annotated[int, msgspec.Meta(ge=1, le=10000)] = 50
    io_weight: Annotated[int, msgspec.Meta(ge=1, le=10000)] = 50
    firewall: bool = True
    upgrade_wait: Seconds = 600.0
    ssh_user: Text = "root"
    sudo: bool = True
    ssh_key_file: Path | None = None
    ssh_password_file: Path | None = None
    sudo_password_file: Path | None = None
    ssh_config_file: Path | None = None
    python: str = ""
    control_socket: Text = "/run/ovirt-imageio/sock"
    data_socket: Text = "@/org/ovirt/imageio"
    nbd_directories: tuple[Text, ...] = ("/run/vdsm/backup", "/run/vdsm/nbd")

    def ssh_password(self) -> str | None:
        """Return the password for SSH, None when there is none. Raises ConfigError."""
        if self.ssh_password_file is None and SSH_PASSWORD_VARIABLE not in os.environ:
            return None
        return _secret(self.ssh_password_file, SSH_PASSWORD_VARIABLE, "agent.ssh_password_file")

    def sudo_password(self) -> str | None:
        """Return the password for sudo, None when there is none. Raises ConfigError."""
        if self.sudo_password_file is None and SUDO_PASSWORD_VARIABLE not in os.environ:
            return None
        return _secret(self.sudo_password_file, SUDO_PASSWORD_VARIABLE, "agent.sudo_password_file")


class Config(Section, frozen=True):
    """
    The whole file.

    state: directory of the controller's own state: its CA and keys, what it knows of agents, journals of running jobs.
    cache: directory for what can be fetched or built again: wheels and bundles of the agent.
    """

    engine: Engine
    repository: Repository
    backup: Backup = Backup()
    agent: Agent = Agent()
    state: Path = Path("/var/lib/blockferry")
    cache: Path = Path("/var/cache/blockferry")


def load(path: Path | None = None) -> Config:
    """
    Read the configuration from `path`, or from where it is by default.

    Relative paths in it are taken from its own directory. Raises ConfigError.
    """
    path = path or Path(os.environ.get(PATH_VARIABLE) or DEFAULT_PATH)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise errors.ConfigError(
            f"There is no configuration at {path}.",
            f"Write one (see the README), or name it with --config or {PATH_VARIABLE}.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"The configuration {path} cannot be read: {error}.") from None
    try:
        tables = tomllib.loads(text)
        loaded = msgspec.convert(tables, Config, dec_hook=lambda kind, value: _parse(path.parent, kind, value))
    except tomllib.TOMLDecodeError as error:
        raise errors.ConfigError(f"The configuration {path} is not valid TOML: {error}.") from None
    except msgspec.ValidationError as error:
        raise errors.ConfigError(
            f"The configuration {path} cannot be used: {error}.", "The README lists every key."
        ) from None
    _check_keys(path, loaded.repository)
    _check_ports(path, loaded.agent)
    return msgspec.structs.replace(loaded, repository=loaded.repository.below(path.parent.absolute()))


def _check_keys(path: Path, repository: Repository) -> None:
    if repository.passphrase_file is not None and repository.key_file is not None:
        raise errors.ConfigError(
            f"The configuration {path} cannot be used: it has both repository.passphrase_file and repository.key_file.",
            "Keep the one that opens the repository.",
        )


def _check_ports(path: Path, agent: Agent) -> None:
    if agent.port in agent.netcat_ports:
        raise errors.ConfigError(
            f"The configuration {path} cannot be used: agent.netcat_ports contains agent.port ({agent.port}).",
            "Choose a range without it.",
        )


def _parse(base: Path, kind: type, value: Any) -> Any:
    """Return a value that TOML has no type for, from its text. Raises ValueError with what it must be."""
    text = value if isinstance(value, str) else None
    if kind is Bandwidth:
        return _bandwidth(text)
    if kind is Size:
        return _size(text)
    if kind is range:
        return _ports(text)
    if not text:
        raise ValueError("Expected a path")
    return base / Path(text).expanduser()


def _bandwidth(text: str | None) -> Bandwidth:
    if text == "":
        return Bandwidth(0)
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?([KMG])iB/s", text or "")
    limit = int(float(match[1]) * {"K": KiB, "M": MiB, "G": GiB}[match[2]]) if match else 0
    if not limit:
        raise ValueError('Expected a bandwidth such as "200 MiB/s" (KiB, MiB or GiB), or "" for no limit')
    return Bandwidth(limit)


def _size(text: str | None) -> Size:
    match = re.fullmatch(r"(\d{1,6}) ?([MG])iB", text or "")
    size = int(match[1]) * {"M": MiB, "G": GiB}[match[2]] if match else 0
    if not size:
        raise ValueError('Expected a size such as "512 MiB" (MiB or GiB)')
    return Size(size)


def _ports(text: str | None) -> range:
    if text == "":
        return range(0)
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text or "")
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < first <= last <= 65535:
        raise ValueError('Expected the first port and the last, such as "54331-54340", or "" for none')
    return range(first, last + 1)


def _secret(file: Path | None, variable: str, key: str) -> str:
    if file is None:
        secret = os.environ.get(variable, "")
        if not secret:
            raise errors.ConfigError("There is no password.", f"Set {key} in the configuration, or {variable}.")
        return secret
    return secret_in(file, key)


def secret_in(file: Path, key: str) -> str:
    """Return the secret that a file holds alone. key: how the operator named the file. Raises ConfigError."""
    try:
        secret = file.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"The file {file} ({key}) cannot be read: {error}.") from None
    if not secret:
        raise errors.ConfigError(f"The file {file} ({key}) is empty.")
    return secret
