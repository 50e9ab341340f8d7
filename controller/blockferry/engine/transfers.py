"""
Image transfers, of a backup's disks and to disks that are restored: from the request to a ticket that can be used, and
to a sure end.

    initializing -> transferring -> finalizing_success -> finished_success          finalize
                         |-> cancelled_user -> finalizing_cleanup -> finished_…     cancel
                         |-> cancelled_system -> finalizing_failure -> finished_failure
                         `-> paused_system -> finalizing_success                    uploads that nobody carries on

An upload that is cancelled takes its disk with it, also one that was there before; one that is finalized leaves it.
The engine answers 200 to actions on transfers that are unknown or at their end, so only phases tell what happened.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection
from typing import Any

from ovirtsdk4 import types

from blockferry import errors
from blockferry.engine import events, inventory, polling
from blockferry.engine.model import Transfer, Transferred
from blockferry.engine.session import Session

log = logging.getLogger(__name__)

# Seconds. Reading over NBD does not count as activity, so the engine's 60 s would end a transfer in the middle of it;
# 0 is a trap (Image I/O's sockets stop to wait).
INACTIVITY_TIMEOUT = 3600

_ENDED = ("finished_success", "finished_failure", "finished_cleanup")
_LOST = (*_ENDED, "cancelled", "cancelled_user", "cancelled_system", "paused_system", "finalizing_success",
         "finalizing_failure", "finalizing_cleanup")  # fmt: skip


class Lost(errors.EngineError):
    """The engine gave the transfer up before its ticket could be used."""


def request(session: Session, backup_id: str, disk: Transferred, correlation_id: str) -> str:
    """
    Ask for a transfer of a disk of a backup, return its id.

    When the answer is lost, the transfer is looked for: the engine allows one per disk, so it can only be ours.
    """
    transfer = types.ImageTransfer(
        backup=types.Backup(id=backup_id),
        disk=types.Disk(id=disk.id),
        direction=types.ImageTransferDirection.DOWNLOAD,
        format=types.DiskFormat.RAW,
        inactivity_timeout=INACTIVITY_TIMEOUT,
        timeout_policy=types.ImageTransferTimeoutPolicy.CANCEL,
    )
    return _request(session, transfer, disk, correlation_id)


def request_upload(session: Session, disk: Transferred, correlation_id: str, host_id: str | None = None) -> str:
    """
    Ask for a transfer that writes a disk, return its id.

    host_id: of the host that it shall go through; None: the engine chooses one.

    Raises Conflict when the disk belongs to a running VM, is locked, or is being transferred.
    """
    transfer = types.ImageTransfer(
        disk=types.Disk(id=disk.id),
        host=types.Host(id=host_id) if host_id else None,
        direction=types.ImageTransferDirection.UPLOAD,
        format=types.DiskFormat.RAW,
        inactivity_timeout=INACTIVITY_TIMEOUT,
        # The other policy would remove the disk when nothing was heard for long.
        timeout_policy=types.ImageTransferTimeoutPolicy.PAUSE,
    )
    return _request(session, transfer, disk, correlation_id)


def wait_for_ticket(
    session: Session,
    transfer_id: str,
    disk: Transferred,
    correlation_id: str,
    patience: polling.Patience | None = None,
) -> Transfer:
    """
    Return the transfer as soon as its ticket can be used.

    Raises Lost, with the engine's reasons, when it ends before; EngineError when it takes too long; Interrupted
    when the patience ends.
    """
    phase = ""
    for _ in polling.ticks(session.deadlines.transfer, patience):
        found = _get(session, transfer_id, patience)
        phase = _phase(found)
        # The URLs may be there before: the host knows the ticket only from this phase on.
        if phase == "transferring" and found.transfer_url:
            return _transfer(session, found, disk)
        if phase in _LOST:
            raise Lost(
                f"The engine gave up the transfer of disk '{disk.alias}' (phase {phase})."
                f"{events.explanation(session, correlation_id)}",
                "See the engine's events and, on the host, the logs of vdsm and ovirt-imageio.",
            )
    raise errors.EngineError(
        f"The transfer of disk '{disk.alias}' did not become ready within {session.deadlines.transfer:g} s: its phase"
        f" is '{phase}'.{events.explanation(session, correlation_id)}",
        "See whether the host is up, and vdsm and ovirt-imageio run on it.",
    )


def finalize(session: Session, transfer_id: str) -> None:
    """
    End a transfer whose disk was read to its end; wait until it has ended.

    That the engine ended it by itself before, in whatever way, changes nothing about the data that was read.
    """
    phase = _end(session, transfer_id, lambda service: service.finalize())
    if phase != "finished_success":
        log.warning("Transfer %s was read to its end, then ended as %s.", transfer_id, phase)


def finalize_upload(session: Session, transfer_id: str, disk: Transferred, correlation_id: str) -> None:
    """
    End a transfer that wrote a disk; wait until the engine has looked at the volume and called it good.

    Raises EngineError when it has not: the engine removes the disk then.
    """
    phase = _end(session, transfer_id, lambda service: service.finalize())
    if phase not in ("finished_success", "gone"):
        raise errors.EngineError(
            f"The engine did not accept what was written to disk '{disk.alias}' (phase {phase}), and removes a disk"
            f" that it does not accept.{events.explanation(session, correlation_id)}",
            "See the engine's events and, on the host, the log of vdsm.",
        )


def cancel(session: Session, transfer_id: str) -> None:
    """End a transfer that is of no use any more; wait until it has ended. One that is not there is fine."""
    _end(session, transfer_id, lambda service: service.cancel())


def open_transfers(session: Session, disk_ids: Collection[str]) -> list[str]:
    """
    Return the ids of downloads of these disks that have not ended.

    The engine does not say which backup a transfer belongs to; but it allows one transfer per disk, and a disk in a
    backup is transferred for that backup only.
    """
    return _open(session, disk_ids, types.ImageTransferDirection.DOWNLOAD)


def open_uploads(session: Session, disk_ids: Collection[str]) -> list[str]:
    """Return the ids of transfers that write to these disks and have not ended."""
    return _open(session, disk_ids, types.ImageTransferDirection.UPLOAD)


def _open(session: Session, disk_ids: Collection[str], direction: types.ImageTransferDirection) -> list[str]:
    found = session.ask("list transfers", lambda api: api.image_transfers_service().list())
    return [
        transfer.id
        for transfer in found
        if transfer.image
        and transfer.image.id in disk_ids
        and transfer.direction == direction
        and _phase(transfer) not in _ENDED
    ]


def _request(session: Session, transfer: types.ImageTransfer, disk: Transferred, correlation_id: str) -> str:
    task = f"start a transfer of disk '{disk.alias}'"

    def add(api: Any) -> Any:
        return api.image_transfers_service().add(transfer, query={"correlation_id": correlation_id})

    try:
        return str(session.call(task, add).id)
    except errors.EngineUnreachable:
        found = _open(session, [disk.id], transfer.direction)
        return found[0] if found else str(session.call(task, add).id)


def _end(session: Session, transfer_id: str, act: Any) -> str:
    """Act until the transfer has ended; return the last phase, "gone" when the engine has forgotten it."""
    phase = ""
    acted = False
    for _ in polling.ticks(session.deadlines.transfer_end):
        try:
            phase = _phase(_get(session, transfer_id))
        except errors.NotFound:
            return "gone"  # engines before 4.4.7 forget at once, later ones after 15 minutes
        if phase in _ENDED:
            return phase
        if not acted:
            session.ask(
                "end a transfer",
                lambda api: act(api.image_transfers_service().image_transfer_service(transfer_id)),
            )
            acted = True
    raise errors.EngineError(
        f"Transfer {transfer_id} did not end within {session.deadlines.transfer_end:g} s: its phase is '{phase}'.",
        "See whether something still reads from it; the engine ends it when nothing does.",
    )


def _get(session: Session, transfer_id: str, patience: polling.Patience | None = None) -> Any:
    return session.ask(
        "read a transfer",
        lambda api: api.image_transfers_service().image_transfer_service(transfer_id).get(),
        patience,
    )


def _phase(transfer: Any) -> str:
    # A phase that the SDK does not know becomes None.
    return transfer.phase.value if transfer.phase is not None else "unknown"


def _transfer(session: Session, found: Any, disk: Transferred) -> Transfer:
    return Transfer(
        id=found.id,
        ticket_id=ticket_id(found.transfer_url),
        disk_id=disk.id,
        host=inventory.host_of(session, found.host.id if found.host else None, found.transfer_url),
        transfer_url=found.transfer_url,
        proxy_url=found.proxy_url,
        size=disk.size,
    )


def ticket_id(transfer_url: str) -> str:
    """Return the id of the ticket in https://HOST:54322/images/TICKET; it is not the transfer's id."""
    last = transfer_url.rstrip("/").rpartition("/")[2]
    try:
        return str(uuid.UUID(last))
    except ValueError:
        # Who knows the ticket may read the disk, so the message has no more of the URL than the host.
        host = transfer_url.partition("//")[2].partition("/")[0]
        raise errors.EngineError(
            f"The transfer URL that the engine gave for host '{host}' does not end in a ticket.",
            "See the engine's log, /var/log/ovirt-engine/engine.log.",
        ) from None
