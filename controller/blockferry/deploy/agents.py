"""Deploy the agent on a host, look after it, remove it: the story, as it goes on the controller."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from blockferry import errors
from blockferry.deploy import bundle, carried, interpreter, pki, registry
from blockferry.deploy.directory import (
    About,
    AgentDirectory,
    Credentials,
    Finding,
    Found,
    Reading,
    Release,
    ReleaseFiles,
    ServiceSettings,
)
from blockferry.deploy.interpreter import Interpreter, Kind
from blockferry.deploy.login import Login
from blockferry.deploy.onhost import unit

if TYPE_CHECKING:
    from blockferry.deploy.ssh import Connection

Patience = Callable[[Reading], None]
"""Called when an agent reads a disk: returns when it is to be asked again, raises when that was often enough."""

_Result = TypeVar("_Result")


class Host(NamedTuple):
    """A host as the engine knows it. address: IP address or DNS name."""

    id: str
    name: str
    address: str


class Options(NamedTuple):
    """
    How an agent is deployed.

    directory: the agent's own directory on the host, absolute.
    port: where it listens, at the address by which SSH reached the host; 0: only at its Unix socket.
    python: a command or path on the host; empty means: find one.
    control_socket, data_socket, nbd_directories: as in `blockferry_agent.config`.
    socket_ports: which the agent may open for transport netcat; an empty range allows none.
    clear_text: those may go without TLS.
    bytes_per_second: of all readings together, 0 for no limit.  max_reads: disks that are read at once.
    service: how systemd runs it.
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
    service: ServiceSettings = ServiceSettings()


class Way(NamedTuple):
    """How SSH comes to a host. host_key: that it showed, "ssh-ed25519 AAAA…".  kind: of the host, as a name."""

    port: int
    user: str
    host_key: str
    kind: str


class Deployed(NamedTuple):
    """
    What a deployment led to.

    changed: False when this very agent served already, and nothing was touched.
    first_met: fingerprint of a host key that nobody had vouched for, and was trusted because that was asked for.
    """

    record: registry.Record
    changed: bool
    first_met: str


class _Visit(NamedTuple):
    connection: Connection
    python: Interpreter
    directory: AgentDirectory

    @property
    def first_met(self) -> str:
        return self.connection.fingerprint if self.connection.first_met else ""

    def way(self, login: Login) -> Way:
        return Way(login.port, login.user, self.connection.host_key, str(self.python.kind))


class _Plan(NamedTuple):
    """
    What would be deployed, and what is there.

    serving: the release in force, when it is what would be deployed, and serves.
    """

    bundle: bundle.Bundle
    about: About
    config: dict[str, Any]
    settings: ServiceSettings
    found: Found
    serving: Release | None


class Agents:
    """
    The agents of one controller. Every method raises HostKeyMismatch and DeployError.

    registry: what is known without asking the hosts.
    """

    def __init__(self, state: Path, bundles: Callable[[Kind], bundle.Bundle]) -> None:
        """
        state: the controller's state directory.  bundles: makes the bundle for a kind of host (`bundle.Bundles`).
        """
        self._state = state
        self._bundles = bundles
        self.registry = registry.Registry(state)

    def deploy(self, host: Host, login: Login, options: Options, patience: Patience | None = None) -> Deployed:
        """
        Bring the agent to a host and start it; does nothing when this very agent serves there already.

        The new agent is tried out first. When it does not come to serve, the one before goes on, and DeployError has
        the new one's last words. patience: of who waits for an agent that reads; None: it is stopped whatever it does.
        Raises Conflict while somebody else deploys there.
        """
        self._refuse_second_directory(host, options.directory)
        with self._visit(login, options.python, options.directory) as visit:
            plan = self._plan(visit, login, options)
            release = plan.serving
            if release is not None and self._is_fresh(release, host):
                return Deployed(self._put(host, visit.way(login), options.directory, release, plan.found), False, "")
            if release is not None:
                release = self._renewed(visit, release, host)
            else:
                files = ReleaseFiles(
                    plan.about,
                    plan.config,
                    self._credentials(host),
                    None if plan.bundle.digest in plan.found.bundles else plan.bundle.data,
                )
                _patiently(patience, lambda idle: visit.directory.install(files, plan.settings, idle))
                release = _deployed(files, plan.settings)
            record = self._put(host, visit.way(login), options.directory, release, plan.found)
            return Deployed(record, True, visit.first_met)

    def outdated(self, host: Host, login: Login, options: Options) -> bool:
        """Say whether `deploy` would change anything on a host."""
        with self._visit(login, options.python, self._path(host, options)) as visit:
            release = self._plan(visit, login, options).serving
            return release is None or not self._is_fresh(release, host)

    def check(self, login: Login, options: Options) -> list[Finding]:
        """Look at everything on a host that a backup needs. Changes nothing there."""
        with self._visit(login, options.python, options.directory) as visit:
            found = visit.directory.inspect()
            config = _config(options, options.directory, found, visit.connection.peer)
            findings = visit.directory.check(config, _settings(options, login))
            how = "as root by sudo" if visit.connection.sudo else f"as {login.user}"
            return [_ok("SSH", f"{visit.connection.where} lets us in, {how}"), *findings]

    def rollback(self, host: Host, login: Login, options: Options, patience: Patience | None) -> registry.Record:
        """Put the release before the current one in force again. patience: as for `deploy`."""
        path = self._path(host, options)
        with self._visit(login, options.python, path) as visit:
            release = _patiently(patience, visit.directory.rollback)
            return self._put(host, visit.way(login), path, release, visit.directory.inspect())

    def renew(self, host: Host, login: Login, options: Options) -> registry.Record:
        """Give a host's agent a new certificate, and the newest list of revoked ones, without a restart."""
        path = self._path(host, options)
        with self._visit(login, options.python, path) as visit:
            found = visit.directory.inspect()
            if found.current is None:
                raise errors.DeployError(f"No agent is in force on {host.name}.", "Deploy it.")
            release = self._renewed(visit, found.current, host)
            return self._put(host, visit.way(login), path, release, found)

    def logs(self, host: Host, login: Login, options: Options, lines: int) -> str:
        """Return the last lines of what a host's agent said."""
        with self._visit(login, options.python, self._path(host, options)) as visit:
            return visit.directory.logs(lines)

    def remove(self, host: Host, login: Login, options: Options) -> bool:
        """
        Stop the agent, take away all that was made for it on the host, and forget it; False when there was none.

        Raises Conflict while somebody else deploys there.
        """
        with self._visit(login, options.python, self._path(host, options)) as visit:
            removed = visit.directory.remove()
        self.registry.forget(host.id)
        return removed

    def carry(self, host: Host, kind: Kind, python: str, options: Options, way: Way) -> bytes:
        """
        Return an archive (tar.gz) with which the agent is deployed by hand, and note it as deployed.

        It has all that `deploy` would send, and the program that puts it in force (`carried`).
        """
        made = self._bundles(kind)
        about = _about(made, python, ".".join(map(str, kind.python)))
        socket_path = unit.socket(unit.SERVICE)
        config = _configured(options, "systemd", socket_path, _ip_address(host.address))
        settings = msgspec.structs.replace(options.service, ssh_user=way.user)
        files = ReleaseFiles(about, config, self._credentials(host), made.data)
        release = _deployed(files, settings)
        archive = carried.pack(options.directory, files, settings)
        self._record_release(host, way, options.directory, release, socket_path)
        return archive

    @contextlib.contextmanager
    def _visit(self, login: Login, python: str, path: str) -> Iterator[_Visit]:
        # paramiko takes as long to import as half of all else together, and few commands go to hosts by themselves.
        from blockferry.deploy import ssh  # noqa: PLC0415

        with ssh.connect(login) as connection:
            found = interpreter.find(connection, python)
            yield _Visit(connection, found, AgentDirectory(connection, found.path, path))

    def _plan(self, visit: _Visit, login: Login, options: Options) -> _Plan:
        made = self._bundles(visit.python.kind)
        about = _about(made, visit.python.path, str(visit.python))
        found = visit.directory.inspect()
        config = _config(options, visit.directory.path, found, visit.connection.peer)
        settings = _settings(options, login)
        return _Plan(made, about, config, settings, found, _serving(found, about, settings, config))

    def _credentials(self, host: Host, also: tuple[str, ...] = ()) -> Credentials:
        authority = pki.Authority.open(self._state)
        identity = authority.agent(host.id, host.address, also)
        return Credentials(identity.certificate, identity.key, authority.trusted, authority.revoked)

    def _renewed(self, visit: _Visit, release: Release, host: Host) -> Release:
        """Give a release a new certificate, which has the old one's name until our record has the new one's."""
        old = release.certificate.encode()
        credentials = self._credentials(host, (pki.own_name(old),))
        visit.directory.renew(credentials)
        return msgspec.structs.replace(release, certificate=credentials.certificate.decode())

    def _is_fresh(self, release: Release, host: Host) -> bool:
        return pki.Authority.open(self._state).is_fresh(release.certificate.encode(), host.id, host.address)

    def _path(self, host: Host, options: Options) -> str:
        record = self._record(host)
        return record.directory if record else options.directory

    def _put(self, host: Host, way: Way, path: str, release: Release, found: Found) -> registry.Record:
        return self._record_release(host, way, path, release, found.socket)

    def _record_release(self, host: Host, way: Way, path: str, release: Release, socket_path: str) -> registry.Record:
        certificate = release.certificate.encode()
        ports = [address for address in release.config["listen"] if not address.startswith("unix:")]
        record = registry.Record(
            host_id=host.id,
            host_name=host.name,
            address=host.address,
            port=int(ports[0].rpartition(":")[2]) if ports else 0,
            server_name=pki.own_name(certificate),
            socket=socket_path,
            ssh_port=way.port,
            ssh_user=way.user,
            host_key=way.host_key,
            kind=way.kind,
            directory=path,
            python=release.about.python_version,
            version=release.about.version,
            bundle=release.about.bundle,
            deployed=release.about.deployed,
            certificate_expires=pki.expiry(certificate),
        )
        self.registry.put(record)
        return record

    def _record(self, host: Host) -> registry.Record | None:
        return next((record for record in self.registry.records() if record.host_id == host.id), None)

    def _refuse_second_directory(self, host: Host, directory: str) -> None:
        record = self._record(host)
        if record is not None and record.directory != directory:
            raise errors.DeployError(
                f"The agent of host {host.name} is in {record.directory}, not in {directory}.",
                "Remove it first (`blockferry agent remove`), or keep agent.directory as it was.",
            )


def _about(made: bundle.Bundle, python: str, python_version: str) -> About:
    return About(
        bundle=made.digest,
        version=made.version,
        python=python,
        python_version=python_version,
        deployed=datetime.now(UTC),
    )


def _settings(options: Options, login: Login) -> ServiceSettings:
    return msgspec.structs.replace(options.service, ssh_user=login.user)


def _config(options: Options, path: str, found: Found, address: str) -> dict[str, Any]:
    _check_socket(path, found.socket)
    return _configured(options, found.supervisor, found.socket, address)


def _configured(options: Options, supervisor: str, socket_path: str, address: str) -> dict[str, Any]:
    """Return the agent's configuration (`blockferry_agent.config`); relative paths start at the release."""
    config: dict[str, Any] = {
        "listen": [f"unix:{socket_path}"],
        "tls": {
            "certificate": "tls/agent.crt",
            "key": "tls/agent.key",
            "ca": "tls/ca.crt",
            "revoked": "tls/revoked.json",
        },
        "control_socket": options.control_socket,
        "data_socket": options.data_socket,
        "nbd_directories": list(options.nbd_directories),
        "max_reads": options.max_reads,
    }
    if supervisor == "systemd":
        config["socket_mode"] = "0660"
    else:
        config["pid_file"] = "../../run/agent.pid"
    if options.port:
        config["listen"].insert(0, f"[{address}]:{options.port}" if ":" in address else f"{address}:{options.port}")
    if options.socket_ports:
        config["socket_ports"] = [options.socket_ports[0], options.socket_ports[-1]]
        config["socket_address"] = address
        config["clear_text"] = options.clear_text
    if options.bytes_per_second:
        config["bytes_per_second"] = options.bytes_per_second
    return config


def _check_socket(directory: str, path: str) -> None:
    """Refuse a directory whose socket could not be made, or not be named to `ssh -L`."""
    # sun_path of sockaddr_un has room for 108 bytes with the one that ends it.
    if len(path) > 107 or not re.fullmatch(r"[\w./+-]+", path, re.ASCII):
        raise errors.DeployError(
            f"{directory} cannot be the agent's directory: its socket {path} must have at most 107 "
            "characters, and only letters, digits and . / + - _.",
            "Choose another agent.directory.",
        )


def _serving(found: Found, about: About, settings: ServiceSettings, config: dict[str, Any]) -> Release | None:
    """Return the release in force if it serves and is what would be deployed now."""
    release = found.current
    if found.pid is None or release is None or release.config != config or release.settings != settings:
        return None
    return release if msgspec.structs.replace(release.about, deployed=about.deployed) == about else None


def _deployed(files: ReleaseFiles, settings: ServiceSettings) -> Release:
    return Release(
        about=files.about,
        settings=settings,
        config=files.config,
        certificate=files.credentials.certificate.decode(),
    )


def _patiently(patience: Patience | None, act: Callable[[bool], _Result]) -> _Result:
    """Do what stops an agent, once it reads nothing, or at once when nobody has patience."""
    while patience is not None:
        try:
            return act(True)
        except Reading as reading:
            patience(reading)
    return act(False)


def _ip_address(address: str) -> str:
    """Return the IP address of a host, at which its agent is to listen. Raises DeployError."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address))
    try:
        return str(socket.getaddrinfo(address, None)[0][4][0])
    except OSError as error:
        raise errors.DeployError(f"There is no address for {address}: {error.strerror}.") from None


def _ok(name: str, what: str) -> Finding:
    return Finding(name=name, state="ok", what=what)
