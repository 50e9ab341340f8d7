"""
VMs from configurations: what POST /vms with an OVF document does (ImportVmFromConfigurationCommand).

Imported as a new VM it gets new ids, and new MAC addresses from the pool; else both stay, and neither may be in use
(ImportVmCommandBase).

It makes no disks. Those that the configuration names are attached when they are there and floating; when some are not,
the VM is imported all the same, and only an event tells.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar, cast

from lxml import etree

from tests.lab import domains
from tests.lab.engine import model, ovf, rejections
from tests.lab.engine.context import Context
from tests.lab.engine.database import new_id, new_mac
from tests.lab.engine.vms import Vms

T = TypeVar("T")

MiB = 1024**2

_NAMESPACES = {"ovf": ovf.OVF, "rasd": ovf.RASD, "xsi": ovf.XSI}
_MEMORY = ".//Item[rasd:ResourceType='4']/rasd:VirtualQuantity"
_NICS = ".//Item[rasd:ResourceType='10']"
_INTERFACES = {"VirtIO": "virtio", "VirtIO_SCSI": "virtio_scsi"}


@dataclasses.dataclass(frozen=True)
class Request:
    """
    A VM as a client asks for it.

    name: None: that of the configuration.  regenerate_ids: import it as a new VM, which gets an id of its own.
    """

    configuration: str
    name: str | None
    cluster_id: str
    regenerate_ids: bool


@dataclasses.dataclass(frozen=True)
class _Configuration:
    """memory: bytes."""

    vm_id: str
    name: str
    memory: int
    disks: list[model.Attachment]
    nics: list[model.Nic]


class Imports:
    def __init__(self, context: Context, vms: Vms) -> None:
        self._context = context
        self._db = context.db
        self._vms = vms

    def add(self, request: Request, correlation_id: str) -> model.Vm:
        """Make the VM, down. Raises Rejection when its name or id is taken, or the configuration is none."""
        found = _read(request.configuration)
        name = request.name or found.name
        vm_id = new_id() if request.regenerate_ids else found.vm_id
        with self._db.changed:
            if vm_id in self._db.vms:
                raise rejections.Conflict(
                    "Import VM failed - VM ID already exists in the system. Please remove the VM"
                    f" ({self._db.vms[vm_id].name}) from the system first"
                )
            if any(vm.name == name for vm in self._db.vms.values()):
                raise rejections.Conflict(
                    "Import VM failed - VM Name already exists in the Data Center."
                    " Please rename the VM in the Data Center or choose a different name for the VM to import."
                )
            if request.regenerate_ids:
                nics = [dataclasses.replace(nic, id=new_id(), mac=new_mac()) for nic in found.nics]
            else:
                nics = found.nics
                self._check_macs(nics)
            vm = self._make(vm_id, name, request.cluster_id, found.memory, nics)
            missing = [disk.disk_id for disk in found.disks if not self._attach(vm, disk)]
        if missing:
            self._context.events.add(175, vm, correlation_id, disks=", ".join(missing))
        else:
            self._context.events.add(174, vm, correlation_id)
        return vm

    def _check_macs(self, nics: list[model.Nic]) -> None:
        used = {nic.mac for vm in self._db.vms.values() for nic in vm.nics}
        taken = [nic.mac for nic in nics if nic.mac in used]
        if taken:
            # The engine's own words are not known here.
            raise rejections.Conflict(f"Import VM failed - MAC addresses are in use already: {', '.join(taken)}.")

    def _make(self, vm_id: str, name: str, cluster_id: str, memory: int, nics: list[model.Nic]) -> model.Vm:
        """A VM without disks."""
        host = self._db.spm
        host.define_vm(domains.VmSpec(id=vm_id, name=name, disks=(), memory=memory))
        vm = model.Vm(
            id=vm_id,
            name=name,
            cluster_id=cluster_id,
            host=host,
            memory=memory,
            active_snapshot_id=new_id(),
            attachments=[],
            nics=nics,
        )
        self._db.vms[vm_id] = vm
        return vm

    def _attach(self, vm: model.Vm, disk: model.Attachment) -> bool:
        """Only what nobody else has is attached."""
        if self._db.owners_of(disk.disk_id) or self._context.faults.fails("attach"):
            return False
        try:
            self._vms.attach(vm.id, disk)
        except rejections.Rejection:
            return False
        return True


def _read(text: str) -> _Configuration:
    """Raises Rejection when the text is no configuration."""
    try:
        envelope = etree.fromstring(text.encode())
        system = envelope.find("./Content/Section[@xsi:type='ovf:OperatingSystemSection_Type']", _NAMESPACES)
        return _Configuration(
            vm_id=_attribute(_needed(system), "id"),
            name=_needed(envelope.findtext("./Content/Name")),
            memory=int(_needed(envelope.findtext(_MEMORY, None, _NAMESPACES))) * MiB,
            disks=[_attachment(disk) for disk in envelope.iterfind("./Section/Disk")],
            nics=[_nic(item) for item in envelope.iterfind(_NICS, _NAMESPACES)],
        )
    except (ValueError, LookupError, etree.LxmlError) as error:
        raise rejections.BadParameters("The OVF configuration could not be parsed.") from error


def _attachment(disk: ovf.Element) -> model.Attachment:
    """The first part of the file reference is the disk's id; the second one the volume's, which does not matter."""
    return model.Attachment(
        disk_id=_attribute(disk, "fileRef").partition("/")[0],
        interface=_INTERFACES[_attribute(disk, "disk-interface")],
        logical_name="",
        bootable=_attribute(disk, "boot") == "true",
    )


def _nic(item: ovf.Element) -> model.Nic:
    def field(name: str) -> str:
        return _needed(item.findtext(f"rasd:{name}", None, _NAMESPACES))

    return model.Nic(field("InstanceId"), field("Name"), field("MACAddress"), field("Connection"))


def _needed(value: T | None) -> T:
    if value is None:
        raise LookupError("something that every configuration has is missing")
    return value


def _attribute(element: ovf.Element, name: str) -> str:
    return cast(str, element.attrib[f"{{{ovf.OVF}}}{name}"])
