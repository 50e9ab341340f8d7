"""
Live backups and checkpoints through libvirt, in vdsm's words.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class BackupDisk:
    """
    A disk in a live backup.

    checkpoint: the disk becomes part of the new checkpoint (never for raw disks).
    scratch: qcow2 volume of the disk's current virtual size, made by the caller, who also removes it
    after `stop_backup`.
    """

    disk_id: str
    checkpoint: bool
    mode: Literal["full", "incremental"]
    scratch: Path


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """
    A checkpoint as the engine remembers it, to be told to libvirt again after a VM's restart.

    created: seconds since the epoch.  disk_ids: the disks that hold its bitmap.
    """

    id: str
    created: int
    disk_ids: tuple[str, ...]
