"""`blockferry list`, `show`, `restore` and `verify`: what is done with recovery points."""

from __future__ import annotations

from pathlib import Path

import click

from blockferry import errors
from blockferry.cli import output
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import catalog
from blockferry.jobs import restore as restore_job
from blockferry.jobs import verify as verify_job
from blockferry.jobs.images import Format

POINT_HELP = "POINT is a recovery point's id, the first characters of one, or `latest`."


@click.command("list")
@click.argument("vm", required=False)
@common_options
def list_points(settings: Settings, vm: str | None) -> None:
    """List the recovery points in the repository, newest first; those of VM (name or id) when it is given."""
    points = catalog.points(settings.site().repository(), vm)
    if settings.machine:
        output.as_json(points)
    else:
        output.points(points)


@click.command(epilog=POINT_HELP)
@click.argument("vm")
@click.argument("point", default="latest")
@common_options
def show(settings: Settings, vm: str, point: str) -> None:
    """Show one recovery point of VM: its disks, how they were read, and what that moved and stored."""
    found = catalog.point(settings.site().repository(), vm, point)
    if settings.machine:
        output.as_json(found)
    else:
        output.point(found)


@click.command(epilog=POINT_HELP)
@click.argument("vm")
@click.argument("point", default="latest")
@click.option(
    "--to",
    "directory",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the images; made when it is missing. One file for each disk: DISK-ALIAS.raw or .qcow2.",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["raw", "qcow2"]),
    default="raw",
    show_default=True,
    help="Format of the images. raw is sparse; qcow2 needs qemu-img and qemu-nbd on this machine.",
)
@click.option(
    "--disk", "disks", multiple=True, metavar="DISK", help="Restore only this disk (id or alias); repeatable."
)
@click.option("--force", is_flag=True, help="Replace images that are there already.")
@common_options
def restore(
    settings: Settings,
    vm: str,
    point: str,
    directory: Path,
    image_format: Format,
    disks: tuple[str, ...],
    force: bool,
) -> None:
    """
    Restore the disks of a recovery point of VM (name or id) to image files.

    Every chunk is checked before it is written. An image appears under its name when it is complete; until then it is
    called .NAME.partial.
    """
    repository = settings.site().repository()
    found = catalog.point(repository, vm, point)
    with settings.progress() as progress:
        images = restore_job.run(repository, found, directory, image_format, disks, force, progress)
    if settings.machine:
        output.as_json(images)
    else:
        for image in images:
            output.line(f"{image.path}  {output.size(image.size)}, {output.size(image.data)} of data")


@click.command(epilog=POINT_HELP + " Without VM, all recovery points are verified.")
@click.argument("vm", required=False)
@click.argument("point", required=False)
@common_options
def verify(settings: Settings, vm: str | None, point: str | None) -> None:
    """
    Read every chunk of recovery points and check it against its name.

    Names each damaged or missing chunk, and every recovery point that it hurts. Exit code 9 when there is damage.
    """
    repository = settings.site().repository()
    if vm is None:
        points = catalog.points(repository, None)
    elif point is None:
        points = catalog.points(repository, vm)
    else:
        points = [catalog.point(repository, vm, point)]
    with settings.progress() as progress:
        result = verify_job.run(repository, points, None if vm is None else points[0].vm.id, progress)
    if settings.machine:
        output.as_json(result)
    else:
        output.verification(result)
    bad = len(result.damage) + len(result.unreadable)
    if bad:
        output.failed(
            errors.Damaged(
                f"{bad} stored objects are damaged or missing.",
                "Run `blockferry backup VM --fresh`: what the disks still hold is stored again, for all points.",
            )
        )
