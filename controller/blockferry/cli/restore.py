"""`blockferry restore`: every way in which disks of a recovery point come back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click

from blockferry import errors
from blockferry.cli import output
from blockferry.cli.points import POINT_HELP
from blockferry.cli.settings import Settings, common_options
from blockferry.config import TransportName
from blockferry.jobs import catalog, placing
from blockferry.jobs import restore as images_job
from blockferry.jobs.images import Format
from blockferry.jobs.site import Site
from blockferry.jobs.upload import Gap

STDOUT = Path("-")

_NEW = ("--new-vm", "--new-disk")
_OVIRT = (*_NEW, "--in-place")
_WAYS_OF = {
    "--force": ("--to",),
    "--format": ("--to", *_NEW),
    "--cluster": ("--new-vm",),
    "--keep-ids": ("--new-vm",),
    "--start": ("--new-vm",),
    "--storage-domain": _NEW,
    "--storage-map": _NEW,
    "--host": _OVIRT,
    "--keep-partial": _NEW,
    "--transport": _OVIRT,
    "--no-fallback": _OVIRT,
}
"""Options that belong to some ways only."""


def _pair(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise click.BadParameter(f"'{text}' is not OLD=NEW.")
        pairs[old] = new
    return pairs


@click.command(epilog=POINT_HELP)
@click.argument("vm")
@click.argument("point", default="latest")
@click.option(
    "--to",
    "directory",
    type=click.Path(file_okay=False, allow_dash=True, path_type=Path),
    help="Write images into this directory, made when it is missing: DISK-ALIAS.raw or .qcow2 for each disk. "
    "`-`: write one disk, raw, to standard output.",
)
@click.option("--new-vm", metavar="NAME", help="Make a VM of this name, as the point's VM was, with its disks.")
@click.option("--new-disk", is_flag=True, help="Make new disks, which belong to no VM.")
@click.option(
    "--in-place",
    is_flag=True,
    help="Write into the disks of the point's VM, which must be down: only what differs from the point.",
)
@click.option(
    "--disk", "disks", multiple=True, metavar="DISK", help="Restore only this disk (id or alias); repeatable."
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(get_args(Format)),
    help="Format of images (default raw, which is sparse; qcow2 needs qemu-img on this machine) and of new disks "
    "(default qcow2, which incremental backups need).",
)
@click.option("--force", is_flag=True, help="With --to: replace images that are there already.")
@click.option("--storage-domain", metavar="DOMAIN", help="Where new disks go. Default: where the point's disks were.")
@click.option(
    "--storage-map",
    multiple=True,
    metavar="OLD=NEW",
    callback=_pair,
    help="New disks of those that were in storage domain OLD go to NEW (names or ids); repeatable.",
)
@click.option("--cluster", help="With --new-vm: the VM's cluster. Default: the one that it was in.")
@click.option(
    "--keep-ids", is_flag=True, help="With --new-vm: VM, disks and network interfaces get the ids that they had."
)
@click.option("--start", is_flag=True, help="With --new-vm: start the VM.")
@click.option(
    "--host", metavar="HOST", help="Into oVirt: write on this host (name, address or id). Default: the engine chooses."
)
@click.option("--keep-partial", is_flag=True, help="Leave new disks in the engine when the restore fails.")
@click.option(
    "--skip-damaged", is_flag=True, help="Write zeros for what cannot be read in the repository, and list it."
)
@click.option(
    "--transport",
    "transports",
    multiple=True,
    type=click.Choice(get_args(TransportName)),
    help="Into oVirt: use this transport first (repeatable: these, in this order). Default: those of the "
    "configuration that can write, in their order.",
)
@click.option("--no-fallback", is_flag=True, help="Use only what --transport names.")
@common_options
def restore(
    settings: Settings,
    vm: str,
    point: str,
    directory: Path | None,
    new_vm: str | None,
    new_disk: bool,
    in_place: bool,
    disks: tuple[str, ...],
    image_format: Format | None,
    force: bool,
    storage_domain: str | None,
    storage_map: dict[str, str],
    cluster: str | None,
    keep_ids: bool,
    start: bool,
    host: str | None,
    keep_partial: bool,
    skip_damaged: bool,
    transports: tuple[TransportName, ...],
    no_fallback: bool,
) -> None:
    """
    Restore the disks of a recovery point of VM (name or id): to image files, or into oVirt.

    Every chunk is checked before it is written. Give one of --to, --new-vm, --new-disk and --in-place.
    """
    way = _way({"--to": directory, "--new-vm": new_vm, "--new-disk": new_disk, "--in-place": in_place})
    _check(
        way,
        {
            "--force": force,
            "--format": image_format,
            "--cluster": cluster,
            "--keep-ids": keep_ids,
            "--start": start,
            "--storage-domain": storage_domain,
            "--storage-map": storage_map,
            "--host": host,
            "--keep-partial": keep_partial,
            "--transport": transports,
            "--no-fallback": no_fallback,
        },
    )
    if directory == STDOUT:
        _to_stdout(settings, vm, point, image_format, disks, skip_damaged)
        return
    if directory is not None:
        _to_images(settings, vm, point, directory, image_format or "raw", disks, force, skip_damaged)
        return
    site = settings.site()
    options = placing.Options(
        disks=disks,
        transports=_ladder(site, transports, no_fallback),
        compression=site.config.backup.compression,
        storage_domain=storage_domain,
        storage_map=storage_map,
        format=image_format or "qcow2",
        host=host,
        keep_partial=keep_partial,
        skip_damaged=skip_damaged,
    )
    repository = site.repository()
    found = catalog.point(repository, vm, point)
    with settings.progress() as progress:
        if new_vm is not None:
            wanted = placing.NewVm(new_vm, cluster, keep_ids, start)
            result = placing.new_vm(site, repository, found, wanted, options, progress)
        elif new_disk:
            result = placing.new_disks(site, repository, found, options, progress)
        else:
            result = placing.in_place(site, repository, found, options, progress)
    _report(settings, result)


def _way(ways: dict[str, object]) -> str:
    """Return the one way that is given."""
    given = [name for name, value in ways.items() if value]
    if len(given) != 1:
        raise click.UsageError("Give one of --to, --new-vm, --new-disk and --in-place.")
    return given[0]


def _check(way: str, options: dict[str, object]) -> None:
    """Refuse options that belong to other ways: who gives them expects something of them."""
    for name, value in options.items():
        if value and way not in _WAYS_OF[name]:
            raise click.UsageError(f"{name} does not go with {way}, but with {', '.join(_WAYS_OF[name])}.")


def _ladder(site: Site, transports: tuple[TransportName, ...], no_fallback: bool) -> tuple[TransportName, ...]:
    if no_fallback and not transports:
        raise click.UsageError("--no-fallback needs --transport: it leaves out the transports that are not named.")
    for name in transports:
        # What is asked for by name is not left out in silence when it cannot write.
        site.uploads([name])
    fallback = () if no_fallback else site.config.backup.ladder
    return tuple(dict.fromkeys((*transports, *fallback)))


def _to_images(
    settings: Settings,
    vm: str,
    point: str,
    directory: Path,
    image_format: Format,
    disks: tuple[str, ...],
    force: bool,
    skip_damaged: bool,
) -> None:
    repository = settings.site().repository()
    found = catalog.point(repository, vm, point)
    with settings.progress() as progress:
        images = images_job.run(repository, found, directory, image_format, disks, force, skip_damaged, progress)
    if settings.machine:
        output.as_json(images)
    else:
        for image in images:
            output.line(f"{image.path}  {output.size(image.size)}, {output.size(image.data)} of data")
            _list_gaps(image.alias, image.gaps)
    _fail_for_gaps([gap for image in images for gap in image.gaps])


def _to_stdout(
    settings: Settings,
    vm: str,
    point: str,
    image_format: Format | None,
    disks: tuple[str, ...],
    skip_damaged: bool,
) -> None:
    if image_format == "qcow2":
        raise click.UsageError("Standard output is written from its beginning to its end, which qcow2 is not made for.")
    if sys.stdout.isatty():
        raise click.UsageError("Standard output is a terminal: send it to a file or a program (restore … --to - | …).")
    if settings.machine:
        raise click.UsageError("--json does not go with --to -: standard output is the disk.")
    repository = settings.site().repository()
    found = catalog.point(repository, vm, point)
    with settings.progress() as progress:
        image = images_job.stream(repository, found, sys.stdout.buffer, disks, skip_damaged, progress)
    for gap in image.gaps:
        output.note(gap.told_of(image.alias))
    _fail_for_gaps(image.gaps)


def _report(settings: Settings, result: placing.Result) -> None:
    """Say what was made or written, and how."""
    if settings.machine:
        output.as_json(result)
    else:
        if result.vm_id is not None:
            output.line(f"VM {result.vm_name} ({result.vm_id}){' starts' if result.started else ''}")
        output.table(
            ("DISK", "ID", "SIZE", "COMPARED", "DATA WRITTEN", "ZEROED", "SECONDS", "THROUGH"),
            (
                (
                    disk.alias,
                    disk.disk_id,
                    output.size(disk.size),
                    output.size(disk.compared) if disk.compared else "",
                    output.size(disk.data),
                    output.size(disk.zeros),
                    f"{disk.seconds:.1f}",
                    ", ".join(dict.fromkeys(carrier.transport for carrier in disk.carriers)),
                )
                for disk in result.disks
            ),
            right=("SIZE", "COMPARED", "DATA WRITTEN", "ZEROED", "SECONDS"),
        )
        for disk in result.disks:
            _list_gaps(disk.alias, disk.gaps)
    _fail_for_gaps([gap for disk in result.disks for gap in disk.gaps])


def _list_gaps(alias: str, gaps: Sequence[Gap]) -> None:
    for gap in gaps:
        output.line(gap.told_of(alias))


def _fail_for_gaps(gaps: Sequence[Gap]) -> None:
    """A restore with holes in it must not look like a good one to a script."""
    if gaps:
        output.failed(
            errors.Damaged(
                f"{output.count(len(gaps), 'range')} could not be read in the repository: there are zeros now.",
                "An older or a newer recovery point may have them: see `blockferry list` and `blockferry verify`.",
            )
        )
