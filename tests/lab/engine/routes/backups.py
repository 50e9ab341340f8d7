"""
Backups and checkpoints of a VM.
"""

from __future__ import annotations

import flask

from tests.lab.engine import model, rejections, xml
from tests.lab.engine.backups.validation import Request
from tests.lab.engine.routes import query
from tests.lab.engine.routes.disks import render_disk
from tests.lab.engine.routes.table import Table
from tests.lab.engine.services import Services

_BACKUPS = f"{xml.BASE}/vms/<uuid:vm_id>/backups"
_CHECKPOINTS = f"{xml.BASE}/vms/<uuid:vm_id>/checkpoints"


def routes(services: Services) -> Table:
    table = Table()
    db = services.db

    @table.get(_BACKUPS)
    def backups(vm_id: str) -> xml.Element:
        with db.changed:
            services.vms.find(vm_id)
            found = [backup for backup in db.backups.values() if backup.vm_id == vm_id]
            return xml.collection("backups", [render_backup(backup) for backup in found])

    @table.post(_BACKUPS)
    def start(vm_id: str) -> object:
        body = xml.parse(flask.request.data, "backup")
        if body.find("disks") is None:
            raise rejections.Incomplete("Backup", "disks", "add")
        request = Request(
            id=body.get("id"),
            disk_ids=[disk.get("id", "") for disk in body.findall("disks/disk")],
            from_checkpoint_id=xml.text(body, "from_checkpoint_id"),
            description=xml.text(body, "description"),
            legacy=query.flag("legacy"),
            require_consistency=query.flag("require_consistency"),
        )
        backup = services.backups.start(vm_id, request, query.correlation_id())
        with db.changed:
            return render_backup(backup), 201

    @table.get(f"{_BACKUPS}/<uuid:backup_id>")
    def backup(vm_id: str, backup_id: str) -> xml.Element:
        with db.changed:
            return render_backup(services.backups.find(vm_id, backup_id))

    @table.get(f"{_BACKUPS}/<uuid:backup_id>/disks")
    def backup_disks(vm_id: str, backup_id: str) -> xml.Element:
        with db.changed:
            backup = services.backups.find(vm_id, backup_id)
            return xml.collection(
                "disks",
                [render_disk(db.disks[disk.disk_id], disk.mode) for disk in _shown_disks(backup)],
            )

    @table.get(f"{_BACKUPS}/<uuid:backup_id>/disks/<uuid:disk_id>")
    def backup_disk(vm_id: str, backup_id: str, disk_id: str) -> xml.Element:
        with db.changed:
            backup = services.backups.find(vm_id, backup_id)
            for disk in _shown_disks(backup):
                if disk.disk_id == disk_id:
                    return render_disk(db.disks[disk_id], disk.mode)
            raise rejections.NotFound

    @table.post(f"{_BACKUPS}/<uuid:backup_id>/finalize")
    def finalize(vm_id: str, backup_id: str) -> xml.Element:
        services.backups.finalize(vm_id, backup_id, query.correlation_id())
        return query.complete()

    @table.get(_CHECKPOINTS)
    def checkpoints(vm_id: str) -> xml.Element:
        with db.changed:
            services.vms.find(vm_id)
            found = db.checkpoints_of(vm_id)
            return xml.collection("checkpoints", [render_checkpoint(each) for each in found])

    @table.get(f"{_CHECKPOINTS}/<uuid:checkpoint_id>")
    def checkpoint(vm_id: str, checkpoint_id: str) -> xml.Element:
        with db.changed:
            return render_checkpoint(services.checkpoints.find(vm_id, checkpoint_id))

    @table.get(f"{_CHECKPOINTS}/<uuid:checkpoint_id>/disks")
    def checkpoint_disks(vm_id: str, checkpoint_id: str) -> xml.Element:
        with db.changed:
            checkpoint = services.checkpoints.find(vm_id, checkpoint_id)
            return xml.collection("disks", [render_disk(db.disks[disk_id]) for disk_id in checkpoint.disk_ids])

    @table.delete(f"{_CHECKPOINTS}/<uuid:checkpoint_id>")
    def remove_checkpoint(vm_id: str, checkpoint_id: str) -> None:
        services.checkpoints.remove(vm_id, checkpoint_id, query.correlation_id())

    return table


def render_backup(backup: model.Backup) -> xml.Element:
    path = f"vms/{backup.vm_id}/backups/{backup.id}"
    return xml.entity(
        "backup",
        path,
        backup.id,
        {
            "description": backup.description,
            "creation_date": backup.created,
            "from_checkpoint_id": backup.from_checkpoint_id,
            "modification_date": backup.modified,
            "phase": backup.phase.shown,
            "to_checkpoint_id": backup.to_checkpoint_id,
            "host": xml.Reference(f"hosts/{backup.host.id}") if backup.host else None,
            "snapshot": (
                xml.Reference(f"vms/{backup.vm_id}/snapshots/{backup.snapshot_id}") if backup.snapshot_id else None
            ),
            "vm": xml.Reference(f"vms/{backup.vm_id}"),
        },
        xml.actions(path, "finalize"),
        xml.link(f"{path}/disks", "disks"),
    )


def render_checkpoint(checkpoint: model.Checkpoint) -> xml.Element:
    path = f"vms/{checkpoint.vm_id}/checkpoints/{checkpoint.id}"
    return xml.entity(
        "checkpoint",
        path,
        checkpoint.id,
        {
            "description": checkpoint.description,
            "creation_date": checkpoint.created,
            "parent_id": checkpoint.parent_id,
            "state": checkpoint.state,
            "vm": xml.Reference(f"vms/{checkpoint.vm_id}"),
        },
        xml.link(f"{path}/disks", "disks"),
    )


def _shown_disks(backup: model.Backup) -> list[model.BackupDisk]:
    """A hybrid backup has no disks before its snapshot is made."""
    return [
        disk for disk in backup.disks.values() if backup.kind is not model.BackupKind.HYBRID or disk.volume is not None
    ]
