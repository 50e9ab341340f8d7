"""
What a running restore has open in the engine: disks that it makes, or writes to.

One file per disk in the state directory, locked while the disk is written. It is there before the engine is asked for
anything, and until nothing has to be ended any more. A controller that is killed leaves it behind with the lock gone:
the next restore, of whatever disk, finds in the file what to end. A disk that was there before is locked in the engine
until then, so that its VM cannot start; a new one is of no use.
"""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from blockferry import errors, files
from blockferry.engine import Transferred


class OpenDisk(msgspec.Struct, frozen=True):
    """
    A disk of a restore that was not seen to end.

    made_as: the description under which a restore makes it, and by which it is known; None when it was there before.
    transfer_id: of the transfer that writes it, None before there is one.  written: completely, and accepted.
    """

    id: str
    alias: str
    size: int
    made_as: str | None
    transfer_id: str | None = None
    written: bool = False


class Record:
    """
    The record of one disk, which is locked.

    open: what was not seen to end; None when there is nothing.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self.open = _read(path)
        self._path = path

    def begun(self, disk: Transferred, made_as: str | None = None, transfer_id: str | None = None) -> None:
        """Write down what is open, see OpenDisk. Durable when this returns. Raises ConfigError."""
        self._write(OpenDisk(disk.id, disk.alias, disk.size, made_as, transfer_id))

    def written(self, disk: Transferred) -> None:
        """A new disk is complete, but its restore is not. Raises ConfigError."""
        self._write(OpenDisk(disk.id, disk.alias, disk.size, None, written=True))

    def ended(self) -> None:
        """Nothing is open any more. Raises ConfigError."""
        self.open = None
        with _errors_of(self._path):
            self._path.unlink(missing_ok=True)

    def _write(self, disk: OpenDisk) -> None:
        self.open = disk
        with _errors_of(self._path):
            files.replace(self._path, msgspec.json.encode(disk))


@contextlib.contextmanager
def alone(state: Path, disk_id: str) -> Iterator[Record]:
    """
    Open the record of a disk, alone on this machine until the block ends.

    Raises Conflict when another process has it, ConfigError when the state directory cannot be used.
    """
    path = _directory(state) / f"{uuid.UUID(disk_id)}.json"
    with _errors_of(path):
        lock = path.with_suffix(".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.Conflict(
                f"Another restore on this machine writes disk {disk_id}.", "Wait until it has ended."
            ) from None
        yield Record(path)


def left(state: Path) -> Iterator[Record]:
    """Generate the records that restores which are gone left open, each locked while it is looked at."""
    for path in sorted(_directory(state).glob("*.json")):
        with contextlib.suppress(errors.Conflict), alone(state, path.stem) as record:
            if record.open is not None:
                yield record


def _directory(state: Path) -> Path:
    directory = state / "restoring"
    with _errors_of(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _read(path: Path) -> OpenDisk | None:
    with _errors_of(path):
        data = path.read_bytes() if path.exists() else b"null"
    try:
        return msgspec.json.decode(data, type=OpenDisk | None)
    except msgspec.DecodeError:
        # Written whole or not at all, so this is not ours to understand; the engine will say whether a disk is locked.
        return None


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.ConfigError(
            f"The controller's state at {path} cannot be used: {error.strerror or error}.",
            "Make room, or set state in the configuration.",
        ) from None
