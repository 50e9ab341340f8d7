"""
Takes a lab away when its owner is gone, however the owner went.

The reaper is a process beside the lab's owner.  It holds one end of a pipe, and the owner the other: when the owner
ends, by `Reaper.release` or by SIGKILL, the reaper kills every process of the lab and removes its directory.  So an
orderly end and a crash take the same path.

Both hold a lock on the lab's `owner` file.  Where nobody holds it (the reaper was killed too), `sweep` clears up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.lab.errors import LabError
from tests.lab.machines import control_group
from tests.lab.processes import MARK

# Sockets of a lab must stay below 108 bytes, so its directory has a short name.
ROOT = Path("/var/tmp")
PREFIX = "bf-"
OWNER = "owner"


class Reaper:
    """
    The reaper of one new lab, seen from the lab's owner.

    directory: made here, readable by everybody, removed by release().
    """

    def __init__(self, directory: Path | None = None) -> None:
        """directory: where the lab shall be; must not exist; short.  Raises LabError when it exists."""
        with _creation_lock():
            if directory is None:
                self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=ROOT))
            else:
                self.directory = directory
                try:
                    directory.mkdir(parents=True)
                except FileExistsError:
                    raise LabError(
                        f"{directory} exists already: run `python -m tests.lab down`, or choose another directory"
                    ) from None
            self.directory.chmod(0o711)
            self._owner = _lock(self.directory)
        assert self._owner is not None, "a new lab has no other owner"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.reaper", str(self.directory)],
            stdin=subprocess.PIPE,
            # The lock is shared with the reaper, and held until both have closed it.
            pass_fds=[self._owner.fileno()],
            cwd=Path(__file__).parents[2],
            # A Ctrl-C in the terminal must not take the reaper with the owner.
            start_new_session=True,
        )

    def release(self) -> None:
        """Have the lab killed and removed.  Returns when nothing of it is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        if self._owner is not None:
            self._owner.close()


def sweep() -> None:
    """Clear up after labs in /var/tmp that have neither an owner nor a reaper any more."""
    with _creation_lock():
        for directory in ROOT.glob(f"{PREFIX}*"):
            owner = _lock(directory) if directory.is_dir() else None
            if owner is not None:
                with owner:
                    reap(directory)


def reap(directory: Path) -> None:
    """
    Kill every process that belongs to a lab, and remove the lab's directory.

    Raises LabError when something is mounted in the directory: nobody knows what would be removed with it.
    """
    # All of a machine at once, before its init can start anything again.
    control_group.remove(directory)
    deadline = time.monotonic() + 30
    while members := members_of(directory):
        if time.monotonic() > deadline:
            raise LabError(f"Processes of {directory} do not end: {sorted(members)}")
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    mounted = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {directory}/" in line]
    if mounted:
        raise LabError(f"{directory} is not removed, because something is mounted there: {mounted}")
    shutil.rmtree(directory, ignore_errors=True)


def members_of(directory: Path) -> set[int]:
    """The processes of a lab and their descendants."""
    parents: dict[int, int] = {}
    members: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        # A process may end while we look at it.
        with contextlib.suppress(OSError):
            # "PID (NAME) STATE PARENT …", and the name may hold anything.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z":
                continue  # dead; its parent has not asked yet
            parents[pid] = int(parent)
            if _belongs(entry, directory):
                members.add(pid)
    while children := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= children
    return members - {os.getpid()}


def _belongs(process: Path, directory: Path) -> bool:
    """
    Whether a process in /proc is the lab's.

    It carries the mark, or its home is in the lab (libvirt gives QEMU an environment of its own), or its errors go to
    a file of the lab (sshd writes its title over its environment).
    """
    environment = (process / "environ").read_bytes().split(b"\0")
    mark, home = f"{MARK}={directory}".encode(), f"HOME={directory}/".encode()
    if any(variable == mark or variable.startswith(home) for variable in environment):
        return True
    return (process / "fd/2").readlink().is_relative_to(directory)


def _lock(directory: Path) -> IO[bytes] | None:
    """Lock the lab's owner file until it is closed.  Returns None when the lab has an owner, or is no lab any more."""
    try:
        owner = (directory / OWNER).open("ab")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner.close()
        return None
    return owner


@contextlib.contextmanager
def _creation_lock() -> Iterator[None]:
    """Nobody sweeps between the making of a directory and the locking of its owner file."""
    root = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(root, fcntl.LOCK_EX)
        yield
    finally:
        os.close(root)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the owner is gone
    reap(Path(sys.argv[1]))
