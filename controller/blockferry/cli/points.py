"""`blockferry list`, `show` and `verify`: what is known of recovery points."""

from __future__ import annotations

import re

import click

from blockferry import errors
from blockferry.cli import drill as drill_cli
from blockferry.cli import output
from blockferry.cli.drill import drill_options
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import catalog, drift
from blockferry.jobs import verify as verify_job
from blockferry.repository import Manifest, Verification

POINT_HELP = "POINT is a recovery point's id, the first characters of one, or `latest`."


class _Share(click.ParamType[float]):
    """A part of the whole, written as 5 or 5%; in (0, 1)."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the part."""
        found = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]{1,3})?)%?", str(value))
        if found is None or float(found[1]) == 0:
            self.fail(f"{value!r} is not a share such as 5%, above 0 and below 100; all is read without --share.")
        return float(found[1]) / 100


_SHARE = _Share()


@click.command("list")
@click.argument("vm", required=False)
@common_options
def list_points(settings: Settings, vm: str | None) -> None:
    """List the recovery points in the repository, newest first; those of VM (name or id) when it is given."""
    repository = settings.site().repository()
    points = catalog.points(repository, vm)
    pinned = repository.pinned()
    if settings.machine:
        output.as_json([{**output.fields(point), "pinned": (point.vm.id, point.id) in pinned} for point in points])
    else:
        output.points(points, pinned)


@click.command(epilog=POINT_HELP)
@click.argument("vm")
@click.argument("point", default="latest")
@common_options
def show(settings: Settings, vm: str, point: str) -> None:
    """Show one recovery point of VM: its disks, how they were read, and what that moved and stored."""
    repository = settings.site().repository()
    found = catalog.point(repository, vm, point)
    pinned = (found.vm.id, found.id) in repository.pinned()
    if settings.machine:
        output.as_json({**output.fields(found), "pinned": pinned})
    else:
        output.point(found, pinned)


@click.command(epilog=POINT_HELP + " Without VM, all recovery points are verified.")
@click.argument("vm", required=False)
@click.argument("point", required=False)
@click.option(
    "--live",
    is_flag=True,
    help="Compare POINT (default: latest) with the VM's disks, on the host: what differs there, and has not changed?",
)
@click.option("--quick", is_flag=True, help="Read nothing but indexes: see that all chunks are there.")
@click.option(
    "--share",
    type=_SHARE,
    metavar="N%",
    help="Read this much of the content, and see that all the rest is there: what was never read comes first, the "
    "newest of it before the older; so all is read in some runs. For all VMs together.",
)
@drill_options
@common_options
def verify(
    settings: Settings,
    vm: str | None,
    point: str | None,
    live: bool,
    quick: bool,
    share: float | None,
    drill: drill_cli.Options | None,
) -> None:
    """
    Read every chunk of recovery points and check it against its name.

    Names each damaged or missing chunk, and every recovery point that it hurts. Exit code 9 when there is damage. The
    chunk is marked: the next backup of a VM stores anew what its disks still hold of it.

    With --live the VM's disks are hashed where they are, and what has not changed since the point must be as it was.
    Needs an agent, and the point's checkpoint in the engine.

    With --boot nothing is read beforehand: the point is served to an isolated QEMU, and is good when it gives the signs
    of life that are asked for. Exit code 11 when they do not come.
    """
    if sum((live, quick, share is not None, drill is not None)) > 1:
        raise click.UsageError("--live, --quick, --share and --boot do not go together.")
    if share is not None and vm is not None:
        raise click.UsageError("--share is for all VMs together: chunks belong to many of them.")
    repository = settings.site().repository()
    if live:
        if vm is None:
            raise click.UsageError("--live needs VM.")
        _look_at_the_vm(settings, catalog.point(repository, vm, point or catalog.LATEST))
        return
    if drill is not None:
        if vm is None:
            raise click.UsageError("--boot needs VM.")
        drill_cli.boot(settings, catalog.point(repository, vm, point or catalog.LATEST), drill)
        return
    if vm is None:
        points = catalog.points(repository, None)
    elif point is None:
        points = catalog.points(repository, vm)
    else:
        points = [catalog.point(repository, vm, point)]
    with settings.progress() as progress:
        part = 0.0 if quick else 1.0 if share is None else share
        result = verify_job.run(repository, points, None if vm is None else points[0].vm.id, progress, part)
    if settings.machine:
        output.as_json(result)
    else:
        output.verification(result)
    bad = len(result.damage) + len(result.unreadable)
    if bad:
        output.failed(
            errors.Damaged(
                f"{output.count(bad, 'stored object')} {'is' if bad == 1 else 'are'} damaged or missing.",
                _way_out(result),
            )
        )


def _way_out(found: Verification) -> str:
    """Return what can be done about damage. What to do about manifests is said with each."""
    steps = []
    if any(damage.is_chunk for damage in found.damage):
        steps.append(
            "Back the VMs up: what their disks still hold is stored anew, for all points; `backup --fresh` reads them "
            "whole. Points that stay damaged can be deleted, or restored with `--skip-damaged`."
        )
    if any(not damage.is_chunk for damage in found.damage):
        steps.append(
            "No backup mends an .index or .ovf: put copies of these files back, or delete the points that need them."
        )
    return " ".join(steps)


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
                else f"{output.count(len(disk.drift), 'range')} with other content, although no change was recorded:"
            )
            output.line(f"{disk.alias}: {said}")
            for place in disk.drift:
                output.line(f"    {place.length} bytes at {place.start}")
    if found.total:
        output.failed(
            errors.Damaged(
                f"{output.size(found.total)} of VM {found.vm_name} are not what recovery point {found.point_id} has.",
                f"Run `blockferry backup {found.vm_name} --full`, which reads everything and stores what differs; and "
                "look for what wrote to the disks past the VM, or for storage that fails.",
            )
        )
