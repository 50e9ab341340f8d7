"""Prove that recovery points can be restored: read every stored object that they need, and check it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from blockferry.jobs.progress import Progress
from blockferry.repository import Manifest, Repository, Step, Verification

_STORED = "stored chunks"
"""What is read in no disk's order, for people."""


def run(
    repository: Repository, points: Sequence[Manifest], vm_id: str | None, progress: Progress, share: float = 1.0
) -> Verification:
    """
    Verify `points` and return what was found, damage included. share: of the content is read; see `Repository.verify`.

    vm_id: of the VM whose points they are; None: those of all VMs. Manifests that cannot be read count for their VM.

    Raises RepositoryError.
    """
    names = {disk.id: f"{point.vm.name} {disk.alias}" for point in points for disk in point.disks}
    begun: str | None = ""

    def show(step: Step) -> None:
        nonlocal begun
        if step.disk_id != begun:
            if begun:
                progress.end(begun)
            begun = step.disk_id
            what = _STORED if step.disk_id is None else names[step.disk_id]
            progress.begin(step.disk_id or _STORED, f"verifying {what}", step.size)
        progress.advance(step.disk_id or _STORED, step.position, step.checked)

    found = repository.verify(points, show, share)
    unreadable = tuple(lost for lost in found.unreadable if vm_id in (None, lost.vm_id))
    return msgspec.structs.replace(found, unreadable=unreadable)
