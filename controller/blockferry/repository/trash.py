"""Deleted points, which can be had back for a while, and points that are pinned, which nobody deletes by mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

import msgspec

from blockferry import errors
from blockferry.repository import documents, layout, locks, manifest
from blockferry.repository.locks import Lock
from blockferry.repository.manifest import Manifest, Unreadable
from blockferry.repository.store import Store

FORMAT: Final = 1


class Pin(msgspec.Struct, frozen=True):
    """What keeps a point. pinned: when that was asked for (UTC)."""

    pinned: datetime
    format: Literal[1] = FORMAT


class Trashed(NamedTuple):
    """A deleted point. deleted: by the storage's clock (UTC)."""

    point: Manifest
    deleted: datetime


def pin(store: Store, point: Manifest) -> None:
    """Keep a point from being deleted and pruned. Raises RepositoryError."""
    with store.batch() as batch:
        batch.commit(layout.pin(point.vm.id, point.id), documents.encode(Pin(datetime.now(UTC))))


def unpin(store: Store, point: Manifest) -> None:
    """Let a point be deleted and pruned; it is no error when it was not pinned. Raises RepositoryError."""
    store.delete(layout.pin(point.vm.id, point.id))


def pinned(store: Store) -> set[tuple[str, str]]:
    """Return (vm id, point id) of all points that are pinned. Raises RepositoryError."""
    names = (listed.name for listed in store.listing(layout.VMS) if listed.name.endswith(f"/{layout.PIN}"))
    return {ids for name in names if (ids := layout.point_with(name)) is not None}


def delete(store: Store, point: Manifest) -> None:
    """
    Move a point into the trash. It is gone for everybody when this returns, and its chunks stay.

    Raises Conflict when it is pinned, RepositoryError.
    """
    if store.holds(layout.pin(point.vm.id, point.id)):
        raise errors.Conflict(
            f"Recovery point {point.id} of VM {point.vm.name} is pinned.",
            f"Run `blockferry unpin {point.vm.name} {point.id}` first.",
        )
    with store.batch() as batch:
        # The trash first, so that there is a moment in which it is in both places, and none in which it is in neither.
        batch.commit(layout.trashed(point.vm.id, point.id), manifest.encode(point))
    store.delete(layout.manifest(point.vm.id, point.id))


def undelete(store: Store, vm_id: str, point_id: str) -> Manifest:
    """
    Bring a point back from the trash.

    Raises NotFound when it is not there, Conflict while a collection removes what the trash held, RepositoryError.
    """
    with locks.held(store, "writing", f"undelete of point {point_id}") as lock:
        _refuse_beside_collection(lock)
        point = _read(store, vm_id, point_id)
        was_there = store.holds(layout.manifest(vm_id, point_id))
        with store.batch() as batch:
            lock.check()
            batch.commit(layout.manifest(vm_id, point_id), manifest.encode(point))
        try:
            lock.check_age()
            _refuse_beside_collection(lock)
        except (errors.RepositoryError, errors.Conflict):
            # Flushing took long, or this machine slept: a collection has not seen the point, and may take its chunks.
            if not was_there:
                store.delete(layout.manifest(vm_id, point_id))
            if not store.holds(layout.trashed(vm_id, point_id)):
                raise _not_there(vm_id, point_id) from None
            raise
        store.delete(layout.trashed(vm_id, point_id))
        if not store.holds(layout.manifest(vm_id, point_id)):
            # Somebody who was deleting it has taken it away in between.
            with store.batch() as batch:
                batch.commit(layout.manifest(vm_id, point_id), manifest.encode(point))
    return point


def _refuse_beside_collection(lock: Lock) -> None:
    if lock.reliance.was_asked:
        raise errors.Conflict("A collection is emptying the trash.", "Run this again when it has ended.")


def contents(
    store: Store, since: float = float("-inf"), unreadable: Callable[[Unreadable], None] | None = None
) -> list[Trashed]:
    """
    Return the points in the trash that were deleted since a time (of the storage's clock), last deleted first.

    unreadable: told of each one whose manifest cannot be read; without it that is raised.  Raises RepositoryError.
    """
    found = []
    for vm_id, point_id, deleted in _entries(store):
        if deleted < since:
            continue
        try:
            found.append(Trashed(_read(store, vm_id, point_id), datetime.fromtimestamp(deleted, UTC)))
        except errors.NotFound:
            # Brought back since it was listed.
            continue
        except errors.RepositoryError as error:
            if unreadable is None:
                raise
            unreadable(Unreadable(vm_id, point_id, layout.trashed(vm_id, point_id), str(error)))
    return sorted(found, key=lambda trashed: (trashed.deleted, trashed.point.id), reverse=True)


def count(store: Store) -> int:
    """Return how many points are in the trash, readable or not. Raises RepositoryError."""
    return sum(1 for _ in _entries(store))


def empty(store: Store, before: float) -> int:
    """
    Remove what was deleted before a time (of the storage's clock), and return how many points that were.

    What they alone needed is removed by a collection. Raises RepositoryError.
    """
    old = [(vm_id, point_id) for vm_id, point_id, deleted in _entries(store) if deleted < before]
    for vm_id, point_id in old:
        store.delete(layout.trashed(vm_id, point_id))
    return len(old)


def _entries(store: Store) -> Iterator[tuple[str, str, float]]:
    """Generate (vm id, point id, when it was deleted) of all points in the trash."""
    for listed in store.listing(layout.TRASH):
        ids = layout.trashed_point_of(listed.name)
        if ids is not None:
            yield *ids, listed.modified


def _read(store: Store, vm_id: str, point_id: str) -> Manifest:
    name = layout.trashed(vm_id, point_id)
    try:
        with manifest.way_out(vm_id, point_id):
            return manifest.decode(store.get(name, manifest.MAX_ENCODED), vm_id, point_id, f"{store.url}/{name}")
    except errors.NotFound:
        raise _not_there(vm_id, point_id) from None


def _not_there(vm_id: str, point_id: str) -> errors.NotFound:
    return errors.NotFound(f"The trash has no recovery point {point_id} of VM {vm_id}.", "See `blockferry trash`.")
