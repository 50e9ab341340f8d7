"""
Where everything lies in a repository.

    repository.json                          the repository's settings: there is a repository when this is there
    chunks/ab/abcd…                          a chunk, named by the BLAKE3 digest of its plain content
    vms/<vm-id>/<point-id>/<disk-id>.index   the root of the index of one disk
    vms/<vm-id>/<point-id>/vm.ovf            the VM's configuration
    vms/<vm-id>/<point-id>/manifest.json     written last: there is a recovery point when this is there

Ids come from the engine and from operators: none becomes part of a name before it was checked here.
"""

from __future__ import annotations

import re
import secrets
from datetime import datetime

from blockferry import errors

SETTINGS = "repository.json"
VMS = "vms"

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""Pattern of the ids of VMs and disks."""
POINT_ID = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}"
"""Pattern of the ids of recovery points."""


def new_point_id(created: datetime) -> str:
    """Return a new id for a recovery point made at `created` (UTC). Ids sort by time, e.g. 20261122T194314Z-3f9a1c."""
    return f"{created:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def chunk(digest: bytes) -> str:
    """Return the name of the chunk with that BLAKE3 digest (32 bytes)."""
    name = digest.hex()
    return f"chunks/{name[:2]}/{name}"


def index(vm_id: str, point_id: str, disk_id: str) -> str:
    """Return the name of a disk's index. Raises NotFound when an id cannot be one."""
    return f"{_folder(vm_id, point_id)}/{_checked(disk_id, UUID, 'disk')}.index"


def ovf(vm_id: str, point_id: str) -> str:
    """Return the name of a point's OVF. Raises NotFound when an id cannot be one."""
    return f"{_folder(vm_id, point_id)}/vm.ovf"


def manifest(vm_id: str, point_id: str) -> str:
    """Return the name of a point's manifest. Raises NotFound when an id cannot be one."""
    return f"{_folder(vm_id, point_id)}/manifest.json"


def vm_folder(vm_id: str) -> str:
    """Return the folder of a VM's points. Raises NotFound when the id cannot be one."""
    return f"{VMS}/{_checked(vm_id, UUID, 'VM')}"


def point_of(name: str) -> tuple[str, str] | None:
    """Return (vm id, point id) when `name` is that of a manifest, else None."""
    match name.split("/"):
        case [folder, vm_id, point_id, "manifest.json"]:
            if folder == VMS and re.fullmatch(UUID, vm_id) and re.fullmatch(POINT_ID, point_id):
                return vm_id, point_id
    return None


def _folder(vm_id: str, point_id: str) -> str:
    return f"{vm_folder(vm_id)}/{_checked(point_id, POINT_ID, 'recovery point')}"


def _checked(value: str, pattern: str, noun: str) -> str:
    if not re.fullmatch(pattern, value):
        raise errors.NotFound(f"{value!r} is not the id of a {noun}.")
    return value
