"""Deploy the agent on a host, remove it: the story, as it goes on the controller."""

import posixpath
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from blockferry import errors
from blockferry.deploy import bundle, interpreter, pki, registry, ssh
from blockferry.deploy.directory import About, AgentDirectory, Found, Release


class Host(NamedTuple):
    """A host as the engine knows it. address: IP address or DNS name."""

    id: str
    name: str
    address: str


class Options(NamedTuple):
    """
    How an agent is deployed.

    directory: the agent's own directory on the host, absolute.
    port: where it listens, at the address by which SSH reached the host; 0: only at its socket in the directory.
    python: a command or path on the host; empty means: find one.
    control_socket, data_socket, nbd_directories: as in `blockferry_agent.config`.
    socket_ports: which the agent may open for transport netcat; an empty range allows none.
    clear_text: those may go without TLS.
    bytes_per_second: of all readings together, 0 for no limit.  max_reads: disks that are read at once.
    """

    directory: str
    port: int
    python: str
    control_socket: str
    data_socket: str
    nbd_directories: tuple[str, ...]
    socket_ports: range = range(0)
    clear_text: bool = False
    bytes_per_second: int = 0
    max_reads: int = 16

    @property
    def socket(self) -> str:
        """Path of the agent's Unix socket."""
        return posixpath.join(self.directory, "run", "agent.sock")


class Deployed(NamedTuple):
    """What a deployment led to. changed: False when this very agent served already, and nothing was touched."""

    record: registry.Record
    changed: bool


class Agents:
    """
    The agents of one controller. Every method raises HostKeyMismatch and DeployError.

    registry: what is known without asking the hosts.
    """

    def __init__(self, state: Path, bundles: Callable[[interpreter.Interpreter], bundle.Bundle]) -> None:
        """
        state: the controller's state directory.  bundles: makes the bundle for a host's Python (`bundle.build`).
        """
        self._state = state
        self._bundles = bundles
        self.registry = registry.Registry(state)

    def deploy(self, host: Host, login: ssh.Login, options: Options) -> Deployed:
        """
        Bring the agent to a host and start it; does nothing when this very agent serves there already.

        When the new agent does not come to serve, the one before is started again, and DeployError has its last words.
        Raises Conflict while somebody else deploys there.
        """
        self._refuse_second_directory(host, options.directory)
        _check_socket(options)
        authority = pki.Authority.open(self._state)
        with ssh.connect(login) as connection:
            python = interpreter.find(connection, options.python)
            made = self._bundles(python)
            about = About(
                bundle=made.digest,
                version=made.version,
                python=python.path,
                python_version=str(python),
                deployed=datetime.now(UTC),
            )
            config = _config(options, connection.peer)
            directory = AgentDirectory(connection, python.path, options.directory)
            found = directory.inspect()
            release = _serving(found, about, config)
            changed = release is None or not authority.is_fresh(release.certificate.encode(), host.id, host.address)
            if release is None or changed:
                identity = authority.agent(host.id, host.address)
                release = Release(about=about, config=config, certificate=identity.certificate.decode())
                files = {
                    "agent.json": _json(config),
                    "release.json": _json(about),
                    "agent.crt": identity.certificate,
                    "agent.key": identity.key,
                    "ca.crt": authority.trusted,
                    "revoked.json": authority.revoked,
                }
                if made.digest not in found.bundles:
                    files["bundle.tar.gz"] = made.data
                directory.install(files)
        record = registry.Record(
            host_id=host.id,
            host_name=host.name,
            address=host.address,
            port=options.port,
            server_name=pki.own_name(release.certificate.encode()),
            socket=options.socket,
            ssh_port=login.port,
            ssh_user=login.user,
            host_key=connection.host_key,
            directory=options.directory,
            python=release.about.python_version,
            version=release.about.version,
            bundle=release.about.bundle,
            deployed=release.about.deployed,
            certificate_expires=pki.expiry(release.certificate.encode()),
        )
        self.registry.put(record)
        return Deployed(record, changed)

    def remove(self, host: Host, login: ssh.Login, options: Options) -> bool:
        """
        Stop the agent, delete its directory and forget it; False when there was none.

        Raises Conflict while somebody else deploys there.
        """
        record = self._record(host)
        path = record.directory if record else options.directory
        with ssh.connect(login) as connection:
            python = interpreter.find(connection, options.python)
            removed = AgentDirectory(connection, python.path, path).remove()
        self.registry.forget(host.id)
        return removed

    def _record(self, host: Host) -> registry.Record | None:
        return next((record for record in self.registry.records() if record.host_id == host.id), None)

    def _refuse_second_directory(self, host: Host, directory: str) -> None:
        record = self._record(host)
        if record is not None and record.directory != directory:
            raise errors.DeployError(
                f"The agent of host {host.name} is in {record.directory}, not in {directory}.",
                "Remove it first (`blockferry agent remove`), or keep agent.directory as it was.",
            )


def _config(options: Options, address: str) -> dict[str, Any]:
    """Return the agent's configuration (`blockferry_agent.config`); relative paths start at the release."""
    config: dict[str, Any] = {
        "listen": [f"unix:{options.socket}"],
        "tls": {"certificate": "agent.crt", "key": "agent.key", "ca": "ca.crt", "revoked": "revoked.json"},
        "pid_file": "../../run/agent.pid",
        "control_socket": options.control_socket,
        "data_socket": options.data_socket,
        "nbd_directories": list(options.nbd_directories),
        "max_reads": options.max_reads,
    }
    if options.port:
        config["listen"].insert(0, f"[{address}]:{options.port}" if ":" in address else f"{address}:{options.port}")
    if options.socket_ports:
        config["socket_ports"] = [options.socket_ports[0], options.socket_ports[-1]]
        config["socket_address"] = address
        config["clear_text"] = options.clear_text
    if options.bytes_per_second:
        config["bytes_per_second"] = options.bytes_per_second
    return config


def _check_socket(options: Options) -> None:
    """Refuse a directory whose socket could not be made, or not be named to `ssh -L`."""
    # sun_path of sockaddr_un has room for 108 bytes with the one that ends it.
    if len(options.socket) > 107 or not re.fullmatch(r"[\w./+-]+", options.socket, re.ASCII):
        raise errors.DeployError(
            f"{options.directory} cannot be the agent's directory: its socket {options.socket} must have at most 107 "
            "characters, and only letters, digits and . / + - _.",
            "Choose another agent.directory.",
        )


def _serving(found: Found, about: About, config: dict[str, Any]) -> Release | None:
    """Return the release in force if it serves and is what would be deployed now."""
    release = found.release
    if found.pid is None or release is None or release.config != config:
        return None
    return release if msgspec.structs.replace(release.about, deployed=about.deployed) == about else None


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=4) + b"\n"
