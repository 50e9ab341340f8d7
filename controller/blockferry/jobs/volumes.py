"""How much room a disk needs as a qcow2 volume."""

from __future__ import annotations

from blockferry.repository import DiskReader
from blockferry_agent.units import KiB, MiB

CLUSTER = 64 * KiB
"""What is allocated at once, as QEMU makes volumes unless it is told otherwise."""

_PER_CLUSTER = 8 + 2
"""Bytes that a cluster of the disk takes in QEMU's tables: where it is, and how often it is used."""

_FIXED = 1 * MiB
"""For the header, the tables of these tables, and the rounding of each to whole clusters."""


def qcow2_space(reader: DiskReader) -> int:
    """
    Return how many bytes a volume needs for what a disk holds: its clusters that are not all zeros, and tables for all.

    Nothing extends a volume on block storage while it is written from outside a VM, so this must never be too little;
    `qemu-img measure` of the same disk says the same, within a few hundred KiB.
    """
    clusters = last = 0
    for entry in reader.entries(0, reader.size):
        end = -(-entry.end // CLUSTER)
        clusters += end - max(entry.start // CLUSTER, last)
        last = end
    return clusters * CLUSTER + -(-reader.size // CLUSTER) * _PER_CLUSTER + _FIXED
