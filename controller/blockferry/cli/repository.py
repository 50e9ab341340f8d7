"""`blockferry repository`: the place where recovery points are kept."""

from __future__ import annotations

from typing import Literal

import click

from blockferry.cli import output
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import catalog
from blockferry_agent.units import KiB


@click.group()
def repository() -> None:
    """Make the repository that the configuration names."""


@repository.command()
@click.option(
    "--window",
    type=click.Choice(["256", "512", "1024", "2048", "4096", "8192"]),
    default="1024",
    show_default=True,
    help="Window in KiB: the longest piece that is read, hashed and stored as one.",
)
@click.option(
    "--compression", type=click.Choice(["zstd", "none"]), default="zstd", show_default=True, help="Of stored chunks."
)
@common_options
def init(settings: Settings, window: str, compression: Literal["zstd", "none"]) -> None:
    """Make an empty repository at repository.url of the configuration. Its window and compression stay as they are."""
    made = catalog.init(settings.site().config.repository.url, int(window) * KiB, compression)
    if settings.machine:
        output.as_json({"url": made.url, "settings": made.settings})
    else:
        click.echo(f"The repository {made.url} is ready.")
