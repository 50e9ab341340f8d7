"""`blockferry backup`."""

from __future__ import annotations

from typing import get_args

import click

from blockferry.cli import output
from blockferry.cli.settings import Settings, common_options
from blockferry.config import AskedMode, TransportName
from blockferry.jobs import backup as job


@click.command()
@click.argument("vm")
@click.option("--full", is_flag=True, help="Read the whole disks. What the repository has already is not moved again.")
@click.option(
    "--fresh",
    is_flag=True,
    help="Build on no earlier point: move everything again, and mend what is damaged in the store.",
)
@click.option(
    "--mode",
    type=click.Choice(["engine", "live", "hybrid"]),
    help="Kind of the engine's backup. Default: backup.mode of the configuration.",
)
@click.option(
    "--transport",
    "transports",
    multiple=True,
    type=click.Choice(get_args(TransportName)),
    help="Use this transport first (repeatable: these, in this order). The others of the configuration are behind it, "
    "for when it does not answer or breaks. Default: those of the configuration, in their order.",
)
@click.option("--no-fallback", is_flag=True, help="Use only what --transport names.")
@click.option("--disk", "disks", multiple=True, metavar="DISK", help="Take only this disk (id or alias); repeatable.")
@click.option("--tag", "tags", multiple=True, help="Give the point this tag, for `prune --tag`; repeatable.")
@common_options
def backup(
    settings: Settings,
    vm: str,
    full: bool,
    fresh: bool,
    mode: AskedMode | None,
    transports: tuple[TransportName, ...],
    no_fallback: bool,
    disks: tuple[str, ...],
    tags: tuple[str, ...],
) -> None:
    """
    Take a recovery point of VM (name or id).

    Moves what changed since the newest recovery point whose checkpoint the engine still has; without one, everything
    that the repository does not have. The point is complete by itself either way.
    """
    if no_fallback and not transports:
        raise click.UsageError("--no-fallback needs --transport: it leaves out the transports that are not named.")
    site = settings.site()
    for name in transports:
        # What is asked for by name is not left out in silence when the configuration gives no means for it.
        site.transports([name])
    fallback = () if no_fallback else site.config.backup.ladder
    options = job.Options(
        mode=mode or site.config.backup.mode,
        transports=tuple(dict.fromkeys((*transports, *fallback))),
        full=full,
        fresh=fresh,
        disks=disks,
        compression=site.config.backup.compression,
        bytes_per_second=site.config.backup.bandwidth,
        tags=tuple(dict.fromkeys(tags)),
    )
    with settings.progress() as progress:
        point = job.run(site, vm, options, progress)
    if settings.machine:
        output.as_json(point)
    else:
        output.line(f"Recovery point {point.id} of VM {point.vm.name} is complete.")
        output.disks(point)
