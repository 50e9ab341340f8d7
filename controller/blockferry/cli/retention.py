"""`blockferry prune`, `delete`, `undelete`, `trash`, `pin`, `unpin` and `collect`: which points stay, how long."""

from __future__ import annotations

import re
from datetime import timedelta

import click

from blockferry import errors
from blockferry.cli import output
from blockferry.cli.points import POINT_HELP
from blockferry.cli.settings import Settings, common_options
from blockferry.jobs import catalog
from blockferry.jobs import retention as job
from blockferry.repository import Policy, Times

_COUNT = click.IntRange(min=0)
_UNITS = {
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "m": timedelta(days=30),
    "y": timedelta(days=365),
}


class _Span(click.ParamType[timedelta]):
    """A time such as 36h, 7d, 4w, 6m (of 30 days) or 1y; 0 for none."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time that is written."""
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"([0-9]{1,5})([hdwmy])", str(value))
        if found is None and value != "0":
            self.fail(f"{value!r} is not a time such as 36h, 7d, 4w, 6m or 1y.", param, ctx)
        return timedelta() if found is None else int(found[1]) * _UNITS[found[2]]


_SPAN = _Span()


@click.command(epilog=POINT_HELP)
@click.argument("vm")
@click.argument("point", nargs=-1, required=True)
@click.option(
    "--unreadable",
    is_flag=True,
    help="Points whose manifests cannot be read; VM and POINT are ids in full. They are gone for good.",
)
@common_options
def delete(settings: Settings, vm: str, point: tuple[str, ...], unreadable: bool) -> None:
    """
    Delete recovery points of VM. They stay in the trash, and can be had back by `undelete`, until `collect` empties it.

    No other point needs them: each is complete by itself.
    """
    repository = settings.site().repository()
    said = _Said(settings)
    if unreadable:
        for lost in job.unreadable(repository, vm, point):
            repository.forget(lost)
            said.add(lost.vm_id, None, lost.point_id, "gone", "is gone for good")
    else:
        for found in job.deletable(repository, vm, point):
            repository.delete(found)
            said.add(found.vm.id, found.vm.name, found.id, "deleted", "is deleted, and in the trash for now")
    said.end()


@click.command()
@click.argument("vm")
@click.argument("point", nargs=-1, required=True)
@common_options
def undelete(settings: Settings, vm: str, point: tuple[str, ...]) -> None:
    """Bring recovery points of VM back from the trash. POINT is an id, or the first characters of one."""
    repository = settings.site().repository()
    said = _Said(settings)
    for found in job.trashed(repository, vm, point):
        repository.undelete(found.vm.id, found.id)
        said.add(found.vm.id, found.vm.name, found.id, "undeleted", "is back")
    said.end()


@click.command()
@common_options
def trash(settings: Settings) -> None:
    """List the recovery points that were deleted, and can be had back."""
    found = job.trash(settings.site().repository())
    if settings.machine:
        output.as_json(
            [
                {"vm_id": vm.id, "vm_name": vm.name, "point_id": point.id, "created": point.created, "deleted": deleted}
                for (point, deleted), vm in ((each, each.point.vm) for each in found)
            ]
        )
        return
    output.table(
        ("VM", "POINT", "CREATED (UTC)", "DELETED (UTC)"),
        (
            (point.vm.name, point.id, f"{point.created:%Y-%m-%d %H:%M:%S}", f"{deleted:%Y-%m-%d %H:%M:%S}")
            for point, deleted in found
        ),
    )


@click.command(epilog=POINT_HELP)
@click.argument("vm")
@click.argument("point", nargs=-1, required=True)
@common_options
def pin(settings: Settings, vm: str, point: tuple[str, ...]) -> None:
    """Keep recovery points of VM: neither `prune` nor `delete` takes them away, until `unpin`."""
    repository = settings.site().repository()
    said = _Said(settings)
    for found in catalog.named(repository, vm, point):
        repository.pin(found)
        said.add(found.vm.id, found.vm.name, found.id, "pinned", "is pinned")
    said.end()


@click.command(epilog=POINT_HELP)
@click.argument("vm")
@click.argument("point", nargs=-1, required=True)
@common_options
def unpin(settings: Settings, vm: str, point: tuple[str, ...]) -> None:
    """Let recovery points of VM be pruned and deleted again."""
    repository = settings.site().repository()
    said = _Said(settings)
    for found in catalog.named(repository, vm, point):
        repository.unpin(found)
        said.add(found.vm.id, found.vm.name, found.id, "unpinned", "is not pinned any more")
    said.end()


@click.command(
    epilog="Times are written as 36h, 7d, 4w, 6m (of 30 days) or 1y. Hours, days and so on are those of UTC."
)
@click.argument("vm", nargs=-1)
@click.option("--tag", help="Look only at points that were backed up with this tag.")
@click.option("--keep-last", type=_COUNT, default=0, metavar="N", help="The N newest.")
@click.option("--keep-hourly", type=_COUNT, default=0, metavar="N", help="The newest of each of the last N hours.")
@click.option("--keep-daily", type=_COUNT, default=0, metavar="N", help="The newest of each of the last N days.")
@click.option("--keep-weekly", type=_COUNT, default=0, metavar="N", help="The newest of each of the last N weeks.")
@click.option("--keep-monthly", type=_COUNT, default=0, metavar="N", help="The newest of each of the last N months.")
@click.option("--keep-yearly", type=_COUNT, default=0, metavar="N", help="The newest of each of the last N years.")
@click.option("--keep-within", type=_SPAN, default=timedelta(), metavar="TIME", help="All, so long before the newest.")
@click.option("-n", "--dry-run", is_flag=True, help="Delete nothing; say what would be, and why.")
@common_options
def prune(
    settings: Settings,
    vm: tuple[str, ...],
    tag: str | None,
    keep_last: int,
    keep_hourly: int,
    keep_daily: int,
    keep_weekly: int,
    keep_monthly: int,
    keep_yearly: int,
    keep_within: timedelta,
    dry_run: bool,
) -> None:
    """
    Delete the recovery points of all VMs, or of each VM named, that no --keep rule keeps.

    Only hours, days and so on that have a point count. Pinned points and each VM's newest one always stay. Deleted ones
    are in the trash first. Room is made by `collect`.
    """
    policy = Policy(keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly, keep_within)
    if not any(policy):
        raise click.UsageError(
            "This policy would keep nothing. Say what to keep, such as --keep-last 7 --keep-weekly 4; "
            "single points are deleted by `delete`."
        )
    verdicts = list(job.prune(settings.site().repository(), vm, tag, policy, dry_run))
    if settings.machine:
        output.as_json([{"keep": verdict.keep, **output.fields(verdict)} for verdict in verdicts])
        return
    output.table(
        ("VM", "POINT", "CREATED (UTC)", "", "WHY"),
        (
            (
                verdict.vm_name,
                verdict.point_id,
                f"{verdict.created:%Y-%m-%d %H:%M:%S}",
                "keep" if verdict.keep else "delete",
                ", ".join(verdict.reasons) or "no rule keeps it",
            )
            for verdict in verdicts
        ),
    )
    gone = sum(not verdict.keep for verdict in verdicts)
    output.line(
        f"{gone} of {output.count(len(verdicts), 'recovery point')} {'would be' if dry_run else 'are now'} deleted."
    )


@click.command(epilog="Times are written as 36h, 7d, 4w, 6m (of 30 days) or 1y; 0 for at once.")
@click.option(
    "--trash",
    "trash_time",
    type=_SPAN,
    default="7d",
    show_default=True,
    help="How long deleted points can be had back.",
)
@click.option(
    "--young",
    type=_SPAN,
    default="1d",
    show_default=True,
    help="What is younger stays: a backup that was broken off uses it when it is run again.",
)
@common_options
def collect(settings: Settings, trash_time: timedelta, young: timedelta) -> None:
    """
    Empty the trash of what is old, and remove what no recovery point needs. Backups and restores go on meanwhile.

    Says what was freed, and what could not be freed yet and why. Exit code 6 when something hindered it.
    """
    with settings.progress() as progress:
        done = job.collect(settings.site().repository(), Times(trash_time, young), progress)
    if settings.machine:
        output.as_json(done)
    else:
        output.line(f"Freed: {output.size(done.freed.length)} in {output.count(done.freed.objects, 'object')}.")
        if done.points:
            output.line(f"Gone for good: {output.count(done.points, 'deleted recovery point')}.")
        if done.trash:
            deleted = output.count(done.trash, "deleted recovery point")
            output.line(
                f"In the trash for now (--trash, or what runs may read it), with all that is needed: {deleted}."
            )
        for amount, why in (
            (done.young, "Not needed yet or any more, but young (--young), or a running backup's"),
            (done.rescued, "Found and used by a running backup"),
            (done.left, "Left"),
        ):
            if amount.objects:
                output.line(f"{why}: {output.size(amount.length)} in {output.count(amount.objects, 'object')}.")
    if done.hindrance is not None:
        output.failed(errors.Conflict(done.hindrance))


class _Said:
    """What became of points: a sentence for each as soon as it is so, or one document for all at the end."""

    def __init__(self, settings: Settings) -> None:
        self._machine = settings.machine
        self._rows: list[dict[str, str | None]] = []

    def add(self, vm_id: str, vm_name: str | None, point_id: str, state: str, sentence: str) -> None:
        """Say what became of a point. vm_name: None if unknown.  state: `sentence` in a word, for machines."""
        self._rows.append({"vm_id": vm_id, "vm_name": vm_name, "point_id": point_id, "state": state})
        if not self._machine:
            output.line(f"Recovery point {point_id} of VM {vm_name or vm_id} {sentence}.")

    def end(self) -> None:
        """Print the document."""
        if self._machine:
            output.as_json(self._rows)
