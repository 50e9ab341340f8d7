"""
Transport `ssh`: the agent's gRPC service through a tunnel. No port of the host opens but that of sshd.

Each disk has a tunnel of its own: an ssh process ciphers on one processor, so disks that are read side by side go as
fast as they would alone, and one that breaks takes no other with it. Inside there is no TLS: SSH ciphers already, and
at both ends stands a Unix socket that only its own user may open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from blockferry import errors
from blockferry.transport.disk import Target
from blockferry.transport.grpc_agent import Agent, AgentDisk, LocalEndpoint
from blockferry.transport.tunnel import Tunnel, Way


class SshTransport:
    """
    Reads through agents, each behind a tunnel.

    way_of: finds the way to the agent of a target's host; raises NotFound when none was deployed there.
    """

    name = "ssh"
    is_last_resort = False

    def __init__(self, way_of: Callable[[Target], Way]) -> None:
        self._way_of = way_of

    def open(self, target: Target) -> AgentDisk:
        """See `disk.Transport.open`."""
        agent = TunnelledAgent(self._way_of(target))
        try:
            agent.probe(target)
        except BaseException:
            agent.close()
            raise
        return AgentDisk(agent, target)


class TunnelledAgent(Agent):
    """An agent behind a tunnel, which is closed with it. Raises AgentUnreachable when there is no way."""

    def __init__(self, way: Way) -> None:
        self._tunnel = Tunnel(way)
        super().__init__(LocalEndpoint(self._tunnel.path, way.where))

    @contextlib.contextmanager
    def _border(self) -> Iterator[None]:
        """Say what ssh says, where it is the tunnel that broke."""
        try:
            with super()._border():
                yield
        except errors.AgentUnreachable as error:
            raise self._tunnel.broken() or error from None

    def close(self) -> None:
        """See `Agent.close`."""
        super().close()
        self._tunnel.close()
