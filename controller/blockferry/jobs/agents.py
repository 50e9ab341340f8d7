"""The agents on the hosts: deployed over SSH as the engine's hosts, upgraded, rolled back, removed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from blockferry import deploy, engine, errors
from blockferry.deploy import bundle, interpreter
from blockferry.jobs import agent_status, fleet, hosts
from blockferry.jobs.agent_status import AgentState
from blockferry.jobs.fleet import Board, Outcome, Turn
from blockferry.jobs.site import Site

IDLE_PAUSE = 2.0
"""Seconds until an agent that reads is asked again whether it would end."""


class Terms(NamedTuple):
    """
    How agents are replaced.

    at_once: hosts.  trust_new: believe host keys that nobody has vouched for.
    wait: seconds for an agent that reads; None: it is stopped whatever it does.
    """

    at_once: int
    trust_new: bool
    wait: float | None


class Deployment(NamedTuple):
    """What came of a host. changed: False when this very agent served already."""

    state: AgentState
    changed: bool


class Made(msgspec.Struct, frozen=True):
    """A bundle in the cache. wheels: the directory of what it is made of."""

    kind: str
    version: str
    digest: str
    size: int
    wheels: str


def deploy_to(site: Site, chosen: Sequence[engine.Host], board: Board, terms: Terms) -> list[Outcome[Deployment]]:
    """Bring the agent to hosts, start it, and see that it answers here."""

    def work(host: engine.Host, turn: Turn) -> Deployment:
        return _deploy(site, host, board, terms, turn)

    return fleet.side_by_side(_named(chosen), work, board, terms.at_once, told=_told)


def upgrade(
    site: Site, chosen: Sequence[engine.Host], board: Board, terms: Terms, keep_going: bool
) -> list[Outcome[Deployment]]:
    """As `deploy_to`, for hosts where something would change: one alone first, then the others, until one fails."""

    def look(host: engine.Host, turn: Turn) -> bool:
        turn.say("looking what runs there")
        return site.agents().outdated(_host(host), hosts.login(site, host), site.placement())

    def work(host: engine.Host, turn: Turn) -> Deployment:
        return _deploy(site, host, board, terms, turn)

    looked = fleet.side_by_side(_named(chosen), look, fleet.Unseen(), terms.at_once)
    stale = [host for host, outcome in zip(chosen, looked, strict=True) if outcome.result]
    unseen: list[Outcome[Deployment]] = []
    for outcome in looked:
        if outcome.problem is not None:
            board.end(outcome.host_name, str(outcome.problem), failed=True)
            unseen.append(Outcome(outcome.host_name, problem=outcome.problem))
    board.note(f"{len(stale)} of {len(chosen)} agents are to be upgraded.")
    if unseen and not keep_going:
        return unseen
    return unseen + fleet.first_alone(_named(stale), work, board, terms.at_once, told=_told, keep_going=keep_going)


def rollback(site: Site, chosen: Sequence[engine.Host], board: Board, terms: Terms) -> list[Outcome[Deployment]]:
    """Put the release before the current one in force again."""

    def work(host: engine.Host, turn: Turn) -> Deployment:
        turn.say("going back to the release before")
        record = site.agents().rollback(
            _host(host), hosts.login(site, host), site.placement(), _patience(site, host, terms.wait, turn)
        )
        return Deployment(_answering(site, record), changed=True)

    return fleet.side_by_side(_named(chosen), work, board, terms.at_once, told=_told)


def remove_from(site: Site, chosen: Sequence[engine.Host], board: Board, at_once: int) -> list[Outcome[bool]]:
    """Stop agents, and take away all that was made for them. A result says whether there was anything."""

    def work(host: engine.Host, turn: Turn) -> bool:
        turn.say("removing the agent")
        return site.agents().remove(_host(host), hosts.login(site, host), site.placement())

    return fleet.side_by_side(
        _named(chosen), work, board, at_once, told=lambda there: "the agent is gone" if there else "there was no agent"
    )


def forget(site: Site, host_name: str) -> str:
    """Forget an agent whose host is gone, and return the host's name. Raises NotFound, Ambiguous."""
    registry = site.agents().registry
    record = registry.find(host_name)
    registry.forget(record.host_id)
    return record.host_name


def logs(site: Site, host_name: str, lines: int) -> str:
    """Return the last lines of what the agent on a host said. Raises NotFound, DeployError."""
    (host,) = hosts.choose(site, hosts.Choice((host_name,)))
    return site.agents().logs(_host(host), hosts.login(site, host), site.placement(), lines)


def bundles(cache: Path, kinds: Sequence[str]) -> list[Made]:
    """Make bundles ahead, where PyPI can be reached, for hosts of these kinds. Raises DeployError."""
    made = []
    for text in kinds:
        kind = interpreter.Kind.parse(text)
        found = bundle.build(cache, kind)
        made.append(Made(str(kind), found.version, found.digest, len(found.data), str(cache / "wheels" / str(kind))))
    return made


def carry(site: Site, host_name: str, kind: str, python: str) -> bytes:
    """Return what deploys the agent by hand on a host, and note it as deployed. Raises NotFound, DeployError."""
    (host,) = hosts.choose(site, hosts.Choice((host_name,)))
    settings = site.config.agent
    key = host.ssh_public_key or ""
    way = deploy.Way(host.ssh_port or 22, settings.ssh_user, key, kind)
    return site.agents().carry(_host(host), interpreter.Kind.parse(kind), python, site.placement(), way)


def _deploy(site: Site, host: engine.Host, board: Board, terms: Terms, turn: Turn) -> Deployment:
    turn.say("deploying the agent over SSH")
    login = hosts.login(site, host, terms.trust_new)
    deployed = site.agents().deploy(_host(host), login, site.placement(), _patience(site, host, terms.wait, turn))
    if deployed.first_met:
        board.note(f"{host.name}: its SSH key {deployed.first_met} was believed, and is expected from now on.")
    turn.say("asking the agent")
    return Deployment(_answering(site, deployed.record), deployed.changed)


def _answering(site: Site, record: deploy.Record) -> AgentState:
    """Return how an agent does. Raises AgentUnreachable when it does not answer here."""
    state = agent_status.ask(site, record)
    if state.problem:
        raise errors.AgentUnreachable(
            f"The agent on {record.host_name} serves, but cannot be reached from here: {state.problem}",
            f"Open TCP port {state.port} on the host for this machine, or set agent.port = 0 to go through SSH alone."
            if state.port
            else "",
        )
    return state


def _patience(site: Site, host: engine.Host, wait: float | None, turn: Turn) -> deploy.Patience | None:
    """Return what waits for an agent that reads, and says what it reads."""
    if wait is None:
        return None
    ends = time.monotonic() + wait

    def again(reading: deploy.Reading) -> None:
        if time.monotonic() >= ends:
            raise errors.Conflict(
                f"The agent on {host.name} still reads a disk after {wait:.0f} seconds.",
                "Try again when the backup has ended, give --wait, or stop it with --now.",
            ) from reading
        turn.say(f"waiting for the agent, which reads {_readings(site, host)}")
        turn.pause(IDLE_PAUSE)

    return again


def _readings(site: Site, host: engine.Host) -> str:
    try:
        record = site.agents().registry.find(host.id)
    except errors.NotFound:
        return "a disk"
    count = agent_status.ask(site, record).active_reads
    return f"{count} disks" if count and count > 1 else "a disk"


def _told(done: Deployment) -> str:
    state = done.state
    return f"agent {state.version} serves at {state.where}" + ("" if done.changed else ", as before")


def _named(chosen: Sequence[engine.Host]) -> list[tuple[str, engine.Host]]:
    return [(host.name, host) for host in chosen]


def _host(host: engine.Host) -> deploy.Host:
    return deploy.Host(host.id, host.name, host.address)
