"""
The manifest: the small document that commits one recovery point.

Readers accept fields that they do not know, so that a later version may add some; a later `format` they refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec

from blockferry import errors
from blockferry.repository import documents, layout
from blockferry_agent.units import MiB

FORMAT: Final = 1
MAX_ENCODED = 16 * MiB
"""Bytes."""

# No file and no disk is longer.
Length = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Python's $ would let a line end behind it through.
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Uuid = Annotated[str, msgspec.Meta(pattern=rf"^{layout.UUID}\Z")]
PointId = Annotated[str, msgspec.Meta(pattern=rf"^{layout.POINT_ID}\Z")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Mode = Literal["live", "hybrid", "cold"]
BackupMode = Literal["full", "incremental"]


class Vm(msgspec.Struct, frozen=True):
    """The VM as the engine knew it."""

    id: Uuid
    name: str


class File(msgspec.Struct, frozen=True):
    """A file beside the manifest. length: bytes.  blake3: digest of its content, in hexadecimal."""

    length: Length
    blake3: Digest


class Bytes(msgspec.Struct, frozen=True):
    """
    What a backup cost, in bytes, so that every factor can be seen.

    dirty: the engine said it changed (everything, in a full backup).  read: read on the host.
    moved: content that went to the controller.  stored: written to the repository, with the index.
    """

    dirty: Length
    read: Length
    moved: Length
    stored: Length


class Carrier(msgspec.Struct, frozen=True, kw_only=True):
    """
    A transport that carried a part of a disk, to where the next one began or to the disk's end.

    start: first byte of the part.  moved: bytes of content that went to the controller this way.
    reason: why no better one did, or how the one before it broke; None for the first choice.
    remark: what must be known of the way, such as "clear text"; None when there is nothing.
    """

    transport: str
    start: Length
    moved: Length
    reason: str | None
    remark: str | None


class DiskManifest(msgspec.Struct, frozen=True, kw_only=True):
    """
    One disk at one point.

    size: bytes.  format: as the engine calls it, "raw" or "cow".  backup_mode: what was read of it.
    carriers: what carried it, in disk order; the same transport may come again.
    index: root of its index.  seconds: from its first block to its last.
    """

    id: Uuid
    alias: str
    size: Length
    format: str
    bootable: bool
    interface: str
    backup_mode: BackupMode
    carriers: tuple[Carrier, ...]
    index: File
    bytes: Bytes
    seconds: float


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """
    One recovery point.

    created: when the backup began (UTC).  mode: which backup the engine made.
    backup_mode: "incremental" when any of its disks was read incrementally.
    checkpoint_id: made by this backup, None when the engine makes none (all disks raw).
    parent_id, parent_checkpoint_id: the point and checkpoint that this one was read against, None in a full backup.
    ovf: the VM's configuration; None when there is none, and ovf_missing says why.
    seconds: from the start of the backup in the engine to the commit.
    tags: given by the operator, to keep points of different kinds by different policies.
    """

    format: Literal[1] = FORMAT
    id: PointId
    vm: Vm
    created: Moment
    mode: Mode
    backup_mode: BackupMode
    backup_id: str
    checkpoint_id: str | None
    parent_id: PointId | None
    parent_checkpoint_id: str | None
    ovf: File | None
    ovf_missing: str | None
    controller_version: str
    seconds: float
    disks: tuple[DiskManifest, ...]
    tags: tuple[str, ...] = ()

    def disk(self, disk_id: str) -> DiskManifest:
        """Return one disk of this point. Raises NotFound."""
        for disk in self.disks:
            if disk.id == disk_id:
                return disk
        raise errors.NotFound(f"Recovery point {self.id} of VM {self.vm.name} has no disk {disk_id}.")


class Unreadable(msgspec.Struct, frozen=True):
    """
    A recovery point that is not known, because its manifest cannot be read.

    vm_id, point_id: from the manifest's name.  name: of the manifest, within the repository.  reason: sentences.
    """

    vm_id: str
    point_id: str
    name: str
    reason: str


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as it is stored: JSON that a person can read."""
    return documents.encode(manifest)


def decode(data: bytes, vm_id: str, point_id: str, where: str) -> Manifest:
    """
    Return the manifest in `data`, of the point with these ids. where: for errors.

    Raises Damaged, also when it is that of another point, or RepositoryError for another format.
    """
    point = documents.decode(data, Manifest, FORMAT, where)
    if (point.vm.id, point.id) != (vm_id, point_id):
        raise errors.Damaged(f"{where} is damaged: it is the manifest of point {point.id} of VM {point.vm.id}.")
    return point


@contextmanager
def way_out(vm_id: str, point_id: str) -> Iterator[None]:
    """Add to Damaged, while a point's manifest is read, what can be done: no backup mends it."""
    try:
        yield
    except errors.Damaged as error:
        raise errors.Damaged(
            error.message,
            "Put a copy of that file back, or give the point up, for good: "
            f"`blockferry delete {vm_id} {point_id} --unreadable`.",
        ) from None
