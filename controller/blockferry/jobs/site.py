"""The parts that a configuration describes, made when a job asks for them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from blockferry import deploy, engine, errors
from blockferry.config import Config
from blockferry.deploy import bundle
from blockferry.repository import Repository
from blockferry.transport.disk import Target, Transport
from blockferry.transport.grpc_agent import Agent, Credentials, Endpoint, GrpcTransport
from blockferry.transport.imageio import ImageioTransport


class Site:
    """
    One configuration's engine, repository, transports and agents.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

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
        """Open the repository. Raises NotFound, RepositoryError."""
        return Repository.open(self.config.repository.url)

    def transports(self, names: Sequence[str]) -> list[Transport]:
        """Return the transports of these names, in their order."""
        return [self._transport(name) for name in names]

    def agents(self) -> deploy.Agents:
        """Return the agents that this controller deploys."""
        return deploy.Agents(self.state, functools.partial(bundle.build, self.config.cache))

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
        )

    def agent(self, record: deploy.Record) -> AbstractContextManager[Agent]:
        """Connect to an agent that was deployed."""
        return contextlib.closing(Agent(_endpoint(record), self._credentials()))

    def _transport(self, name: str) -> Transport:
        if name == "imageio":
            return ImageioTransport(str(self.config.engine.ca_file))
        registry = self.agents().registry

        def endpoint_of(target: Target) -> Endpoint:
            return _endpoint(registry.find(target.host_address))

        return GrpcTransport(self._credentials(), endpoint_of)

    def _credentials(self) -> Credentials:
        authority = deploy.Authority.open(self.state)
        own = authority.controller()
        return Credentials(authority.certificate, own.certificate, own.key)


def _endpoint(record: deploy.Record) -> Endpoint:
    return Endpoint(record.address, record.port, record.server_name)
