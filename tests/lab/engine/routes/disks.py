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
                    "number_of_vms": lambda disk: len(db.owners_of(disk.id)),
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

    @table.get(f"{xml.BASE}/disks/<uuid:disk_id>/disksnapshots")
    def snapshots_of_disk(disk_id: str) -> xml.Element:
        with db.changed:
            return _disk_snapshots(services, [services.disks.find(disk_id)])

    @table.get(f"{xml.BASE}/storagedomains/<uuid:domain_id>/disksnapshots")
    def snapshots_of_domain(domain_id: str) -> xml.Element:
        with db.changed:
            found = [disk for disk in db.disks.values() if disk.storage_domain_id == domain_id]
            return _disk_snapshots(services, found)

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


def render_disk_snapshot(services: Services, disk: model.Disk, layer: int) -> xml.Element:
    """A layer of a disk. layer: index in its volumes."""
    domain = f"storagedomains/{disk.storage_domain_id}"
    volume = disk.volumes[layer]
    parent = disk.volumes[layer - 1] if layer else None
    snapshot_id = _snapshot_of(services, disk, volume)
    return xml.entity(
        "disk_snapshot",
        f"{domain}/disksnapshots/{volume.id}",
        volume.id,
        {
            "name": disk.alias,
            "actual_size": _allocated([volume]),
            "alias": disk.alias,
            "backup": "none",
            "content_type": "data",
            "format": volume.format,
            "provisioned_size": disk.provisioned_size,
            "qcow_version": "qcow2_v3" if volume.format == "cow" else None,
            "sparse": disk.sparse,
            "status": disk.status,
            "storage_type": "image",
            "total_size": 0,
            "disk": xml.Reference(f"disks/{disk.id}"),
            "parent": xml.Reference(f"{domain}/disksnapshots/{parent.id}") if parent else None,
            "snapshot": xml.Identity(snapshot_id) if snapshot_id else None,
            "storage_domain": xml.Reference(domain),
        },
    )


def _disk_snapshots(services: Services, disks: list[model.Disk]) -> xml.Element:
    """All layers below the active one, and that one too when the client includes it."""
    hidden = 0 if query.flag("include_active") else 1
    return xml.collection(
        "disk_snapshots",
        [render_disk_snapshot(services, disk, layer) for disk in disks for layer in range(len(disk.volumes) - hidden)],
    )


def _snapshot_of(services: Services, disk: model.Disk, volume: model.Volume) -> str | None:
    """The VM snapshot that a layer belongs to. A floating disk has none."""
    for snapshot in services.db.snapshots.values():
        if snapshot.volumes.get(disk.id) == volume:
            return snapshot.id
    owners = services.db.owners_of(disk.id)
    return owners[0][0].active_snapshot_id if owners else None


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
