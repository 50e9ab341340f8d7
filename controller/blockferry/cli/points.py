"""`blockferry list`, `show` and `verify`: what is known of recovery points."""

from __future__ import annotations

import click

from blockferry import errors
from blockferry.cli import output
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import catalog
from blockferry.jobs import verify as verify_job

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
