"""`blockferry agent`: the agents on the hosts."""

from __future__ import annotations

from pathlib import Path

import click

from blockferry import config, files
from blockferry.cli import agent_options, agent_report, board, output
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import agent_status, preflight, rotation
from blockferry.jobs import agents as job
from blockferry.jobs import hosts as choosing
from blockferry.jobs.agents import Deployment


@click.group()
def agent() -> None:
    """
    Deploy agents to hosts over SSH, look after them, and take them away.

    HOSTs are named as the engine knows them: by name, address or id.
    """


def _deployed(done: Deployment) -> str:
    state = done.state
    return f"agent {state.version} serves at {state.where}" + ("" if done.changed else ", as before")


@agent.command()
@agent_options.hosts
@common_options
def check(settings: Settings, hosts: tuple[str, ...], cluster: str | None, everything: bool, at_once: int) -> None:
    """
    Look at everything on HOSTs that a backup needs, and say what to do. Changes nothing, also before any deployment.

    Exit code 10 when a backup would not work.
    """
    site = settings.site()
    chosen = choosing.choose(site, agent_options.choice(hosts, cluster, everything))
    with board.shown(settings.quiet) as shown:
        outcomes = preflight.check(site, chosen, shown, at_once)
    if settings.machine:
        output.as_json([{"host_name": one.host_name, "findings": one.result} for one in outcomes])
    else:
        agent_report.findings(outcomes)
    failure = preflight.failure(outcomes)
    if failure is not None:
        output.failed(failure)


@agent.command()
@agent_options.hosts
@agent_options.deploying
@common_options
def deploy(
    settings: Settings,
    hosts: tuple[str, ...],
    cluster: str | None,
    everything: bool,
    at_once: int,
    wait: float | None,
    now: bool,
    offline: bool,
    trust_new: bool,
) -> None:
    """
    Bring the agent to HOSTs, side by side, and see that it answers.

    A host's SSH key must be the one that the engine has on record, or else that of your known_hosts. The new agent is
    tried out beside the one that runs; when it does not come to serve, nothing has changed. One that reads a disk is
    waited for. Run it again to upgrade or to repair.
    """
    site = settings.site(offline)
    terms = agent_options.terms(site, at_once, wait, now, trust_new)
    chosen = choosing.choose(site, agent_options.choice(hosts, cluster, everything))
    with board.shown(settings.quiet) as shown:
        outcomes = job.deploy_to(site, chosen, shown, terms)
    agent_report.report(settings, outcomes, _deployed, lambda done: done.state)


@agent.command()
@agent_options.hosts
@agent_options.deploying
@click.option("--keep-going", is_flag=True, help="Go on with other hosts after one has failed.")
@common_options
def upgrade(
    settings: Settings,
    hosts: tuple[str, ...],
    cluster: str | None,
    everything: bool,
    at_once: int,
    wait: float | None,
    now: bool,
    offline: bool,
    trust_new: bool,
    keep_going: bool,
) -> None:
    """
    Deploy to those HOSTs where something would change: one alone first, then the others in waves.

    Stops at the first that fails. An agent that reads a disk is waited for, so no transfer breaks off.
    """
    site = settings.site(offline)
    terms = agent_options.terms(site, at_once, wait, now, trust_new)
    chosen = choosing.with_agents(site, agent_options.choice(hosts, cluster, everything))
    with board.shown(settings.quiet) as shown:
        outcomes = job.upgrade(site, chosen, shown, terms, keep_going)
    agent_report.report(settings, outcomes, _deployed, lambda done: done.state)


@agent.command()
@agent_options.hosts
@agent_options.wait
@common_options
def rollback(
    settings: Settings,
    hosts: tuple[str, ...],
    cluster: str | None,
    everything: bool,
    at_once: int,
    wait: float | None,
    now: bool,
) -> None:
    """Go back to the release that ran on HOSTs before the current one. Run twice, it goes forward again."""
    site = settings.site()
    terms = agent_options.terms(site, at_once, wait, now)
    chosen = choosing.with_agents(site, agent_options.choice(hosts, cluster, everything))
    with board.shown(settings.quiet) as shown:
        outcomes = job.rollback(site, chosen, shown, terms)
    agent_report.report(settings, outcomes, _deployed, lambda done: done.state)


@agent.command()
@click.argument("hosts", nargs=-1, metavar="[HOST]...")
@common_options
def status(settings: Settings, hosts: tuple[str, ...]) -> None:
    """
    Ask agents how they do: health, version, load, certificate. Without HOST, all that this controller deployed.

    Exit code 7 when one does not answer.
    """
    states = agent_status.status(settings.site(), hosts)
    if settings.machine:
        output.as_json(states)
    else:
        agent_report.states(states)
    silent = agent_report.silent(states)
    if silent is not None:
        output.failed(silent)


@agent.command("rotate-certs")
@agent_options.hosts
@click.option(
    "--controller", is_flag=True, help="Give this controller a new certificate, too, and take the old one back."
)
@click.option("--authority", is_flag=True, help="Replace the authority; needs all agents (--all). Run again to go on.")
@common_options
def rotate_certs(
    settings: Settings,
    hosts: tuple[str, ...],
    cluster: str | None,
    everything: bool,
    at_once: int,
    controller: bool,
    authority: bool,
) -> None:
    """Give the agents on HOSTs new certificates. No agent is restarted, and no transfer breaks off."""
    if controller and authority:
        raise click.UsageError("A new authority gives the controller a new certificate anyway.")
    site = settings.site()
    chosen = choosing.with_agents(site, agent_options.choice(hosts, cluster, everything))
    rotate = rotation.rotate_authority if authority else rotation.rotate_controller if controller else rotation.rotate
    with board.shown(settings.quiet) as shown:
        outcomes = rotate(site, chosen, shown, at_once)
    agent_report.report(
        settings, outcomes, lambda record: f"its certificate is good until {record.certificate_expires:%Y-%m-%d}"
    )


@agent.command()
@click.argument("host")
@click.option("--lines", type=click.IntRange(1, 10000), default=100, show_default=True, help="The last so many.")
@common_options
def logs(settings: Settings, host: str, lines: int) -> None:
    """Print what the agent on HOST has said: its journal, or its log file where there is no systemd."""
    text = job.logs(settings.site(), host, lines)
    if settings.machine:
        output.as_json({"host_name": host, "lines": text.splitlines()})
    else:
        for line in text.splitlines():
            output.line(line)


@agent.command()
@agent_options.hosts
@click.option("--forget", is_flag=True, help="Only forget the agent here: the host is gone.")
@common_options
def remove(
    settings: Settings,
    hosts: tuple[str, ...],
    cluster: str | None,
    everything: bool,
    at_once: int,
    forget: bool,
) -> None:
    """Stop the agent on HOSTs, and take away all that was made for it: files, user, unit, firewall rule."""
    site = settings.site()
    choice = agent_options.choice(hosts, cluster, everything)
    if forget:
        forgotten = [job.forget(site, host) for host in hosts]
        if settings.machine:
            output.as_json([{"host_name": host, "done": "forgotten"} for host in forgotten])
        return
    chosen = choosing.with_agents(site, choice)
    with board.shown(settings.quiet) as shown:
        outcomes = job.remove_from(site, chosen, shown, at_once)
    agent_report.report(settings, outcomes, lambda there: "the agent is gone" if there else "there was no agent")


@agent.command("bundle")
@click.argument("kinds", nargs=-1, required=True, metavar="KIND...")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="In place of the configuration's.")
@common_options
def bundles(settings: Settings, kinds: tuple[str, ...], cache: Path | None) -> None:
    """
    Fetch and make ahead what hosts of these KINDs need, such as cp39-x86_64-glibc2.34.

    Run it where PyPI can be reached, then carry the cache to a site that has no internet, and give --offline there.
    """
    made = job.bundles(cache if cache is not None else config.load(settings.config_file).cache, kinds)
    if settings.machine:
        output.as_json(made)
    else:
        for one in made:
            output.line(f"{one.kind}: agent {one.version}, {output.size(one.size)}, of the wheels in {one.wheels}")


@agent.command()
@click.argument("host")
@click.option("--kind", required=True, help="Of the host: cp39-x86_64-glibc2.34. `agent check` names Python and glibc.")
@click.option("--python", default="/usr/bin/python3", show_default=True, help="The Python there that runs the agent.")
@click.option("--to", "file", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The archive.")
@common_options
def export(settings: Settings, host: str, kind: str, python: str, file: Path) -> None:
    """
    Write an archive with which the agent is deployed on HOST by hand, or by Ansible. It holds the agent's private key.

    There, as root: tar -xzf FILE -C DIR && PYTHON DIR/deploy.py
    """
    data = job.carry(settings.site(), host, kind, python)
    files.replace(file, data)
    if settings.machine:
        output.as_json({"host_name": host, "file": str(file), "size": len(data)})
    else:
        output.line(f"{file}, {output.size(len(data))}: unpack it on {host}, and run deploy.py there as root.")
