"""Prove that recovery points can be restored: read every stored object that they need, and check it."""

from __future__ import annotations

from collections.abc import Sequence

from blockferry.jobs.progress import Progress
from blockferry.repository import Manifest, Repository, Step, Verification


def run(repository: Repository, points: Sequence[Manifest], progress: Progress) -> Verification:
    """Verify `points` and return what was found, damage included. Raises RepositoryError."""
    names = {disk.id: f"{point.vm.name} {disk.alias}" for point in points for disk in point.disks}
    begun: str | None = None

    def show(step: Step) -> None:
        nonlocal begun
        if step.disk_id != begun:
            if begun is not None:
                progress.end(begun)
            begun = step.disk_id
            progress.begin(step.disk_id, f"verifying {names[step.disk_id]}", step.size)
        progress.advance(step.disk_id, step.position, step.checked)

    return repository.verify(points, show)
