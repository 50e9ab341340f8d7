"""The parts that a configuration describes, made when a job asks for them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from blockferry import deploy, engine, errors
from blockferry.config import Config, TransportName
from blockferry.deploy import bundle, interpreter
from blockferry.jobs import keyring
from blockferry.repository import Repository
from blockferry.transport.agent_upload import AgentUploads
from blockferry.transport.disk import Target, Transport
from blockferry.transport.grpc_agent import Agent, Endpoint, GrpcTransport
from blockferry.transport.imageio import ImageioTransport
from blockferry.transport.imageio_upload import ImageioUploads
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.netcat import NetcatTransport
from blockferry.transport.ssh import SshTransport, TunnelledAgent
from blockferry.transport.tunnel import Way
from blockferry.transport.uploading import UploadTransport


class Site:
    """
    One configuration's engine, repository, transports and agents.
    """

    def __init__(self, config: Config, offline: bool = False) -> None:
        """offline: fetch nothing for agents."""
        self.config = config
        self._bundles = bundle.Bundles(config.cache, offline)
        self._cached = bundle.Bundles(config.cache, offline=True)

    @functools.cached_property
    def state(self) -> Path:
        """The directory of the controller's own state, made when it is missing. Raises ConfigError."""
        try:
            self.config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise errors.ConfigError(
                f"The state directory {self.config.state} cannot be made: {error.strerror}.",
                "Set state in the configuration.",
            ) from None
        return self.config.state

    def engine(self) -> AbstractContextManager[engine.Connection]:
        """Connect to the engine. Raises EngineUnreachable, EngineDenied, ConfigError."""
        settings = self.config.engine
        return engine.connect(
            settings.url,
            settings.username,
            settings.password(),
            settings.ca_file,
            timeout=settings.timeout,
            deadlines=engine.Deadlines(
                ready=self.config.backup.ready_timeout,
                transfer=self.config.backup.ready_timeout,
                finalize=self.config.backup.finalize_timeout,
                # A checkpoint that will not go is tried again after the next backup.
                checkpoint=60,
            ),
        )

    def repository(self) -> Repository:
        """Open the repository. Raises WrongKey, RepositoryError, ConfigError."""
        settings = self.config.repository
        return Repository.open(settings.url, keyring.secret(settings), settings.durability)

    def transports(self, names: Sequence[TransportName]) -> list[Transport]:
        """
        Return the transports of these names, in their order, but for those that the configuration gives no means for.

        Raises ConfigError when none is left.
        """
        lacking = {name: self._lacks(name) for name in names}
        transports = [self._transport(name) for name in names if not lacking[name]]
        if not transports:
            raise errors.ConfigError(
                f"The configuration gives no means for transport {' or '.join(names)}.", " ".join(lacking.values())
            )
        return transports

    def uploads(self, names: Sequence[TransportName]) -> list[UploadTransport]:
        """
        Return the ways to write of these names, in their order, but for those that cannot or have no means.

        Raises ConfigError when none is left.
        """
        lacking = {name: self._lacks_to_write(name) for name in names}
        uploads = [self._upload(name) for name in names if not lacking[name]]
        if not uploads:
            raise errors.ConfigError(
                f"Nothing can be written through transport {' or '.join(names)}.", " ".join(lacking.values())
            )
        return uploads

    def agents(self) -> deploy.Agents:
        """Return the agents that this controller deploys."""
        return deploy.Agents(self.state, self._bundles.bundle)

    def cached_bundle(self, kind: interpreter.Kind) -> bundle.Bundle:
        """Return the bundle that would be deployed to hosts of a kind, without a fetch. Raises DeployError."""
        return self._cached.bundle(kind)

    def placement(self) -> deploy.Options:
        """Return how agents are placed on hosts."""
        settings = self.config.agent
        return deploy.Options(
            directory=settings.directory,
            port=settings.port,
            python=settings.python,
            control_socket=settings.control_socket,
            data_socket=settings.data_socket,
            nbd_directories=settings.nbd_directories,
            socket_ports=settings.netcat_ports,
            clear_text=settings.netcat_clear_text,
            bytes_per_second=settings.bandwidth,
            max_reads=settings.max_reads,
            service=deploy.ServiceSettings(
                memory=int(settings.memory),
                cpu_weight=settings.cpu_weight,
                io_weight=settings.io_weight,
                firewall=settings.firewall,
            ),
        )

    def agent(self, record: deploy.Record) -> AbstractContextManager[Agent]:
        """Connect to an agent that was deployed: at its port, or through SSH where it has none."""
        return contextlib.closing(self._connect(record))

    def _lacks(self, name: TransportName) -> str:
        """Say what the configuration must have for a transport, and has not; else nothing."""
        if name == "netcat" and not self.config.agent.netcat_ports:
            return "Set agent.netcat_ports for netcat, then deploy the agents again."
        if name == "grpc" and not self.config.agent.port:
            return "Set agent.port for grpc, then deploy the agents again."
        return ""

    def _lacks_to_write(self, name: TransportName) -> str:
        """As `_lacks`, for writing."""
        return "Transport netcat only reads: use grpc, ssh or imageio." if name == "netcat" else self._lacks(name)

    def _upload(self, name: TransportName) -> UploadTransport:
        registry = self.agents().registry

        def record_of(target: Target) -> deploy.Record:
            return registry.find(target.host_address)

        match name:
            case "grpc":
                return AgentUploads(name, lambda target: Agent(_port(record_of(target)), self._credentials()))
            case "ssh":
                return AgentUploads(name, lambda target: TunnelledAgent(self._way(record_of(target))))
            case "imageio":
                return ImageioUploads(str(self.config.engine.ca_file), self.config.agent.bandwidth)
            case "netcat":
                raise AssertionError("netcat only reads")

    def _transport(self, name: TransportName) -> Transport:
        registry = self.agents().registry

        def record_of(target: Target) -> deploy.Record:
            return registry.find(target.host_address)

        match name:
            case "netcat":
                return NetcatTransport(
                    lambda target: self._connect(record_of(target)),
                    lambda target: _endpoint(record_of(target)),
                    self._credentials(),
                    self.config.agent.netcat_clear_text,
                )
            case "grpc":
                return GrpcTransport(self._credentials(), lambda target: _port(record_of(target)))
            case "ssh":
                return SshTransport(lambda target: self._way(record_of(target)))
            case "imageio":
                return ImageioTransport(str(self.config.engine.ca_file), self.config.agent.bandwidth)

    def _connect(self, record: deploy.Record) -> Agent:
        """Connect to an agent: at its port, or through SSH where it has none. The caller closes it."""
        if record.port:
            return Agent(_endpoint(record), self._credentials())
        return TunnelledAgent(self._way(record))

    def _way(self, record: deploy.Record) -> Way:
        """Return how SSH leads to an agent: as it did to deploy it. Raises AgentUnreachable."""
        if not record.socket:
            raise errors.AgentUnreachable(
                f"The agent on {record.host_name} was deployed before agents could be reached through SSH.",
                "Deploy it again.",
            )
        settings = self.config.agent
        return Way(
            host_name=record.host_name,
            address=record.address,
            # 22 is what the engine says when it was told nothing, too: the operator's ssh_config may know better.
            port=record.ssh_port if record.ssh_port != 22 else 0,
            user=record.ssh_user,
            host_key=record.host_key,
            alias=record.server_name,
            socket=record.socket,
            key_file=settings.ssh_key_file,
            config_file=settings.ssh_config_file,
        )

    def _credentials(self) -> Credentials:
        authority = deploy.Authority.open(self.state)
        own = authority.controller()
        return Credentials(authority.trusted, own.certificate, own.key)


def _endpoint(record: deploy.Record) -> Endpoint:
    return Endpoint(record.address, record.port, record.server_name)


def _port(record: deploy.Record) -> Endpoint:
    """Return where an agent serves gRPC. Raises AgentUnreachable when that is nowhere but behind SSH."""
    if not record.port:
        raise errors.AgentUnreachable(
            f"The agent on {record.host_name} was deployed without a TCP port.", "Deploy it again."
        )
    return _endpoint(record)
