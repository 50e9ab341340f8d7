"""
VMs, their disk attachments, network interfaces and snapshots.
"""

from __future__ import annotations

import dataclasses

import flask

from tests.lab.engine import model, rejections, xml
from tests.lab.engine.routes import query
from tests.lab.engine.routes.disks import render_disk
from tests.lab.engine.routes.table import Table
from tests.lab.engine.services import Services

_VM = f"{xml.BASE}/vms/<uuid:vm_id>"


def routes(services: Services) -> Table:
    table = Table()
    db = services.db

    @table.get(f"{xml.BASE}/vms")
    def vms() -> xml.Element:
        with db.changed:
            found = query.selected(
                list(db.vms.values()),
                {
                    "id": lambda vm: vm.id,
                    "name": lambda vm: vm.name,
                    "description": lambda vm: vm.description,
                    "status": lambda vm: vm.status,
                    "cluster": lambda vm: db.clusters[vm.cluster_id].name,
                    "host": lambda vm: vm.host.name,
                },
            )
            return xml.collection("vms", [render_vm(services, vm) for vm in found])

    @table.get(_VM)
    def vm(vm_id: str) -> xml.Element:
        with db.changed:
            return render_vm(services, services.vms.find(vm_id))

    @table.delete(_VM)
    def remove(vm_id: str) -> None:
        services.vms.remove(vm_id, query.flag("detach_only"))

    @table.post(f"{_VM}/start")
    def start(vm_id: str) -> xml.Element:
        return _started(services.vms.start(vm_id, query.correlation_id()))

    @table.post(f"{_VM}/stop")
    def stop(vm_id: str) -> xml.Element:
        return _started(services.vms.stop(vm_id, _force(), query.correlation_id()))

    @table.post(f"{_VM}/shutdown")
    def shutdown(vm_id: str) -> xml.Element:
        return _started(services.vms.shutdown(vm_id, _force(), query.correlation_id()))

    @table.get(f"{_VM}/diskattachments")
    def attachments(vm_id: str) -> xml.Element:
        with db.changed:
            vm = services.vms.find(vm_id)
            return xml.collection("disk_attachments", [render_attachment(vm, each) for each in vm.attachments])

    @table.post(f"{_VM}/diskattachments")
    def attach(vm_id: str) -> object:
        body = xml.parse(flask.request.data, "disk_attachment")
        disk_id = xml.id_of(body, "disk")
        if disk_id is None:
            raise rejections.Incomplete("DiskAttachment", "disk.id", "add")
        attachment = services.vms.attach(
            vm_id,
            model.Attachment(
                disk_id=disk_id,
                interface=xml.text(body, "interface") or "virtio_scsi",
                logical_name="",
                bootable=xml.boolean(xml.text(body, "bootable")),
                active=xml.boolean(xml.text(body, "active"), default=True),
            ),
        )
        with db.changed:
            return render_attachment(services.vms.find(vm_id), attachment), 201

    @table.get(f"{_VM}/diskattachments/<uuid:disk_id>")
    def attachment(vm_id: str, disk_id: str) -> xml.Element:
        with db.changed:
            vm = services.vms.find(vm_id)
            return render_attachment(vm, _attachment(vm, disk_id))

    @table.put(f"{_VM}/diskattachments/<uuid:disk_id>")
    def update(vm_id: str, disk_id: str) -> xml.Element:
        """Of all that can be changed, the disk's size."""
        body = xml.parse(flask.request.data, "disk_attachment")
        size = int(xml.text(body, "disk/provisioned_size") or 0)
        with db.changed:
            vm = services.vms.find(vm_id)
            attachment = _attachment(vm, disk_id)
            if size:
                services.disks.extend(disk_id, size, query.correlation_id())
            return render_attachment(vm, attachment)

    @table.delete(f"{_VM}/diskattachments/<uuid:disk_id>")
    def detach(vm_id: str, disk_id: str) -> None:
        with db.changed:
            vm = services.vms.find(vm_id)
            _attachment(vm, disk_id)
            if db.unfinished_backup(vm_id):
                raise rejections.Conflict("Cannot detach Virtual Disk. The VM is during a backup operation.")
            if vm.status != "down":
                raise rejections.Conflict("Cannot detach Virtual Disk. VM is running.")
        if query.flag("detach_only"):
            services.vms.detach(vm, disk_id)
        else:
            services.disks.remove(disk_id)

    @table.get(f"{_VM}/nics")
    def nics(vm_id: str) -> xml.Element:
        with db.changed:
            vm = services.vms.find(vm_id)
            return xml.collection("nics", [render_nic(vm, nic) for nic in vm.nics])

    @table.get(f"{_VM}/snapshots")
    def snapshots(vm_id: str) -> xml.Element:
        with db.changed:
            vm = services.vms.find(vm_id)
            found = [each for each in db.snapshots.values() if each.vm_id == vm_id]
            return xml.collection(
                "snapshots",
                [render_active_snapshot(vm), *(render_snapshot(each) for each in found)],
            )

    @table.get(f"{_VM}/snapshots/<uuid:snapshot_id>")
    def snapshot(vm_id: str, snapshot_id: str) -> xml.Element:
        with db.changed:
            vm = services.vms.find(vm_id)
            if snapshot_id == vm.active_snapshot_id:
                return render_active_snapshot(vm)
            return render_snapshot(_snapshot(services, snapshot_id))

    @table.get(f"{_VM}/snapshots/<uuid:snapshot_id>/disks")
    def snapshot_disks(vm_id: str, snapshot_id: str) -> xml.Element:
        """Disks as they were: with the layer of that time."""
        with db.changed:
            vm = services.vms.find(vm_id)
            if snapshot_id == vm.active_snapshot_id:
                return xml.collection("disks", [render_disk(disk) for disk in db.disks_of(vm)])
            volumes = _snapshot(services, snapshot_id).volumes
            disks = [(db.disks[disk_id], volume) for disk_id, volume in volumes.items()]
            return xml.collection(
                "disks",
                [
                    render_disk(dataclasses.replace(disk, volumes=disk.volumes[: disk.volumes.index(volume) + 1]))
                    for disk, volume in disks
                ],
            )

    return table


def render_vm(services: Services, vm: model.Vm) -> xml.Element:
    """With its configuration when the client wants all content, and the engine can give it."""
    path = f"vms/{vm.id}"
    configuration = services.vms.ovf(vm) if query.all_content() else None
    status = vm.status
    return xml.entity(
        "vm",
        path,
        vm.id,
        {
            "name": vm.name,
            "description": vm.description,
            "bios": {"boot_menu": {"enabled": False}, "type": "q35_sea_bios"},
            "cpu": {"architecture": "x86_64", "topology": {"cores": 1, "sockets": 1, "threads": 1}},
            "creation_time": vm.created,
            "delete_protected": False,
            "memory": vm.memory,
            "origin": vm.origin,
            "os": {"type": "debian_9"},
            "stateless": False,
            "type": "server",
            "cluster": xml.Reference(f"clusters/{vm.cluster_id}"),
            "has_illegal_images": False,
            "next_run_configuration_exists": False,
            "run_once": False,
            "status": status,
            "host": None if status == "down" else xml.Reference(f"hosts/{vm.host.id}"),
            "initialization": ({"configuration": {"data": configuration, "type": "ovf"}} if configuration else None),
        },
        xml.actions(path, "start", "stop", "shutdown"),
        *(
            xml.link(f"{path}/{name}", name)
            for name in ("diskattachments", "nics", "snapshots", "backups", "checkpoints")
        ),
    )


def render_nic(vm: model.Vm, nic: model.Nic) -> xml.Element:
    return xml.entity(
        "nic",
        f"vms/{vm.id}/nics/{nic.id}",
        nic.id,
        {"name": nic.name, "interface": "virtio", "linked": True, "mac": {"address": nic.mac}, "plugged": True},
    )


def render_attachment(vm: model.Vm, attachment: model.Attachment) -> xml.Element:
    disk_id = attachment.disk_id
    return xml.entity(
        "disk_attachment",
        f"vms/{vm.id}/diskattachments/{disk_id}",
        disk_id,
        {
            "active": attachment.active,
            "bootable": attachment.bootable,
            "interface": attachment.interface,
            "logical_name": attachment.logical_name,
            "pass_discard": True,
            "read_only": False,
            "uses_scsi_reservation": False,
            "disk": xml.Reference(f"disks/{disk_id}"),
            "vm": xml.Reference(f"vms/{vm.id}"),
        },
    )


def render_snapshot(snapshot: model.Snapshot) -> xml.Element:
    return xml.entity(
        "snapshot",
        f"vms/{snapshot.vm_id}/snapshots/{snapshot.id}",
        snapshot.id,
        {
            "description": snapshot.description,
            "date": snapshot.created,
            "persist_memorystate": False,
            "snapshot_status": snapshot.status,
            "snapshot_type": "regular",
            "vm": xml.Reference(f"vms/{snapshot.vm_id}"),
        },
    )


def render_active_snapshot(vm: model.Vm) -> xml.Element:
    return xml.entity(
        "snapshot",
        f"vms/{vm.id}/snapshots/{vm.active_snapshot_id}",
        vm.active_snapshot_id,
        {
            "description": "Active VM",
            "date": vm.created,
            "persist_memorystate": False,
            "snapshot_status": "ok",
            "snapshot_type": "active",
            "vm": xml.Reference(f"vms/{vm.id}"),
        },
    )


def _started(job: model.Job) -> xml.Element:
    return xml.plain("action", {"job": xml.Reference(f"jobs/{job.id}"), "status": "complete"})


def _force() -> bool:
    return xml.boolean(xml.text(xml.parse(flask.request.data, "action"), "force"))


def _snapshot(services: Services, snapshot_id: str) -> model.Snapshot:
    snapshot = services.db.snapshots.get(snapshot_id)
    if snapshot is None:
        raise rejections.NotFound
    return snapshot


def _attachment(vm: model.Vm, disk_id: str) -> model.Attachment:
    for attachment in vm.attachments:
        if attachment.disk_id == disk_id:
            return attachment
    raise rejections.NotFound
