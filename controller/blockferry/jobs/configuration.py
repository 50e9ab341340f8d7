"""
A VM's configuration: what a restore reads in an OVF document of oVirt's kind, and what it changes.

It is changed as text. An XML library would write prefixes of its own, and the engine's reader looks at theirs.

A disk is named in three places, always as the first part of "DISK/VOLUME":

    <File ovf:href="DISK/VOLUME" …/>                     one for each volume
    <Disk ovf:fileRef="DISK/VOLUME" …/>                  the same
    <Item> … <rasd:HostResource>DISK/VOLUME<…            one for each disk, with <rasd:StorageId>
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.sax.saxutils import unescape

from blockferry import errors

_CLUSTER = re.compile(r"<ClusterName>(.*?)</ClusterName>", re.DOTALL)
_PARTS = re.compile(r"<(File|Disk|Item)\b(?:[^>]*/>|.*?</\1>)", re.DOTALL)
_UUID = r"([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"
_DISK = re.compile(rf"""(?:href=["']|fileRef=["']|HostResource>){_UUID}""")
_STORAGE = re.compile(rf"StorageId>{_UUID}<")


def cluster_name(ovf: str) -> str:
    """Return the name of the cluster that the VM was in. Raises NotFound."""
    found = _CLUSTER.search(ovf)
    if found is None or not found[1]:
        raise errors.NotFound("The VM's configuration names no cluster.", "Name one with --cluster.")
    return unescape(found[1])


def storage_domains(ovf: str) -> dict[str, str]:
    """Return the ids of the storage domains that the disks were in, by the disks' ids; some may be missing."""
    domains = {}
    for part in _PARTS.finditer(ovf):
        disk, storage = _DISK.search(part[0]), _STORAGE.search(part[0])
        if disk and storage:
            domains[disk[1].lower()] = storage[1].lower()
    return domains


def disk_order(ovf: str) -> list[str]:
    """Return the ids of the disks in the order in which the VM has them."""
    # Every part names the disk that it belongs to, and each list has the same order; dict keeps the first of each.
    named = (_DISK.search(part[0]) for part in _PARTS.finditer(ovf))
    return list(dict.fromkeys(disk[1].lower() for disk in named if disk))


def with_disks(ovf: str, ids: Mapping[str, str]) -> str:
    """
    Return the configuration with other disks.

    ids: of the disks that are to stay, what each shall be called. The others are left out: the engine would attach
    whatever has their ids.
    """

    def replaced(part: re.Match[str]) -> str:
        disk = _DISK.search(part[0])
        if disk is None:
            return part[0]
        new = ids.get(disk[1].lower())
        return "" if new is None else part[0].replace(disk[1], new)

    return _PARTS.sub(replaced, ovf)
