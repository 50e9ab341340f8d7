"""
What a running backup has open in the engine, written down before anything else happens.

One file per VM in the state directory, locked while the backup runs. A controller that is killed leaves its file behind
with the lock gone: the next backup of that VM finds in it what to finalize. The engine cannot tell: it never says which
transfer belongs to which backup (ovirt-facts, 2.7).
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from blockferry import errors, files
from blockferry.engine import JournalEntry


class OpenBackup(msgspec.Struct):
    """
    A backup that was not seen to end.

    description: the backup's; finds it when the answer that held its id was never heard.
    backup_id: None until that answer.  transfer_ids: its image transfers.
    """

    vm_id: str
    description: str
    backup_id: str | None = None
    transfer_ids: list[str] = []


class Journal:
    """
    The open journal of one VM. Its methods may be called from any thread.

    open: backups that were not seen to end, of this run and of earlier ones.
    """

    def __init__(self, path: Path) -> None:
        self.open = _read(path)
        self._path = path
        self._lock = threading.Lock()

    def record(self, entry: JournalEntry) -> None:
        """Write down what the engine is asked for, or has made. Durable when this returns. Raises ConfigError."""
        with self._lock:
            if not self.open or self.open[-1].description != entry.description:
                self.open.append(OpenBackup(entry.vm_id, entry.description))
            current = self.open[-1]
            if entry.backup_id is not None:
                current.backup_id = entry.backup_id
            if entry.transfer_id is not None:
                current.transfer_ids.append(entry.transfer_id)
            self._write()

    def ended(self, backup: OpenBackup) -> None:
        """Strike out a backup that was seen to end. Raises ConfigError."""
        with self._lock:
            self.open.remove(backup)
            self._write()

    def _write(self) -> None:
        with _errors_of(self._path):
            files.replace(self._path, msgspec.json.encode(self.open))


@contextlib.contextmanager
def opened(state: Path, vm_id: str) -> Iterator[Journal]:
    """
    Open the journal of a VM, alone on this machine until the block ends.

    Raises Conflict when another process has it, ConfigError when the state directory cannot be written.
    """
    directory = state / "running"
    name = str(uuid.UUID(vm_id))
    with _errors_of(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / f"{name}.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.Conflict(
                f"Another backup of VM {vm_id} runs on this machine.", "Wait until it has ended."
            ) from None
        yield Journal(directory / f"{name}.json")


def _read(path: Path) -> list[OpenBackup]:
    try:
        with _errors_of(path):
            data = path.read_bytes() if path.exists() else b"[]"
        return msgspec.json.decode(data, type=list[OpenBackup])
    except msgspec.DecodeError:
        # Written whole or not at all, so this is not ours to understand; the engine will say whether a backup is open.
        return []


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.ConfigError(
            f"The controller's state at {path} cannot be used: {error.strerror or error}.",
            "Make room, or set state in the configuration.",
        ) from None
