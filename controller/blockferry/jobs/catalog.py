"""What the repository holds: the recovery points that an operator means by what he types."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from blockferry import errors
from blockferry.repository import Manifest, Repository, Unreadable

LATEST = "latest"

_log = logging.getLogger(__name__)


def points(repository: Repository, vm: str | None) -> list[Manifest]:
    """
    Return recovery points, newest first: those of the VM with that name or id, or all. Warns of those it cannot read.

    A VM that was renamed is found by each name it had, with all of its points.

    Raises NotFound when there are none of that VM, Damaged when none of them can be read, Ambiguous when several VMs
    have that name.
    """
    return _points(repository, vm)[0]


def point(repository: Repository, vm: str, name: str) -> Manifest:
    """
    Return the recovery point of a VM that `name` means: an id, the first characters of one, or "latest".

    Raises NotFound, Ambiguous, and Damaged when that one, or the latest, cannot be read.
    """
    return named(repository, vm, [name])[0]


def named(repository: Repository, vm: str, names: Sequence[str]) -> list[Manifest]:
    """Return the recovery points of a VM that `names` mean, each once, in that order. Raises as `point` does."""
    own, unreadable = _points(repository, vm)
    found = [_point(own, unreadable, vm, name) for name in names]
    return list({point.id: point for point in found}.values())


def _point(own: Sequence[Manifest], unreadable: Sequence[Unreadable], vm: str, name: str) -> Manifest:
    if name == LATEST:
        newer = [lost for lost in unreadable if lost.vm_id == own[0].vm.id and lost.point_id > own[0].id]
        if newer:
            raise errors.Damaged(
                f"The latest recovery point of VM {vm}, {newer[0].point_id}, cannot be read.",
                f"Name an older one, such as {own[0].id}.",
            )
        return own[0]
    found = [candidate for candidate in own if candidate.id.startswith(name)]
    if not found:
        for lost in unreadable:
            if lost.vm_id == own[0].vm.id and lost.point_id.startswith(name):
                raise errors.Damaged(lost.reason)
        raise errors.NotFound(f"VM {vm} has no recovery point {name}.", f"See `blockferry list {vm}`.")
    if len(found) > 1:
        raise errors.Ambiguous(f"{len(found)} recovery points of VM {vm} begin with {name}.", "Write more of the id.")
    return found[0]


def _points(repository: Repository, vm: str | None) -> tuple[list[Manifest], list[Unreadable]]:
    unreadable: list[Unreadable] = []
    found = repository.points(unreadable=unreadable.append)
    for lost in unreadable:
        _log.warning("%s", lost.reason)
    if vm is None:
        return found, unreadable
    if any(lost.vm_id == vm for lost in unreadable) and not any(point.vm.id == vm for point in found):
        raise errors.Damaged(f"No recovery point of VM {vm} can be read.", "The warnings above say what can be done.")
    vm_id = _vm_id(found, vm)
    return [point for point in found if point.vm.id == vm_id], unreadable


def _vm_id(found: Sequence[Manifest], vm: str) -> str:
    """Return the id of the VM that is called `vm` in its newest point, or was once. Raises NotFound, Ambiguous."""
    newest: dict[str, Manifest] = {}
    for point in found:
        newest.setdefault(point.vm.id, point)
    called_now = {point.vm.id for point in newest.values() if vm in (point.vm.id, point.vm.name)}
    ids = called_now or {point.vm.id for point in found if point.vm.name == vm}
    if not ids:
        raise errors.NotFound(f"The repository has no recovery point of VM {vm}.", "See `blockferry list`.")
    if len(ids) > 1:
        raise errors.Ambiguous(f"Several VMs are called {vm}: {', '.join(sorted(ids))}.", "Name the VM by its id.")
    return ids.pop()
