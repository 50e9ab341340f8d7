"""
An independent copy of every disk that a backup reads: nbdcopy of the same export while the backup is open.

    with witness.watching(lab, directory) as copies:
        … run a backup …
        copies.take()          {disk id: raw file}, of all disks that were read since the last take
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.lab import exports
from tests.lab.lab import Lab, Vm


class Copies:
    """The copies, in one directory."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._directory = directory
        self._lock = threading.Lock()
        self._taken: dict[str, Path] = {}

    def take(self, vm: Vm | None = None) -> dict[str, Path]:
        """Return the raw copies by disk id, of one VM or of all, and begin anew."""
        with self._lock:
            ids = list(self._taken) if vm is None else [disk.id for disk in vm.disks if disk.id in self._taken]
            return {disk_id: self._taken.pop(disk_id) for disk_id in ids}

    def copy(self, ticket: dict[str, object]) -> None:
        """Copy the disk behind a ticket, if it is for reading."""
        if ticket["ops"] != ["read"]:
            return
        transfer_id = str(ticket["transfer_id"])
        path = self._directory / f"{transfer_id}.raw"
        exports.copy(str(ticket["url"]), path)
        with self._lock:
            self._taken[self._lab.engine.disk_of(transfer_id)] = path


@contextlib.contextmanager
def watching(lab: Lab, directory: Path) -> Iterator[Copies]:
    """Copy every disk that is offered for reading, into `directory`, until the block ends."""
    copies = Copies(lab, directory)
    for host in lab.hosts:
        host.before_ticket = copies.copy
    try:
        yield copies
    finally:
        for host in lab.hosts:
            host.before_ticket = None


def equal(one: Path, other: Path) -> bool:
    """Whether two raw files are the same, byte for byte, size included."""
    return _digest(one) == _digest(other)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
