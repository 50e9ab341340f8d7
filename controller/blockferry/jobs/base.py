"""What a new recovery point builds on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from blockferry.repository import Manifest


class Base(NamedTuple):
    """
    point: whose index the new one is laid over, and whose digests spare moving what is there; None for the first.
    checkpoint_id: the engine's checkpoint of exactly that point, from which changes are known; None: read everything.
    """

    point: Manifest | None
    checkpoint_id: str | None


NOTHING = Base(None, None)


def choose(points: Sequence[Manifest], checkpoint_ids: Collection[str], disk_ids: Collection[str]) -> Base:
    """
    Return the best base for a backup of some disks.

    points: committed ones of the VM, newest first.  checkpoint_ids: those of the VM that the engine can use.

    That is the newest point whose checkpoint the engine still has; one that holds all of the disks comes before one
    that does not (a disk that is not in the base is read whole). Without any, the newest point serves for its digests.
    """
    usable = [point for point in points if point.checkpoint_id in checkpoint_ids]
    wanted = set(disk_ids)
    complete = [point for point in usable if wanted <= {disk.id for disk in point.disks}]
    for candidates in (complete, usable):
        if candidates:
            return Base(candidates[0], candidates[0].checkpoint_id)
    return without_checkpoint(points)


def without_checkpoint(points: Sequence[Manifest]) -> Base:
    """Return the base for reading everything: the newest point, for its digests."""
    return Base(points[0], None) if points else NOTHING
