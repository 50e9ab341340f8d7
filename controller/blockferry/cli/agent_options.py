"""Options that several of the commands about agents have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from blockferry.jobs.agents import Terms
from blockferry.jobs.hosts import Choice
from blockferry.jobs.site import Site

Command = Callable[..., Any]

_UNITS = {"s": 1, "m": 60, "h": 3600}


def duration(text: str) -> float:
    """Return seconds from "90s", "10m" or "2h". Raises ValueError, which click turns into a message."""
    match = re.fullmatch(r"(\d{1,6})([smh])", text)
    if match is None:
        raise ValueError(text)
    return float(match[1]) * _UNITS[match[2]]


duration.__name__ = "TIME"  # how click calls it in the help


def hosts(command: Command) -> Command:
    """Give a command HOSTs, --cluster, --all and --jobs."""
    for option in (
        click.option(
            "--jobs", "at_once", type=click.IntRange(1, 256), default=8, show_default=True, help="Hosts at once."
        ),
        click.option("--all", "everything", is_flag=True, help="All hosts; where agents are meant, all that have one."),
        click.option("--cluster", metavar="NAME", help="The hosts of this cluster (name or id)."),
        click.argument("hosts", nargs=-1, metavar="[HOST]..."),
    ):
        command = option(command)
    return command


def wait(command: Command) -> Command:
    """Give a command --wait and --now."""
    for option in (
        click.option("--now", is_flag=True, help="Stop an agent whatever it does: what it reads breaks off."),
        click.option(
            "--wait",
            type=duration,
            help="How long to wait for an agent that reads a disk: 90s, 10m, 2h. Default: agent.upgrade_wait.",
        ),
    ):
        command = option(command)
    return command


def deploying(command: Command) -> Command:
    """Give a command what says how agents come to hosts."""
    for option in (
        click.option(
            "--trust-new-host-key",
            "trust_new",
            is_flag=True,
            help="Believe a host whose SSH key neither the engine nor known_hosts has; it is expected from then on.",
        ),
        click.option("--offline", is_flag=True, help="Fetch nothing: use the bundles and wheels in the cache only."),
    ):
        command = option(command)
    return wait(command)


def choice(hosts: tuple[str, ...], cluster: str | None, everything: bool) -> Choice:
    """Return which hosts are meant. Raises UsageError unless they are named in one way."""
    if sum((bool(hosts), cluster is not None, everything)) != 1:
        raise click.UsageError("Give HOSTs, or --cluster, or --all.")
    return Choice(hosts, cluster, everything)


def terms(site: Site, at_once: int, wait: float | None, now: bool, trust_new: bool = False) -> Terms:
    """Return how agents are replaced. Raises UsageError."""
    if now and wait is not None:
        raise click.UsageError("--now does not wait: give one of --now and --wait.")
    patience = None if now else site.config.agent.upgrade_wait if wait is None else wait
    return Terms(at_once, trust_new, patience)
