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

    left_open: what an earlier run left behind; None when it ended well.
    """

    def __init__(self, path: Path) -> None:
        self.left_open = _read(path)
        self._path = path
        self._lock = threading.Lock()
        self._current: OpenBackup | None = None

    def record(self, entry: JournalEntry) -> None:
        """Write down what the engine is asked for, or has made. Durable when this returns."""
        with self._lock:
            if self._current is None or self._current.description != entry.description:
                self._current = OpenBackup(entry.vm_id, entry.description)
            if entry.backup_id is not None:
                self._current.backup_id = entry.backup_id
            if entry.transfer_id is not None:
                self._current.transfer_ids.append(entry.transfer_id)
            self._write()

    def ended(self) -> None:
        """Strike out what was written down: all of it was seen to end."""
        with self._lock:
            self._current = None
            self._write()

    def _write(self) -> None:
        files.replace(self._path, msgspec.json.encode(self._current))


@contextlib.contextmanager
def opened(state: Path, vm_id: str) -> Iterator[Journal]:
    """
    Open the journal of a VM, alone on this machine until the block ends.

    Raises Conflict when another process has it, ConfigError when the state directory cannot be written.
    """
    directory = state / "running"
    name = str(uuid.UUID(vm_id))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / f"{name}.lock").open("w")
    except OSError as error:
        raise errors.ConfigError(
            f"The state directory {state} cannot be written: {error}.", "Set state in the configuration."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.Conflict(
                f"Another backup of VM {vm_id} runs on this machine.", "Wait until it has ended."
            ) from None
        yield Journal(directory / f"{name}.json")


def _read(path: Path) -> OpenBackup | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=OpenBackup | None)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        # Written whole or not at all, so this is not ours to understand; the engine will say whether a backup is open.
        return None
