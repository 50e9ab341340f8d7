"""Recovery points that nobody took: manifests with what a test is about."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from blockferry.repository import Carrier, DiskManifest, File, Manifest, Vm
from blockferry.repository.manifest import Bytes

VM = Vm("7ad5b6a9-9a1e-4d35-9d3f-0a37be5a01a1", "web")

_numbers = itertools.count()


def disk(disk_id: str, alias: str | None = None, reason: str | None = None) -> DiskManifest:
    return DiskManifest(
        id=disk_id,
        alias=disk_id if alias is None else alias,
        size=1024,
        format="cow",
        bootable=True,
        interface="virtio",
        backup_mode="full",
        carriers=(Carrier(transport="imageio" if reason else "grpc", start=0, moved=512, reason=reason, remark=None),),
        index=File(0, "0" * 64),
        bytes=Bytes(dirty=1024, read=1024, moved=512, stored=100),
        seconds=0.5,
    )


def point(checkpoint_id: str | None, disks: Sequence[DiskManifest], vm: Vm = VM) -> Manifest:
    """Each is newer than the one before."""
    created = datetime(2026, 11, 22, tzinfo=UTC) + timedelta(minutes=next(_numbers))
    return Manifest(
        id=f"{created:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}",
        vm=vm,
        created=created,
        mode="live",
        backup_mode="full",
        backup_id=str(uuid.uuid4()),
        checkpoint_id=checkpoint_id,
        parent_id=None,
        parent_checkpoint_id=None,
        ovf=None,
        ovf_missing="It was not asked for.",
        controller_version="0",
        seconds=1.25,
        disks=tuple(disks),
    )
