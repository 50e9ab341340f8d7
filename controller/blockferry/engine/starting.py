"""
Starting a backup: the engine's conditions, its locks, and an answer that may get lost.
"""

from __future__ import annotations

import dataclasses
import logging

from ovirtsdk4 import types

from blockferry import errors
from blockferry.engine import events, faults, inventory, polling, records
from blockferry.engine.model import Disk, Vm
from blockferry.engine.session import Session

log = logging.getLogger(__name__)

# The engine takes 1024 characters.
_LONGEST_DESCRIPTION = 900

# A VM leaves these by itself within moments; anything else than these, up and down needs somebody to act.
_PASSING_STATUSES = (
    "image_locked",
    "migrating",
    "powering_down",
    "powering_up",
    "reboot_in_progress",
    "restoring_state",
    "saving_state",
    "wait_for_launch",
)

# What the engine's 409 says when a lock is in the way that goes away by itself.
_PASSING_CONFLICTS = (
    "locked",
    "during a backup operation",
    "currently in progress",
    "checkpoint removal operation",
    "is migrating",
    "up or down status",
    "snapshot is currently being",
)

# What the engine's 400 says when the base is the reason.
_CHECKPOINT_TROUBLES = ("checkpoint id", "not included in the previous vm backup")


@dataclasses.dataclass(frozen=True)
class Request:
    """
    A backup to be started.

    disks: not empty.  since: base checkpoint; None: full.  legacy: not the engine's default, but live or cold.
    description: unique to this backup.
    """

    vm: Vm
    disks: tuple[Disk, ...]
    since: str | None
    legacy: bool
    description: str
    correlation_id: str


def new_request(vm: Vm, disks: list[Disk], since: str | None, mode: str, description: str) -> Request:
    """Return a request whose description is made unique by its correlation id."""
    correlation_id = events.new_correlation_id()
    printable = "".join(character if character.isprintable() else " " for character in description)
    return Request(
        vm=vm,
        disks=tuple(disks),
        since=since,
        legacy=mode == "live",
        description=f"{printable[:_LONGEST_DESCRIPTION]} [{correlation_id}]".lstrip(),
        correlation_id=correlation_id,
    )


def start(session: Session, request: Request) -> tuple[str, str]:
    """
    Start the backup, return its id and the VM's status at that moment ("up" or "down").

    Waits for locks that pass. Raises Conflict when another backup runs or the VM is in no state for one,
    CheckpointUnusable when the base is refused, EngineError for other refusals.
    """
    last: errors.Error | None = None
    for tried, _ in enumerate(polling.ticks(session.deadlines.conflict)):
        if tried == 1 and last is not None:
            log.warning("Waiting up to %g s to start the backup: %s", session.deadlines.conflict, last.message)
        status = inventory.vm_status(session, request.vm)
        if status in _PASSING_STATUSES:
            last = _unfit(request.vm, status)
            continue
        if status not in ("up", "down"):
            raise _unfit(request.vm, status)
        try:
            return _add(session, request), status
        except faults.Occupied as conflict:
            if own := records.find(session, request.vm.id, request.description):
                return own, status  # the engine had worked on the first of two requests
            _give_way(session, request.vm, conflict)
            last = conflict
        except faults.Refused as refusal:
            raise _explained(request, refusal) from refusal
    assert last is not None
    raise last


def _add(session: Session, request: Request) -> str:
    backup = types.Backup(
        disks=[types.Disk(id=disk.id) for disk in request.disks],
        from_checkpoint_id=request.since,
        description=request.description,
    )
    query = {"correlation_id": request.correlation_id}
    if request.legacy:
        query["legacy"] = "true"

    def add() -> str:
        added = session.call(
            f"start a backup of VM '{request.vm.name}'",
            lambda api: api.vms_service().vm_service(request.vm.id).backups_service().add(backup, query=query),
        )
        return str(added.id)

    try:
        return add()
    except errors.EngineUnreachable:
        # The request may have arrived all the same.
        return records.find(session, request.vm.id, request.description) or add()


def _give_way(session: Session, vm: Vm, conflict: faults.Occupied) -> None:
    """Return when the conflict passes by itself; else raise a Conflict that names what is in the way."""
    records.refuse_other(session, vm)
    if not any(text in conflict.detail.lower() for text in _PASSING_CONFLICTS):
        raise conflict


def _unfit(vm: Vm, status: str) -> errors.Conflict:
    hints = {
        "paused": "Resume it, or see in its events why it was paused (often full or broken storage); or shut it down.",
        "suspended": "Start it, or shut it down.",
    }
    return errors.Conflict(
        f"VM '{vm.name}' is {status or 'in a state that is unknown'}: the engine backs up VMs that are up or down.",
        hints.get(status, "Run again when it is up or down."),
    )


def _explained(request: Request, refusal: faults.Refused) -> errors.EngineError:
    """A refused incremental may be the base's fault; the engine says so, or says nothing at all (an empty list)."""
    detail = refusal.detail.lower()
    suspicious = not detail or any(trouble in detail for trouble in _CHECKPOINT_TROUBLES)
    if request.since is not None and refusal.status == 400 and suspicious:
        return unusable(request, refusal.detail and f"{refusal.detail}.")
    return refusal


def unusable(request: Request, reason: str) -> errors.CheckpointUnusable:
    """The error for a base checkpoint that does not do. reason: sentences, may be empty."""
    return errors.CheckpointUnusable(
        f"No backup of VM '{request.vm.name}' can start from checkpoint {request.since}. {reason}".rstrip(),
        "Take a full backup.",
    )
