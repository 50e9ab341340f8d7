"""
What the engine remembers of a VM's backups: those that run, and those that ended a while ago.
"""

from __future__ import annotations

from typing import Any

from blockferry import errors
from blockferry.engine.model import Vm
from blockferry.engine.session import Session

FINAL_PHASES = ("succeeded", "failed")


def of(session: Session, vm_id: str) -> list[Any]:
    """Return the records of a VM. Raises NotFound when the VM is gone."""
    return list(session.ask("list backups", lambda api: api.vms_service().vm_service(vm_id).backups_service().list()))


def find(session: Session, vm_id: str, description: str) -> str | None:
    """Return the id of the VM's backup with this description."""
    return next((record.id for record in of(session, vm_id) if record.description == description), None)


def phase(record: Any) -> str:
    """Return the phase of a backup; one that the SDK does not know becomes "unknown"."""
    return record.phase.value if record.phase is not None else "unknown"


def refuse_other(session: Session, vm: Vm) -> None:
    """Raise a Conflict that names the backup which somebody else runs; one that is being finalized passes by itself."""
    for record in of(session, vm.id):
        if phase(record) in ("finalizing", *FINAL_PHASES):
            continue
        description = f" '{record.description}'" if record.description else ""
        raise errors.Conflict(
            f"VM '{vm.name}' is in another backup: {record.id}{description}, phase {phase(record)}.",
            "Wait for it to end. If whatever started it is gone, finalize it in the engine"
            f" (POST vms/{vm.id}/backups/{record.id}/finalize).",
        )
