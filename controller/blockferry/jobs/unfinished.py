"""
What a running restore has open in the engine: the transfer through which it writes a disk.

One file per disk in the state directory, locked while the disk is written. A controller that is killed leaves its file
behind with the lock gone, and the disk locked in the engine, so that its VM cannot start. The next restore of that disk
finds in the file which transfer to end.
"""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from collections.abc import Iterator
from pathlib import Path

from blockferry import errors, files


class Record:
    """
    The record of one disk.

    transfer_id: of a transfer that was not seen to end; None when there is none.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self.transfer_id = (path.read_text().strip() or None) if path.exists() else None

    def begun(self, transfer_id: str) -> None:
        """Write down a transfer. Durable when this returns. Raises ConfigError."""
        with _errors_of(self._path):
            files.replace(self._path, f"{transfer_id}\n".encode())
        self.transfer_id = transfer_id

    def ended(self) -> None:
        """The transfer was seen to end. Raises ConfigError."""
        with _errors_of(self._path):
            self._path.unlink(missing_ok=True)
        self.transfer_id = None


@contextlib.contextmanager
def alone(state: Path, disk_id: str) -> Iterator[Record]:
    """
    Open the record of a disk, alone on this machine until the block ends.

    Raises Conflict when another process has it, ConfigError when the state directory cannot be used.
    """
    directory = state / "restoring"
    name = str(uuid.UUID(disk_id))
    with _errors_of(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / f"{name}.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.Conflict(
                f"Another restore on this machine writes disk {disk_id}.", "Wait until it has ended."
            ) from None
        with _errors_of(directory):
            record = Record(directory / f"{name}.transfer")
        yield record


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.ConfigError(
            f"The controller's state at {path} cannot be used: {error.strerror or error}.",
            "Make room, or set state in the configuration.",
        ) from None
