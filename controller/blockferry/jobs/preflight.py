"""Everything that a backup needs on a host, looked at before it is needed."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence

from blockferry import engine, errors
from blockferry.deploy import Finding
from blockferry.jobs import agent_status, fleet, hosts
from blockferry.jobs.fleet import Board, Outcome, Turn
from blockferry.jobs.site import Site
from blockferry_agent import errors as agent_errors

PORT_TIMEOUT = 5.0

_REJECTED = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM)


def check(site: Site, chosen: Sequence[engine.Host], board: Board, at_once: int) -> list[Outcome[list[Finding]]]:
    """Look at hosts: as the engine sees them, as they see themselves, and as they look from here."""

    def work(host: engine.Host, turn: Turn) -> list[Finding]:
        turn.say("looking at the host")
        return _check(site, host)

    return fleet.side_by_side([(host.name, host) for host in chosen], work, board, at_once, told=_told)


def _check(site: Site, host: engine.Host) -> list[Finding]:
    findings = [_engines_view(host)]
    try:
        findings += site.agents().check(hosts.login(site, host), site.placement())
    except agent_errors.Error as error:
        findings.append(Finding(name="SSH", state="failure", what=error.message, hint=error.hint))
    records = [record for record in site.agents().registry.records() if record.host_id == host.id]
    if not records:
        port = site.config.agent.port
        return findings + ([_way_to(host.address, port)] if port else [])
    state = agent_status.ask(site, records[0])
    if state.problem:
        return [
            *findings,
            Finding(name="agent from here", state="failure", what=state.problem, hint="Deploy it again."),
        ]
    return [
        *findings,
        Finding(name="agent from here", state="ok", what=f"agent {state.version} answers at {state.where}"),
    ]


def _engines_view(host: engine.Host) -> Finding:
    if host.status == "up":
        return Finding(name="engine", state="ok", what="the host is up")
    return Finding(
        name="engine", state="warning", what=f"the host is {host.status}", hint="Only hosts that are up run backups."
    )


def _way_to(address: str, port: int) -> Finding:
    """Say whether a firewall keeps us from a port at which nobody listens yet."""
    name = f"way to port {port}"
    with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)) as client:
        client.settimeout(PORT_TIMEOUT)
        try:
            client.connect((address, port))
        except ConnectionRefusedError:
            return Finding(name=name, state="ok", what="it is open, and nobody listens there yet")
        except TimeoutError:
            hint = f"Let TCP port {port} through for this machine, or set agent.port = 0 to go through SSH."
            return Finding(name=name, state="warning", what="no answer: a firewall may be between", hint=hint)
        except OSError as error:
            state: str = "failure" if error.errno in _REJECTED else "unknown"
            hint = f"Let TCP port {port} through for this machine, or set agent.port = 0 to go through SSH."
            return Finding(name=name, state="failure" if state == "failure" else "unknown", what=str(error), hint=hint)
    return Finding(
        name=name, state="failure", what="something answers there that is no agent of ours", hint="Change agent.port."
    )


def _told(findings: list[Finding]) -> str:
    counted = {state: sum(found.state == state for found in findings) for state in ("failure", "warning")}
    if not any(counted.values()):
        return "all is well"
    return ", ".join(f"{count} {state}{'s' if count > 1 else ''}" for state, count in counted.items() if count)


def failure(outcomes: Sequence[Outcome[list[Finding]]]) -> errors.DeployError | None:
    """Return the error for hosts on which a backup would not work; None when there is none."""
    bad = [
        outcome.host_name
        for outcome in outcomes
        if outcome.problem is not None or any(found.state == "failure" for found in outcome.result or [])
    ]
    return errors.DeployError(f"A backup would not work on: {', '.join(bad)}.", "The table says why.") if bad else None
