"""Deleting points, having them back, and keeping them by a policy."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NoReturn

import msgspec

from blockferry import errors
from blockferry.jobs import catalog
from blockferry.jobs.progress import Progress
from blockferry.repository import Collected, Manifest, Policy, Repository, Times, Trashed, Unreadable, retention

_log = logging.getLogger(__name__)

_PAUSE = 3.0
"""Seconds between two lines of progress, at least."""


class Verdict(msgspec.Struct, frozen=True):
    """What a policy says of a point. reasons: why it is kept; none when it is deleted."""

    vm_id: str
    vm_name: str
    point_id: str
    created: datetime
    reasons: tuple[str, ...]

    @property
    def keep(self) -> bool:
        """Whether the point stays."""
        return bool(self.reasons)


def prune(
    repository: Repository, vms: Sequence[str], tag: str | None, policy: Policy, dry_run: bool
) -> Iterator[Verdict]:
    """
    Apply a policy to each VM's points, and generate the verdicts, a VM's newest point first. Each point is in the trash
    when its verdict comes, unless `dry_run`.

    vms: names or ids; all, when there are none.  tag: only points that have it are looked at, and counted.

    Raises ConfigError for a policy that would keep nothing, before anything is deleted; NotFound, RepositoryError.
    """
    policy.check()
    groups = list(_by_vm(repository, vms, tag))
    pinned = repository.pinned()
    for points in groups:
        own = {point_id for vm_id, point_id in pinned if vm_id == points[0].vm.id}
        for point, reasons in retention.decide(points, policy, own):
            if not reasons and not dry_run:
                repository.delete(point)
            yield Verdict(point.vm.id, points[0].vm.name, point.id, point.created, reasons)


def deletable(repository: Repository, vm: str, names: Sequence[str]) -> list[Manifest]:
    """Return the points that `names` mean. Raises Conflict when one is pinned, and what `catalog.point` raises."""
    found = catalog.named(repository, vm, names)
    pinned = repository.pinned()
    kept = " ".join(point.id for point in found if (point.vm.id, point.id) in pinned)
    if kept:
        raise errors.Conflict(
            f"Nothing was deleted, because these recovery points of VM {vm} are pinned: {kept}.",
            f"Run `blockferry unpin {vm} {kept}` first.",
        )
    return found


def trashed(repository: Repository, vm: str, names: Sequence[str]) -> list[Manifest]:
    """
    Return the points in the trash that are meant, each once. vm: name or id.  names: ids, or their first characters.

    Raises NotFound, Ambiguous.
    """
    own = [each.point for each in repository.trash(_warn) if vm in (each.point.vm.id, each.point.vm.name)]
    found = [_trashed(own, vm, name) for name in names]
    return list({point.id: point for point in found}.values())


def _trashed(own: Sequence[Manifest], vm: str, name: str) -> Manifest:
    found = [point for point in own if point.id.startswith(name)]
    if not found:
        raise errors.NotFound(f"The trash has no recovery point {name} of VM {vm}.", "See `blockferry trash`.")
    if len(found) > 1:
        raise errors.Ambiguous(
            f"{len(found)} recovery points of VM {vm} in the trash begin with {name}.", "Write more."
        )
    return found[0]


def trash(repository: Repository) -> list[Trashed]:
    """Return the points in the trash, last deleted first; warn of those that cannot be read. Raises RepositoryError."""
    return repository.trash(_warn)


def _warn(lost: Unreadable) -> None:
    _log.warning("%s It leaves the trash in its time anyway.", lost.reason)


def unreadable(repository: Repository, vm_id: str, point_ids: Sequence[str]) -> list[Unreadable]:
    """Return the points whose manifests cannot be read, also in the trash. Raises NotFound, RepositoryError."""
    lost: list[Unreadable] = []
    repository.points(unreadable=lost.append)
    repository.trash(unreadable=lost.append)
    own = {each.point_id: each for each in lost if each.vm_id == vm_id}
    return [own[point_id] if point_id in own else _readable(vm_id, point_id) for point_id in dict.fromkeys(point_ids)]


def _readable(vm_id: str, point_id: str) -> NoReturn:
    raise errors.NotFound(
        f"There is no recovery point {point_id} of VM {vm_id} whose manifest cannot be read.",
        "Write both ids in full, as `blockferry verify` names them.",
    )


def collect(repository: Repository, times: Times, progress: Progress) -> Collected:
    """Remove what nobody needs. Raises Conflict when another collection runs, RepositoryError."""
    said = float("-inf")

    def say(doing: str) -> None:
        nonlocal said
        if time.monotonic() - said >= _PAUSE:
            said = time.monotonic()
            progress.step(doing)

    return repository.collect(times, say)


def _by_vm(repository: Repository, vms: Sequence[str], tag: str | None) -> Iterator[list[Manifest]]:
    """Generate the points of each VM, newest first."""
    if vms:
        found = [point for vm in dict.fromkeys(vms) for point in catalog.points(repository, vm)]
    else:
        found = catalog.points(repository, None)
    groups: dict[str, dict[str, Manifest]] = {}
    for point in found:
        if tag is None or tag in point.tags:
            groups.setdefault(point.vm.id, {})[point.id] = point
    for group in groups.values():
        yield sorted(group.values(), key=lambda point: (point.created, point.id), reverse=True)
