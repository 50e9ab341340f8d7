"""What the repository holds: the recovery points that an operator means by what he types."""

from __future__ import annotations

import logging
from typing import Literal

from blockferry import errors
from blockferry.repository import Manifest, Repository, Unreadable

LATEST = "latest"

_log = logging.getLogger(__name__)


def points(repository: Repository, vm: str | None) -> list[Manifest]:
    """
    Return recovery points, newest first: those of the VM with that name or id, or all.

    Raises NotFound when there are none of that VM, Ambiguous when several VMs had that name.
    """
    found = repository.points(unreadable=_warn)
    if vm is None:
        return found
    own = [point for point in found if vm in (point.vm.id, point.vm.name)]
    if not own:
        raise errors.NotFound(f"The repository has no recovery point of VM {vm}.", "See `blockferry list`.")
    ids = sorted({point.vm.id for point in own})
    if len(ids) > 1:
        raise errors.Ambiguous(f"Several VMs were called {vm}: {', '.join(ids)}.", "Name the VM by its id.")
    return own


def point(repository: Repository, vm: str, name: str) -> Manifest:
    """
    Return the recovery point of a VM that `name` means: an id, the first characters of one, or "latest".

    Raises NotFound, Ambiguous.
    """
    own = points(repository, vm)
    if name == LATEST:
        return own[0]
    found = [candidate for candidate in own if candidate.id.startswith(name)]
    if not found:
        raise errors.NotFound(f"VM {vm} has no recovery point {name}.", f"See `blockferry list {vm}`.")
    if len(found) > 1:
        raise errors.Ambiguous(f"{len(found)} recovery points of VM {vm} begin with {name}.", "Write more of the id.")
    return found[0]


def init(url: str, window: int, compression: Literal["zstd", "none"]) -> Repository:
    """Make an empty repository. window: bytes. Raises Conflict when there is one, RepositoryError."""
    return Repository.init(url, window, compression)


def _warn(unreadable: Unreadable) -> None:
    _log.warning("A recovery point cannot be read: %s", unreadable.reason)
