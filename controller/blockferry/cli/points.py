"""`blockferry list`, `show` and `verify`: what is known of recovery points."""

from __future__ import annotations

import click

from blockferry import errors
from blockferry.cli import output
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import catalog, drift, drill
from blockferry.jobs import verify as verify_job
from blockferry.repository import Manifest
from blockferry_agent.units import MiB

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
@click.option(
    "--live",
    is_flag=True,
    help="Compare POINT (default: latest) with the VM's disks, on the host: what differs there, and has not changed?",
)
@click.option("--boot", is_flag=True, help="Boot POINT (default: latest) of VM in QEMU here, without network.")
@click.option("--expect", metavar="TEXT", help="With --boot: the sign of life, a text on the serial console.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=300, show_default=True, metavar="SECONDS", help="With --boot."
)
@click.option(
    "--memory", type=click.IntRange(min=64), default=1024, show_default=True, metavar="MIB", help="With --boot."
)
@common_options
def verify(
    settings: Settings,
    vm: str | None,
    point: str | None,
    live: bool,
    boot: bool,
    expect: str | None,
    timeout: float,
    memory: int,
) -> None:
    """
    Read every chunk of recovery points and check it against its name.

    Names each damaged or missing chunk, and every recovery point that it hurts. Exit code 9 when there is damage.

    With --live the VM's disks are hashed where they are, and what has not changed since the point must be as it was.
    Needs an agent, and the point's checkpoint in the engine.

    With --boot nothing is read beforehand: the point is served to an isolated QEMU, and is good when the text comes.
    Exit code 11 when it does not come.
    """
    if boot != (expect is not None) or (boot and vm is None):
        raise click.UsageError("--boot needs VM and --expect, and --expect belongs to --boot.")
    repository = settings.site().repository()
    if live:
        if vm is None or boot:
            raise click.UsageError("--live needs VM, and does not go with --boot.")
        _look_at_the_vm(settings, catalog.point(repository, vm, point or catalog.LATEST))
        return
    if vm is not None and expect is not None:
        _boot(settings, catalog.point(repository, vm, point or catalog.LATEST), expect, timeout, memory)
        return
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


def _look_at_the_vm(settings: Settings, point: Manifest) -> None:
    site = settings.site()
    with settings.progress() as progress:
        found = drift.run(site, site.repository(), point, site.config.backup.mode, progress)
    if settings.machine:
        output.as_json(found)
    else:
        for disk in found.disks:
            said = disk.skipped or (
                f"{output.size(disk.compared)} are as they were; {output.size(disk.changed)} have changed since."
                if not disk.drift
                else f"{len(disk.drift)} ranges differ, and have not changed:"
            )
            output.line(f"{disk.alias}: {said}")
            for place in disk.drift:
                output.line(f"    {place.length} bytes at {place.start}")
    if found.total:
        output.failed(
            errors.Damaged(
                f"{output.size(found.total)} of VM {found.vm_name} are not what recovery point {found.point_id} has.",
                "Run `blockferry backup VM --full`, which reads everything and stores what differs; and look for what "
                "wrote to the disks past the VM, or for storage that fails.",
            )
        )


def _boot(settings: Settings, point: Manifest, expect: str, timeout: float, memory: int) -> None:
    with settings.progress() as progress:
        result = drill.run(settings.site().repository(), point, [], expect, timeout, memory * MiB, progress)
    if settings.machine:
        output.as_json(result)
    elif result.alive:
        output.line(f"Recovery point {point.id} of VM {point.vm.name} lives, after {result.seconds:.1f} s.")
    if not result.alive:
        for said in result.console:
            output.note(said)
        output.failed(
            errors.RestoreError(
                f"Recovery point {point.id} did not say '{expect}' within {result.seconds:.0f} s.",
                "See above what it said last; give it more --timeout or --memory, or try an older point.",
            )
        )
