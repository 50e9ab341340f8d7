"""
A VM's configuration as an OVF document, in the shape that the engine's OvfVmWriter gives it.
"""

from __future__ import annotations

from lxml import etree

from tests.lab.engine import model
from tests.lab.engine.database import Database

OVF = "http://schemas.dmtf.org/ovf/envelope/1/"
RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
XSI = "http://www.w3.org/2001/XMLSchema-instance"

GiB = 1024**3
MiB = 1024**2

_FORMATS = {
    "cow": "http://www.gnome.org/~markmc/qcow-image-format.html",
    "raw": "http://www.vmware.com/specifications/vmdk.html#sparse",
}
_INTERFACES = {"virtio": "VirtIO", "virtio_scsi": "VirtIO_SCSI"}

Element = etree._Element


def document(db: Database, vm: model.Vm) -> str:
    envelope = etree.Element(
        _name(OVF, "Envelope"),
        {_name(OVF, "version"): "4.5.0.0"},
        nsmap={"ovf": OVF, "rasd": RASD, "vssd": VSSD, "xsi": XSI},
    )
    _references(envelope, db, vm)
    network = etree.SubElement(envelope, "NetworkSection")
    _text(network, "Info", "List of networks")
    for name in dict.fromkeys(nic.network for nic in vm.nics):
        etree.SubElement(network, "Network", _attributes(name=name))
    _disk_section(envelope, db, vm)
    _content(envelope, db, vm)
    return etree.tostring(envelope, xml_declaration=True, encoding="UTF-8").decode()


def _references(envelope: Element, db: Database, vm: model.Vm) -> None:
    references = etree.SubElement(envelope, "References")
    for disk in db.disks_of(vm):
        etree.SubElement(
            references,
            "File",
            _attributes(
                href=f"{disk.id}/{disk.active.id}",
                id=disk.active.id,
                size=str(disk.provisioned_size),
                description="Active VM",
                disk_storage_type="IMAGE",
            ),
        )
    for nic in vm.nics:
        etree.SubElement(references, "Nic", _attributes(id=nic.id))


def _disk_section(envelope: Element, db: Database, vm: model.Vm) -> None:
    section = _section(envelope, "DiskSection_Type", "List of Virtual Disks")
    for attachment in vm.attachments:
        disk = db.disks[attachment.disk_id]
        attributes = _attributes(
            diskId=disk.active.id,
            size=str(-(-disk.provisioned_size // GiB)),
            actual_size="1",
            vm_snapshot_id=vm.active_snapshot_id,
            parentRef="",
            fileRef=f"{disk.id}/{disk.active.id}",
            format=_FORMATS[disk.format],
            boot=_boolean(attachment.bootable),
            shareable=_boolean(disk.shareable),
        )
        attributes |= {
            _name(OVF, name): value
            for name, value in {
                "volume-format": disk.format.upper(),
                "volume-type": "Sparse" if disk.sparse else "Preallocated",
                "disk-interface": _INTERFACES[attachment.interface],
                "read-only": "false",
                "pass-discard": "true",
                "incremental-backup": _boolean(disk.backup == "incremental"),
                "disk-alias": disk.alias,
                "disk-description": disk.description,
                "wipe-after-delete": "false",
            }.items()
        }
        etree.SubElement(section, "Disk", attributes)


def _content(envelope: Element, db: Database, vm: model.Vm) -> None:
    content = etree.SubElement(
        envelope,
        "Content",
        {_name(OVF, "id"): "out", _name(XSI, "type"): "ovf:VirtualSystem_Type"},
    )
    _text(content, "Name", vm.name)
    _text(content, "Description", vm.description)
    _text(content, "ClusterName", db.clusters[vm.cluster_id].name)
    _text(content, "CreationDate", vm.created.strftime("%Y/%m/%d %H:%M:%S"))
    _text(content, "ClusterCompatibilityVersion", ".".join(map(str, db.clusters[vm.cluster_id].level)))
    _text(content, "VmType", "1")
    _text(content, "BiosType", "2")

    system = _section(content, "OperatingSystemSection_Type", "Guest Operating System")
    system.set(_name(OVF, "id"), vm.id)
    system.set(_name(OVF, "required"), "false")
    _text(system, "Description", "debian_9")

    hardware = _section(content, "VirtualHardwareSection_Type", "1 CPU, memory and disks")
    _item(hardware, "1 virtual cpu", "1", "3", num_of_sockets="1", cpu_per_socket="1")
    _item(
        hardware,
        f"{vm.memory // MiB} MB of memory",
        "2",
        "4",
        AllocationUnits="MegaBytes",
        VirtualQuantity=str(vm.memory // MiB),
    )
    for disk in db.disks_of(vm):
        _item(
            hardware,
            disk.alias,
            disk.active.id,
            "17",
            HostResource=f"{disk.id}/{disk.active.id}",
            Parent="00000000-0000-0000-0000-000000000000",
            StorageId=disk.storage_domain_id,
        )

    for nic in vm.nics:
        _item(
            hardware,
            f"Ethernet adapter on {nic.network}",
            nic.id,
            "10",
            OtherResourceType=nic.network,
            ResourceSubType="3",
            Connection=nic.network,
            Linked="true",
            Name=nic.name,
            ElementName=nic.name,
            MACAddress=nic.mac,
            speed="10000",
        )

    snapshots = _section(content, "SnapshotsSection_Type", "")
    snapshot = etree.SubElement(snapshots, "Snapshot", _attributes(id=vm.active_snapshot_id))
    _text(snapshot, "Type", "ACTIVE")
    _text(snapshot, "Description", "Active VM")
    _text(snapshot, "CreationDate", vm.created.strftime("%Y/%m/%d %H:%M:%S"))


def _section(parent: Element, kind: str, info: str) -> Element:
    section = etree.SubElement(parent, "Section", {_name(XSI, "type"): f"ovf:{kind}"})
    if info:
        _text(section, "Info", info)
    return section


def _item(hardware: Element, caption: str, id: str, kind: str, **fields: str) -> None:
    item = etree.SubElement(hardware, "Item")
    values = {"Caption": caption, "InstanceId": id, "ResourceType": kind} | fields
    for name, value in values.items():
        _text(item, _name(RASD, name), value)


def _text(parent: Element, name: str, text: str) -> None:
    etree.SubElement(parent, name).text = text


def _attributes(**values: str) -> dict[str, str]:
    return {_name(OVF, name): value for name, value in values.items()}


def _name(namespace: str, name: str) -> str:
    return f"{{{namespace}}}{name}"


def _boolean(value: bool) -> str:
    return "true" if value else "false"
