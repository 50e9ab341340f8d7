"""
Ending a backup, whatever became of it. There is no cancel: finalize is also the way to give up.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any, Literal

from blockferry import errors
from blockferry.engine import faults, polling, records, transfers
from blockferry.engine.session import Session

log = logging.getLogger(__name__)


class StillFinalizing(errors.EngineError):
    """The engine was asked to finalize a backup, is at it, and goes on by itself: there is nothing to give up."""


# gone: the engine has no record of it (any more).
Outcome = Literal["succeeded", "failed", "gone"]


def end(
    session: Session,
    vm_id: str,
    backup_id: str,
    *,
    deadline: float,
    linger: float = math.inf,
    correlation_id: str | None = None,
) -> Outcome:
    """
    Finalize a backup and wait until it has ended.

    Asks again as long as the engine does not go on to finalize: it may have been away, or a transfer was still ending.
    Transfers that nobody ended are cancelled.

    deadline: seconds for all of it.  linger: seconds to look on while the engine finalizes.
    Raises StillFinalizing or another EngineError when it is too late.
    """
    phase = ""
    asked = began = time.monotonic()
    for _ in polling.ticks(deadline):
        try:
            phase = _phase_of(session, vm_id, backup_id)
        except errors.NotFound:
            return "gone"
        if phase in records.FINAL_PHASES:
            return "succeeded" if phase == "succeeded" else "failed"
        if phase != "finalizing":
            _ask_to_finalize(session, vm_id, backup_id, correlation_id)
            asked = time.monotonic()
        elif time.monotonic() - asked > linger:
            break
    if phase == "finalizing":
        raise StillFinalizing(
            f"Backup {backup_id} is still being finalized after {time.monotonic() - began:.0f} s.",
            "The engine goes on by itself: see the VM's events. The next backup waits for it.",
        )
    raise errors.EngineError(
        f"Backup {backup_id} could not be finalized within {deadline:g} s: its phase is '{phase}'.",
        f"It blocks the VM until somebody finalizes it in the engine (POST vms/{vm_id}/backups/{backup_id}/finalize).",
    )


def _ask_to_finalize(session: Session, vm_id: str, backup_id: str, correlation_id: str | None) -> None:
    """The phase, not the answer, tells what came of it."""
    query = {"correlation_id": correlation_id} if correlation_id else {}
    try:
        session.call(f"finalize backup {backup_id}", lambda api: _service(api, vm_id, backup_id).finalize(query=query))
    except faults.Occupied:
        _cancel_transfers(session, vm_id, backup_id)
    except (faults.Refused, errors.NotFound, errors.EngineUnreachable) as error:
        log.info("Finalizing backup %s: %s", backup_id, error)


def _cancel_transfers(session: Session, vm_id: str, backup_id: str) -> None:
    """Cancel transfers of which nobody knows any more, for example because their ids were never heard."""
    disks = session.ask("list a backup's disks", lambda api: _service(api, vm_id, backup_id).disks_service().list())
    for transfer_id in transfers.open_transfers(session, [disk.id for disk in disks]):
        transfers.cancel(session, transfer_id)


def _phase_of(session: Session, vm_id: str, backup_id: str) -> str:
    return records.phase(session.ask("read a backup", lambda api: _service(api, vm_id, backup_id).get()))


def _service(api: Any, vm_id: str, backup_id: str) -> Any:
    return api.vms_service().vm_service(vm_id).backups_service().backup_service(backup_id)
