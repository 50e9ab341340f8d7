"""How the agents do, as they say themselves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from blockferry import deploy, errors
from blockferry.deploy import interpreter
from blockferry.jobs import fleet
from blockferry.jobs.fleet import Turn
from blockferry.jobs.site import Site

AT_ONCE = 32
"""Agents that are asked at the same time: one that is gone does not hold up the rest."""


class AgentState(msgspec.Struct, frozen=True):
    """
    An agent, as it says itself; what only it can say is None when it does not answer.

    port: 0 when it listens at no TCP port and is reached through SSH.
    problem: a sentence, None when it serves.  certificate_until: day on which its certificate ends.
    health: by the standard gRPC health service, "SERVING" or "NOT_SERVING".
    current: this controller would deploy the same version and bundle; None when that cannot be said without a fetch.
    load: of the host, over a minute.  cores: of the host.
    """

    host_name: str
    address: str
    port: int
    problem: str | None
    certificate_until: str
    health: str | None = None
    version: str | None = None
    current: bool | None = None
    python_version: str | None = None
    uptime_seconds: int | None = None
    active_reads: int | None = None
    resident_bytes: int | None = None
    load: float | None = None
    cores: int | None = None

    @property
    def where(self) -> str:
        """Where it is reached, as a person reads it."""
        return f"{self.address}:{self.port}" if self.port else f"{self.address} (SSH)"


def status(site: Site, host_names: Sequence[str]) -> list[AgentState]:
    """Ask the agents on these hosts, or all that were deployed, how they do. Raises NotFound."""
    registry = site.agents().registry
    records = [registry.find(name) for name in host_names] if host_names else registry.records()

    def ask_one(record: deploy.Record, turn: Turn) -> AgentState:
        return ask(site, record)

    named = [(record.host_name, record) for record in records]
    outcomes = fleet.side_by_side(named, ask_one, fleet.Unseen(), AT_ONCE)
    for outcome in outcomes:
        if outcome.problem is not None:
            raise outcome.problem
    return [outcome.result for outcome in outcomes if outcome.result is not None]


def ask(site: Site, record: deploy.Record) -> AgentState:
    """Ask one agent. What keeps it from answering is in the state."""
    state = AgentState(
        host_name=record.host_name,
        address=record.address,
        port=record.port,
        problem=None,
        certificate_until=f"{record.certificate_expires:%Y-%m-%d}",
        current=_is_current(site, record),
    )
    if record.certificate_expires < datetime.now(UTC):
        return msgspec.structs.replace(state, problem="Its certificate has expired: run `agent rotate-certs`.")
    try:
        with site.agent(record) as agent:
            health = agent.health()
            reply = agent.describe()
    except errors.Error as error:
        # What to do about a port, `deploy_to` knows better, and `status` shows.
        return msgspec.structs.replace(state, problem=error.message if record.port else str(error))
    return msgspec.structs.replace(
        state,
        problem="It is about to stop." if reply.stopping else None,
        health=health,
        version=reply.version,
        python_version=reply.python_version,
        uptime_seconds=reply.uptime_seconds,
        active_reads=reply.active_reads,
        resident_bytes=reply.resident_bytes,
        load=reply.load,
        cores=reply.cores,
    )


def _is_current(site: Site, record: deploy.Record) -> bool | None:
    """Say whether the bundle on a host is the one that would be deployed; its kind is known by the last deployment."""
    if not record.kind:
        return None
    try:
        made = site.cached_bundle(interpreter.Kind.parse(record.kind))
    except errors.Error:
        return None
    return made.digest == record.bundle
