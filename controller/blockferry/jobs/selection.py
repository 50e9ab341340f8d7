"""Which disks the operator means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from blockferry import errors


class Named(Protocol):
    """A disk, in the engine or in a recovery point."""

    @property
    def id(self) -> str: ...

    @property
    def alias(self) -> str: ...


Disk = TypeVar("Disk", bound=Named)


def disks(candidates: Sequence[Disk], wanted: Sequence[str], of: str) -> list[Disk]:
    """
    Return the candidates whose id or alias is wanted, all of them when nothing is; `of` names their owner in errors.

    Raises NotFound, Ambiguous.
    """
    if not wanted:
        return list(candidates)
    chosen: list[Disk] = []
    for name in wanted:
        found = [disk for disk in candidates if name in (disk.id, disk.alias)]
        if not found:
            known = ", ".join(disk.alias for disk in candidates)
            raise errors.NotFound(f"{of} has no disk {name}.", f"It has: {known}.")
        if len(found) > 1:
            raise errors.Ambiguous(f"{of} has {len(found)} disks called {name}.", "Name the disk by its id.")
        if found[0] not in chosen:
            chosen.append(found[0])
    return chosen
