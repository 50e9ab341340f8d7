"""
What the engine checks before it starts a backup, in its order and with its texts (StartVmBackupCommand.validate).

Two checks have no counterpart here, because the lab's one host and one user pass them always: the host's version and
capabilities, and permissions.
"""

from __future__ import annotations

import dataclasses

from tests.lab.engine import model
from tests.lab.engine.database import Database
from tests.lab.engine.rejections import BadParameters, Conflict

_MAX_DESCRIPTION = 1024


@dataclasses.dataclass(frozen=True)
class Request:
    """
    A backup as a client asks for it. id: chosen by the client, or None.  legacy: not hybrid, whatever the cluster's level.
    """

    id: str | None
    disk_ids: list[str]
    from_checkpoint_id: str | None
    description: str | None
    legacy: bool
    require_consistency: bool


def check(db: Database, vm: model.Vm, request: Request) -> None:
    """Raises BadParameters or Conflict."""
    if vm.origin == "managed_hosted_engine":
        raise Conflict("Cannot backup VM. Backup of Hosted Engine VM is not supported.")
    _check_disks(db, vm, request)
    if request.from_checkpoint_id is not None:
        _check_base(db, vm, request.from_checkpoint_id, request.disk_ids)
    if vm.status not in ("up", "down"):
        raise Conflict("Cannot backup VM. The Virtual Machine should be in Up or Down status.")
    if db.unfinished_backup(vm.id):
        raise Conflict("Cannot backup VM. The VM is during a backup operation.")
    if vm.removing_checkpoint:
        raise Conflict("Cannot backup VM. The VM is during a checkpoint removal operation.")
    if request.description is not None and len(request.description) > _MAX_DESCRIPTION:
        raise BadParameters(
            f"Cannot backup VM. The backup description is too long, at most {_MAX_DESCRIPTION} characters are allowed."
        )
    if request.id in db.backups:
        raise BadParameters(f"Cannot backup VM. The specified VM backup ID {request.id} already exists.")


def _check_disks(db: Database, vm: model.Vm, request: Request) -> None:
    unknown = [disk_id for disk_id in request.disk_ids if disk_id not in db.disks]
    if unknown:
        raise BadParameters(f"Cannot backup VM: The following disk(s) ID(s) does not exist: {', '.join(unknown)}.")
    disks = [db.disks[disk_id] for disk_id in request.disk_ids]
    locked = [disk.alias for disk in disks if disk.status is model.DiskStatus.LOCKED]
    if locked:
        raise Conflict(
            f"Cannot backup VM: The following disks are locked: {', '.join(locked)}. Please try again in a few minutes."
        )
    plugged = {attachment.disk_id for attachment in vm.attachments if attachment.active}
    inactive = [disk.id for disk in disks if disk.id not in plugged]
    if inactive:
        raise Conflict(f"Cannot backup VM. The following disks are not active on VM {vm.name}: {', '.join(inactive)}")


def _check_base(db: Database, vm: model.Vm, checkpoint_id: str, disk_ids: list[str]) -> None:
    level = db.clusters[vm.cluster_id].level
    if level < (4, 5):
        raise BadParameters("Cannot backup VM. Incremental backup is not supported by the cluster.")
    checkpoint = db.checkpoints.get(checkpoint_id)
    if checkpoint is None:
        raise BadParameters(f"Cannot backup VM. Checkpoint ID {checkpoint_id} doesn't exist.")
    if checkpoint.state == "invalid":
        raise BadParameters(f"Cannot backup VM. Checkpoint ID {checkpoint_id} is invalid and should be removed.")
