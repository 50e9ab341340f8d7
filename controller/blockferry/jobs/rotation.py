"""New certificates for agents and controller, and a new authority, without a restart and without a transfer cut off."""

from __future__ import annotations

from collections.abc import Sequence

from blockferry import deploy, engine, errors
from blockferry.jobs import agent_status, fleet, hosts
from blockferry.jobs.fleet import Board, Outcome, Turn
from blockferry.jobs.site import Site


def rotate(site: Site, chosen: Sequence[engine.Host], board: Board, at_once: int) -> list[Outcome[deploy.Record]]:
    """Give agents new certificates, and the newest list of controllers' certificates that were taken back."""

    def work(host: engine.Host, turn: Turn) -> deploy.Record:
        turn.say("renewing its certificate")
        login = hosts.login(site, host)
        record = site.agents().renew(deploy.Host(host.id, host.name, host.address), login, site.placement())
        state = agent_status.ask(site, record)
        if state.problem:
            raise errors.AgentUnreachable(
                f"The agent on {host.name} does not answer with its new certificate: {state.problem}",
                "Deploy it again.",
            )
        return record

    return fleet.side_by_side([(host.name, host) for host in chosen], work, board, at_once, told=_told)


def rotate_controller(
    site: Site, chosen: Sequence[engine.Host], board: Board, at_once: int
) -> list[Outcome[deploy.Record]]:
    """Give this controller a new certificate; agents refuse the old one as soon as they have the list."""
    deploy.Authority.open(site.state).rotate_controller()
    board.note("This controller has a new certificate.")
    return rotate(site, chosen, board, at_once)


def rotate_authority(
    site: Site, chosen: Sequence[engine.Host], board: Board, at_once: int
) -> list[Outcome[deploy.Record]]:
    """
    Replace the authority in three steps (`deploy.pki`), in each of which all agents must be reached.

    When some cannot be, it stops there, everything goes on working, and the same call again goes on.
    """
    _refuse_partial(site, chosen)
    authority = deploy.Authority.open(site.state)
    authority.begin_rotation()
    board.note("1 of 2: every agent learns to trust the new authority, beside the old one.")
    outcomes = rotate(site, chosen, board, at_once)
    if fleet.failure(outcomes) is not None:
        missed = ", ".join(outcome.host_name for outcome in outcomes if outcome.problem is not None)
        board.note(f"The old authority stays in force, beside the new one, until {missed} can be reached, too.")
        return outcomes
    authority.end_rotation()
    board.note("2 of 2: every agent forgets the old authority.")
    return rotate(site, chosen, board, at_once)


def _refuse_partial(site: Site, chosen: Sequence[engine.Host]) -> None:
    reached = {host.id for host in chosen}
    left_out = [record.host_name for record in site.agents().registry.records() if record.host_id not in reached]
    if left_out:
        raise errors.DeployError(
            f"The authority is replaced for all agents at once; these were left out: {', '.join(left_out)}.",
            "Give --all. If a host is gone for good, run `blockferry agent remove HOST --forget` first.",
        )


def _told(record: deploy.Record) -> str:
    return f"its certificate is good until {record.certificate_expires:%Y-%m-%d}"
