"""`blockferry compare`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import click

from blockferry import errors
from blockferry.cli import output
from blockferry.cli.settings import Settings, common_options
from blockferry.config import AskedMode, TransportName
from blockferry.jobs import compare as job
from blockferry.jobs import figures

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic for the type checker only
    """A number of bytes, as people write it: 4GiB, 512M."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if match is None or not int(match[1]):
            self.fail(f"{value!r} is no size: write it like 512MiB or 4GiB.", param, context)
        return int(match[1]) * _UNITS[match[2].upper()]


@click.command()
@click.argument("vm")
@click.option(
    "--transport",
    "transports",
    multiple=True,
    type=click.Choice(get_args(TransportName)),
    help="Compare this one; repeatable. Default: all.",
)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Readings per transport.")
@click.option("--disk", "disks", multiple=True, metavar="DISK", help="Read only this disk (id or alias); repeatable.")
@click.option(
    "--limit", type=_Size(), default=0, metavar="SIZE", help="Read so much of each disk, e.g. 4GiB. Default: all."
)
@click.option("--incremental", is_flag=True, help="Read what changed since the newest recovery point. Default: all.")
@click.option(
    "--store", is_flag=True, help="Write the blocks into a repository beside yours, too; it is removed again."
)
@click.option(
    "--mode",
    type=click.Choice(["engine", "live", "hybrid"]),
    help="Kind of the engine's backup. Default: backup.mode of the configuration.",
)
@click.option(
    "--report",
    "report_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write an HTML report.",
)
@common_options
def compare(
    settings: Settings,
    vm: str,
    transports: tuple[TransportName, ...],
    rounds: int,
    disks: tuple[str, ...],
    limit: int,
    incremental: bool,
    store: bool,
    mode: AskedMode | None,
    report_file: Path | None,
) -> None:
    """
    Measure every transport on the disks of VM (name or id), on your own hosts.

    Opens one backup and reads the same extents through each transport, in rounds, checking every block and keeping
    none. Makes no recovery point, and leaves neither a backup nor a checkpoint behind. It reads as fast as it can:
    limits of the agents hold, that of backups (backup.bandwidth) does not.
    """
    if incremental and store:
        raise click.UsageError("--store needs a full read: leave out --incremental.")
    site = settings.site()
    options = job.Options(
        mode=mode or site.config.backup.mode,
        transports=transports or get_args(TransportName),
        rounds=rounds,
        disks=disks,
        limit=limit,
        incremental=incremental,
        store=store,
    )
    with settings.progress() as progress:
        found = job.run(site, vm, options, progress)
    rows = figures.of(found)
    if report_file is not None:
        # Its plotting library takes as long to load as all the rest, so it is loaded when it is wanted.
        from blockferry.cli import report  # noqa: PLC0415

        _write(report_file, report.html(found, rows))
    if settings.machine:
        output.as_json({"figures": rows, "comparison": found})
    else:
        output.comparison(found, rows)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise errors.RestoreError(
            f"The report {file} cannot be written: {error.strerror}.", "Name another file."
        ) from None
