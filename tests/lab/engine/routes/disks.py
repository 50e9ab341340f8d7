"""
Disks.
"""

from __future__ import annotations

import flask

from tests.lab.engine import model, rejections, xml
from tests.lab.engine.disks import NewDisk
from tests.lab.engine.routes import query
from tests.lab.engine.routes.table import Table
from tests.lab.engine.services import Services


def routes(services: Services) -> Table:
    table = Table()
    db = services.db

    @table.get(f"{xml.BASE}/disks")
    def disks() -> xml.Element:
        with db.changed:
            found = query.selected(
                list(db.disks.values()),
                {
                    "id": lambda disk: disk.id,
                    "name": lambda disk: disk.alias,
                    "alias": lambda disk: disk.alias,
                    "status": lambda disk: disk.status,
                    "vm_names": lambda disk: [vm.name for vm, _ in db.owners_of(disk.id)],
                },
            )
            return xml.collection("disks", [render_disk(disk) for disk in found])

    @table.get(f"{xml.BASE}/disks/<uuid:disk_id>")
    def disk(disk_id: str) -> xml.Element:
        with db.changed:
            return render_disk(services.disks.find(disk_id))

    @table.post(f"{xml.BASE}/disks")
    def add() -> object:
        with db.changed:
            new = _new_disk(services, xml.parse(flask.request.data, "disk"))
            return render_disk(services.disks.add(new, query.correlation_id())), 202

    @table.delete(f"{xml.BASE}/disks/<uuid:disk_id>")
    def remove(disk_id: str) -> None:
        services.disks.remove(disk_id)

    return table


def render_disk(disk: model.Disk, backup_mode: str | None = None) -> xml.Element:
    """backup_mode: the disk is shown as part of a backup, where it has no address."""
    inside_backup = backup_mode is not None
    domain = f"storagedomains/{disk.storage_domain_id}"
    return xml.entity(
        "disk",
        None if inside_backup else f"disks/{disk.id}",
        disk.id,
        {
            "name": disk.alias,
            "description": disk.description,
            "actual_size": _allocated(disk.volumes[-1:]),
            "alias": disk.alias,
            "backup": disk.backup,
            "backup_mode": backup_mode,
            "content_type": "data",
            "format": disk.format,
            "image_id": disk.active.id,
            "propagate_errors": False,
            "provisioned_size": disk.provisioned_size,
            "qcow_version": "qcow2_v3" if disk.format == "cow" else None,
            "shareable": disk.shareable,
            "sparse": disk.sparse,
            "status": disk.status,
            "storage_type": "image",
            "total_size": _allocated(disk.volumes),
            "wipe_after_delete": False,
            "storage_domains": [
                xml.entity("storage_domain", None if inside_backup else domain, disk.storage_domain_id, {})
            ],
        },
    )


def _allocated(volumes: list[model.Volume]) -> int:
    return sum(volume.path.stat().st_blocks * 512 for volume in volumes if volume.path.exists())


def _new_disk(services: Services, body: xml.Element) -> NewDisk:
    size = xml.text(body, "provisioned_size")
    format = xml.text(body, "format")
    missing = [name for name, value in (("provisionedSize", size), ("format", format)) if value is None]
    if size is None or format is None:
        raise rejections.Incomplete("Disk", ", ".join(missing), "add")
    return NewDisk(
        id=body.get("id"),
        alias=xml.text(body, "name") or xml.text(body, "alias") or "",
        format=format,
        provisioned_size=int(size),
        sparse=xml.boolean(xml.text(body, "sparse"), default=format == "cow"),
        backup=xml.text(body, "backup") or "none",
        description=xml.text(body, "description") or "",
        storage_domain_id=_storage_domain(services, body),
    )


def _storage_domain(services: Services, body: xml.Element) -> str:
    """By id or by name."""
    wanted = xml.id_of(body, "storage_domains/storage_domain")
    name = xml.text(body, "storage_domains/storage_domain/name")
    for domain in services.db.storage_domains.values():
        if wanted == domain.id or (wanted is None and name == domain.name):
            return domain.id
    raise rejections.NotFound
