"""
Where everything lies in a repository.

    repository.json                          the repository's settings: there is a repository when this is there
    keys/<key-id>.json                       the master key of an encrypted repository, wrapped
    chunks/ab/abcd…                          a chunk, named by the BLAKE3 digest of its plain content
    vms/<vm-id>/<point-id>/<disk-id>.index   the root of the index of one disk
    vms/<vm-id>/<point-id>/vm.ovf            the VM's configuration
    vms/<vm-id>/<point-id>/manifest.json     written last: there is a recovery point when this is there
    vms/<vm-id>/<point-id>/pin.json          keeps the point from being pruned and deleted
    trash/<vm-id>/<point-id>.json            the manifest of a deleted point, until the trash is emptied
    locks/<lock-id>.json                     who uses the repository, and for what
    condemned/<lock-id>-<round>              chunks that a collection is about to remove
    rescued/<lock-id>-<round>/<lock-id>      those of them that somebody who was writing needs
    marks/<digest>.json                      a chunk that was found to be damaged
    verified.json                            what `verify --share` has read

Ids come from the engine and from operators: none becomes part of a name before it was checked here.
"""

from __future__ import annotations

import re
import secrets
from datetime import datetime

from blockferry import errors

SETTINGS = "repository.json"
VERIFIED = "verified.json"
KEYS = "keys"
CHUNKS = "chunks"
VMS = "vms"
TRASH = "trash"
LOCKS = "locks"
CONDEMNED = "condemned"
RESCUED = "rescued"
MARKS = "marks"
PIN = "pin.json"

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""Pattern of the ids of VMs and disks."""
POINT_ID = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}"
"""Pattern of the ids of recovery points."""
KEY_ID = r"[0-9a-f]{8}"
"""Pattern of the ids of keys."""
LOCK_ID = r"[0-9a-f]{32}"
"""Pattern of the ids of locks."""
ROUND = LOCK_ID + r"-[0-9]{1,9}"
"""Pattern of the ids of a collection's rounds: the id of its lock, and the round's number."""

_DIGEST = r"[0-9a-f]{64}"


def new_point_id(created: datetime) -> str:
    """Return a new id for a recovery point made at `created` (UTC). Ids sort by time, e.g. 20261122T194314Z-3f9a1c."""
    return f"{created:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def chunk(digest: bytes) -> str:
    """Return the name of the chunk with that BLAKE3 digest (32 bytes)."""
    name = digest.hex()
    return f"{CHUNKS}/{name[:2]}/{name}"


def digest_of(name: str) -> bytes | None:
    """Return the digest of a chunk when `name` is that of one, else None."""
    match name.split("/"):
        case [folder, start, digest]:
            if folder == CHUNKS and re.fullmatch(_DIGEST, digest) and start == digest[:2]:
                return bytes.fromhex(digest)
    return None


def key(key_id: str) -> str:
    """Return the name of a wrapped key. Raises NotFound when the id cannot be one."""
    return f"{KEYS}/{_checked(key_id, KEY_ID, 'key')}.json"


def lock(lock_id: str) -> str:
    """Return the name of a lock. Raises NotFound when the id cannot be one."""
    return f"{LOCKS}/{_checked(lock_id, LOCK_ID, 'lock')}.json"


def lock_id_of(name: str) -> str | None:
    """Return the id of the lock when `name` is that of one, else None."""
    match name.split("/"):
        case [folder, file]:
            lock_id = file.removesuffix(".json")
            if folder == LOCKS and lock_id != file and re.fullmatch(LOCK_ID, lock_id):
                return lock_id
    return None


def condemned(round_id: str) -> str:
    """Return the name of what a round of a collection condemns. Raises NotFound when the id cannot be one."""
    return f"{CONDEMNED}/{_checked(round_id, ROUND, 'round')}"


def round_of(name: str) -> str | None:
    """Return the id of the round when `name` is that of what one condemns, else None."""
    match name.split("/"):
        case [folder, round_id]:
            if folder == CONDEMNED and re.fullmatch(ROUND, round_id):
                return round_id
    return None


def rescued(round_id: str, lock_id: str) -> str:
    """Return the name of what one writer needs of a round. Raises NotFound when an id cannot be one."""
    return f"{rescued_folder(round_id)}/{_checked(lock_id, LOCK_ID, 'lock')}"


def rescued_folder(round_id: str) -> str:
    """Return the folder of what writers need of a round. Raises NotFound when the id cannot be one."""
    return f"{RESCUED}/{_checked(round_id, ROUND, 'round')}"


def mark(digest: bytes) -> str:
    """Return the name of the mark of a damaged chunk."""
    return f"{MARKS}/{digest.hex()}.json"


def marked_digest_of(name: str) -> bytes | None:
    """Return the digest of the chunk that is marked when `name` is that of a mark, else None."""
    match name.split("/"):
        case [folder, file]:
            digest = file.removesuffix(".json")
            if folder == MARKS and digest != file and re.fullmatch(_DIGEST, digest):
                return bytes.fromhex(digest)
    return None


def index(vm_id: str, point_id: str, disk_id: str) -> str:
    """Return the name of a disk's index. Raises NotFound when an id cannot be one."""
    return f"{point_folder(vm_id, point_id)}/{_checked(disk_id, UUID, 'disk')}.index"


def ovf(vm_id: str, point_id: str) -> str:
    """Return the name of a point's OVF. Raises NotFound when an id cannot be one."""
    return f"{point_folder(vm_id, point_id)}/vm.ovf"


def manifest(vm_id: str, point_id: str) -> str:
    """Return the name of a point's manifest. Raises NotFound when an id cannot be one."""
    return f"{point_folder(vm_id, point_id)}/manifest.json"


def vm_folder(vm_id: str) -> str:
    """Return the folder of a VM's points. Raises NotFound when the id cannot be one."""
    return f"{VMS}/{_checked(vm_id, UUID, 'VM')}"


def point_folder(vm_id: str, point_id: str) -> str:
    """Return the folder of a point. Raises NotFound when an id cannot be one."""
    return f"{vm_folder(vm_id)}/{_checked(point_id, POINT_ID, 'recovery point')}"


def pin(vm_id: str, point_id: str) -> str:
    """Return the name of what keeps a point. Raises NotFound when an id cannot be one."""
    return f"{point_folder(vm_id, point_id)}/{PIN}"


def trashed(vm_id: str, point_id: str) -> str:
    """Return the name of a deleted point's manifest. Raises NotFound when an id cannot be one."""
    vm_id, point_id = _checked(vm_id, UUID, "VM"), _checked(point_id, POINT_ID, "recovery point")
    return f"{TRASH}/{vm_id}/{point_id}.json"


def trashed_point_of(name: str) -> tuple[str, str] | None:
    """Return (vm id, point id) when `name` is that of a deleted point's manifest, else None."""
    match name.split("/"):
        case [folder, vm_id, file]:
            point_id = file.removesuffix(".json")
            if folder == TRASH and point_id != file and _are_ids(vm_id, point_id):
                return vm_id, point_id
    return None


def point_of(name: str) -> tuple[str, str] | None:
    """Return (vm id, point id) when `name` is that of a manifest, else None."""
    match name.split("/"):
        case [folder, vm_id, point_id, "manifest.json"]:
            if folder == VMS and _are_ids(vm_id, point_id):
                return vm_id, point_id
    return None


def point_with(name: str) -> tuple[str, str] | None:
    """Return (vm id, point id) when `name` is that of an object in a point's folder, else None."""
    match name.split("/"):
        case [folder, vm_id, point_id, _]:
            if folder == VMS and _are_ids(vm_id, point_id):
                return vm_id, point_id
    return None


def _are_ids(vm_id: str, point_id: str) -> bool:
    return bool(re.fullmatch(UUID, vm_id) and re.fullmatch(POINT_ID, point_id))


def _checked(value: str, pattern: str, noun: str) -> str:
    if not re.fullmatch(pattern, value):
        raise errors.NotFound(f"{value!r} is not the id of a {noun}.")
    return value
