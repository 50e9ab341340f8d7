"""
VMs as libvirt domains, defined the way vdsm defines them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from tests.lab.storage import Format

Bus = Literal["virtio", "virtio-scsi"]
State = Literal["up", "down", "paused"]


@dataclasses.dataclass(frozen=True)
class DiskSpec:
    """
    A disk of a VM.

    id: the engine's disk id (vdsm's imageID), the serial number that the guest sees.
    volume_id: the engine's disk image id (vdsm's volumeID): the active volume.
    target: device name on the bus, "vda" or "sda": the export's name in a live backup.
    path: the active volume.  size: virtual size in bytes.
    """

    id: str
    volume_id: str
    target: str
    bus: Bus
    format: Format
    path: Path
    size: int


@dataclasses.dataclass(frozen=True)
class VmSpec:
    """A VM.  memory: bytes."""

    id: str
    name: str
    disks: tuple[DiskSpec, ...]
    memory: int
