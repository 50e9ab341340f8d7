"""The agents on the hosts: deployed over SSH as the engine's hosts, asked over gRPC how they do, removed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from blockferry import deploy, engine, errors
from blockferry.deploy import hostkey
from blockferry.jobs.progress import Progress
from blockferry.jobs.site import Site


class AgentState(msgspec.Struct, frozen=True):
    """
    An agent, as it says itself; what only it can say is None when it does not answer.

    port: 0 when it listens at no TCP port and is reached through SSH.
    problem: a sentence, None when it serves.  certificate_until: day on which its certificate ends.
    """

    host_name: str
    address: str
    port: int
    problem: str | None
    certificate_until: str
    version: str | None = None
    python_version: str | None = None
    uptime_seconds: int | None = None
    active_reads: int | None = None
    resident_bytes: int | None = None

    @property
    def where(self) -> str:
        """Where it is reached, as a person reads it."""
        return f"{self.address}:{self.port}" if self.port else f"{self.address} (SSH)"


def deploy_to(site: Site, host_name: str, progress: Progress) -> AgentState:
    """
    Bring the agent to a host that the engine knows, start it, and see that it answers here.

    Raises NotFound, Ambiguous, EngineError, DeployError, AgentUnreachable.
    """
    with site.engine() as connection:
        host = connection.find_host(host_name)
    progress.step(f"{host.name}: deploying the agent over SSH")
    deployed = site.agents().deploy(deploy.Host(host.id, host.name, host.address), _login(site, host), site.placement())
    progress.step(f"{host.name}: {'the agent was started' if deployed.changed else 'this agent serves there already'}")
    state = _ask(site, deployed.record)
    if state.problem:
        raise errors.AgentUnreachable(
            f"The agent on {host.name} serves, but cannot be reached from here: {state.problem}",
            f"Open TCP port {state.port} on the host for this machine, or set agent.port = 0 to go through SSH alone."
            if state.port
            else "",
        )
    return state


def status(site: Site, host_names: Sequence[str]) -> list[AgentState]:
    """Ask the agents on these hosts, or all that were deployed, how they do. Raises NotFound."""
    registry = site.agents().registry
    records = [registry.find(name) for name in host_names] if host_names else registry.records()
    return [_ask(site, record) for record in records]


def remove_from(site: Site, host_name: str, progress: Progress) -> str:
    """Stop the agent on a host, remove its directory, and return the host's name. Raises like `deploy_to`."""
    with site.engine() as connection:
        host = connection.find_host(host_name)
    progress.step(f"{host.name}: removing the agent")
    site.agents().remove(deploy.Host(host.id, host.name, host.address), _login(site, host), site.placement())
    return host.name


def forget(site: Site, host_name: str) -> str:
    """Forget an agent whose host is gone, and return the host's name. Raises NotFound, Ambiguous."""
    registry = site.agents().registry
    record = registry.find(host_name)
    registry.forget(record.host_id)
    return record.host_name


def _ask(site: Site, record: deploy.Record) -> AgentState:
    state = AgentState(
        host_name=record.host_name,
        address=record.address,
        port=record.port,
        problem=None,
        certificate_until=f"{record.certificate_expires:%Y-%m-%d}",
    )
    if record.certificate_expires < datetime.now(UTC):
        return msgspec.structs.replace(state, problem="Its certificate has expired: deploy it again.")
    try:
        with site.agent(record) as agent:
            reply = agent.describe()
    except errors.Error as error:
        # What to do about a port, `deploy_to` knows better, and `status` shows.
        return msgspec.structs.replace(state, problem=error.message if record.port else str(error))
    return msgspec.structs.replace(
        state,
        version=reply.version,
        python_version=reply.python_version,
        uptime_seconds=reply.uptime_seconds,
        active_reads=reply.active_reads,
        resident_bytes=reply.resident_bytes,
    )


def _login(site: Site, host: engine.Host) -> deploy.Login:
    """Return the way to the host: pinned to the key that the engine saw when the host was added."""
    settings = site.config.agent
    pins = []
    if host.ssh_public_key:
        pins.append(hostkey.from_public_key(host.ssh_public_key))
    elif host.ssh_fingerprint:
        pins.append(hostkey.from_fingerprint(host.ssh_fingerprint))
    return deploy.Login(
        address=host.address,
        pins=tuple(pins),
        port=host.ssh_port or 22,
        user=settings.ssh_user,
        key_file=settings.ssh_key_file,
        password=settings.ssh_password(),
    )
