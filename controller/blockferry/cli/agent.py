"""`blockferry agent`: the agents on the hosts."""

from __future__ import annotations

import click

from blockferry import errors
from blockferry.cli import output
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import agents as job


@click.group()
def agent() -> None:
    """Deploy agents to hosts over SSH, see how they do, and take them away."""


@agent.command()
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
@common_options
def deploy(settings: Settings, hosts: tuple[str, ...]) -> None:
    """
    Bring the agent to HOSTs, named as the engine knows them (name, address or id).

    The host's SSH key must be the one that the engine has on record. Nothing on the host is touched but the agent's own
    directory (agent.directory of the configuration). Run it again to upgrade; when the new agent does not start, the
    old one is put back.
    """
    site = settings.site()
    deployed: list[job.AgentState] = []
    problems: list[errors.Error] = []
    with settings.progress() as progress:
        for host in hosts:
            try:
                deployed.append(job.deploy_to(site, host, progress))
            except errors.Error as error:
                progress.warn(f"{host}: {error}")
                problems.append(error)
    if settings.machine:
        output.as_json(deployed)
    else:
        for one in deployed:
            output.line(f"Agent {one.version} serves on {one.host_name} at {one.where}.")
    if problems:
        output.failed(problems[0])


@agent.command()
@click.argument("hosts", nargs=-1, metavar="[HOST]...")
@common_options
def status(settings: Settings, hosts: tuple[str, ...]) -> None:
    """
    Ask agents how they do: version, health, Python. Without HOST, all that this controller deployed.

    Exit code 7 when one does not answer.
    """
    states = job.status(settings.site(), hosts)
    if settings.machine:
        output.as_json(states)
    else:
        output.agents(states)
    silent = [state.host_name for state in states if state.problem]
    if silent:
        output.failed(errors.AgentUnreachable(f"No answer from the agent on: {', '.join(silent)}.", "Deploy it again."))


@agent.command()
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
@click.option("--forget", is_flag=True, help="Only forget the agent here: the host is gone.")
@common_options
def remove(settings: Settings, hosts: tuple[str, ...], forget: bool) -> None:
    """Stop the agent on HOSTs and remove its directory: nothing of it stays."""
    site = settings.site()
    with settings.progress() as progress:
        removed = [job.forget(site, host) if forget else job.remove_from(site, host, progress) for host in hosts]
    if settings.machine:
        output.as_json({"removed": removed})
    else:
        for host in removed:
            click.echo(f"The agent on {host} is gone.")
