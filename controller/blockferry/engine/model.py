"""
What the engine knows, as plain values: nothing of the SDK leaves this package.

Sizes are bytes, ids are the engine's UUIDs as text.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from typing import Literal, Protocol

# How a backup is asked for, and how it ran: see "Which backup the engine makes" in the design.
AskedMode = Literal["engine", "live", "hybrid"]
Mode = Literal["live", "hybrid", "cold"]
DiskFormat = Literal["cow", "raw"]


@dataclasses.dataclass(frozen=True)
class Vm:
    """status: when it was looked up, for example "up", "down", "paused"."""

    id: str
    name: str
    status: str
    cluster_id: str


@dataclasses.dataclass(frozen=True)
class Disk:
    """
    A disk of a VM.

    size: virtual size.  format: "cow" (qcow2) or "raw", of the active layer.  active: plugged.
    content_type: "data" or what else the engine keeps in disks.  storage_type: "image", "lun", …
    """

    id: str
    alias: str
    size: int
    format: str
    content_type: str
    storage_type: str
    shareable: bool
    active: bool
    bootable: bool
    interface: str

    @property
    def obstacle(self) -> str | None:
        """Why this disk cannot be in a backup; None when it can. The engine drops some of these without a word."""
        if self.storage_type != "image":
            return f"it is a disk of storage type {self.storage_type}, not an image"
        if self.content_type != "data":
            return f"it holds {self.content_type}, not a guest's data"
        if self.shareable:
            return "it is shareable"
        if not self.active:
            return "it is not active (not plugged into the VM)"
        return None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """
    A point that later backups of the VM can start from.

    parent_id: None for the first of the VM.  state: "created" or "invalid".
    """

    id: str
    parent_id: str | None
    created: datetime.datetime | None
    description: str
    state: str

    @property
    def usable(self) -> bool:
        return self.state == "created"


@dataclasses.dataclass(frozen=True)
class Host:
    """
    A hypervisor.

    id: empty when the user may not see hosts (no administrator): name and address then come from the transfer's URL.
    ssh_port, ssh_fingerprint, ssh_public_key: as the engine saw them when the host was installed; None when it does
    not say.
    """

    id: str
    name: str
    address: str
    status: str
    ssh_port: int | None = None
    ssh_fingerprint: str | None = None
    ssh_public_key: str | None = None


@dataclasses.dataclass(frozen=True)
class BackupDisk:
    """
    A disk in a backup that can be read.

    size: virtual size at the backup.  incremental: its dirty extents are known; else it must be read whole.
    """

    id: str
    alias: str
    size: int
    incremental: bool


@dataclasses.dataclass(frozen=True)
class NewDisk:
    """
    A disk that is to be made. A qcow2 one has incremental backups enabled.

    format: "cow" (qcow2) or "raw".  sparse: thin; else all of it is allocated.
    id: ours to choose, so that it is found when the answer that would have held it is lost.
    size: virtual size.  initial_size: what block storage reserves for its content; a thin volume is not extended
    while it is written from outside a VM.
    """

    id: str
    alias: str
    size: int
    initial_size: int
    format: DiskFormat
    sparse: bool
    storage_domain_id: str
    description: str


@dataclasses.dataclass(frozen=True)
class StorageDomain:
    """available: bytes that are free, as the engine last heard; None when it does not say."""

    id: str
    name: str
    type: str
    available: int | None

    @property
    def is_file(self) -> bool:
        """Volumes are files, which read as zeros where nothing was written, and take no more room than their data."""
        return self.type in ("nfs", "posixfs", "localfs", "glusterfs")


class Transferred(Protocol):
    """A disk that a transfer reads or writes. size: virtual size."""

    @property
    def id(self) -> str: ...

    @property
    def alias(self) -> str: ...

    @property
    def size(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Transfer:
    """
    The right to read one disk of a backup, or to write one disk.

    ticket_id: what Image I/O on `host` knows it by.  transfer_url: Image I/O on that host.  proxy_url: the same through
    the engine's proxy; None when there is none.  size: of the disk.
    """

    id: str
    ticket_id: str
    disk_id: str
    host: Host
    transfer_url: str
    proxy_url: str | None
    size: int


@dataclasses.dataclass(frozen=True)
class JournalEntry:
    """
    Something in the engine that must be ended, by Connection.abandon when this process cannot do it any more.

    description: the backup's, unique to it: finds it when the answer that held its id was never heard.
    backup_id: None before that answer.  transfer_id: None when the entry is about the backup.
    """

    vm_id: str
    description: str
    backup_id: str | None = None
    transfer_id: str | None = None


Journal = Callable[[JournalEntry], None]
