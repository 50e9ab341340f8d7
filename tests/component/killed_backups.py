"""
Backs up into a repository in a directory, or collects it, killed before each system call that changes a file, and looks
at what is left.

    python -m tests.component.killed_backups backup DIRECTORY   prints, for each call, how many points there were then
    python -m tests.component.killed_backups collect DIRECTORY  prints, for each call, how many chunks there were then

A filter of seccomp stops the backup's threads at the calls that count, and nowhere else; ptrace kills the process there.
All that uses the repository is done in children: threads do not live through a fork, so this process must
never have any.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from blockferry.repository import Repository, Times
from blockferry_agent.units import KiB
from tests.unit import repository_images as images

WINDOW = 256 * KiB
OLD = b"old ".ljust(512, b".") * 512
NEW = b"new ".ljust(512, b".") * 512 + OLD

_CALLS = {
    "write": 1,
    "pwrite64": 18,
    "writev": 20,
    "fsync": 74,
    "fdatasync": 75,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "link": 86,
    "unlink": 87,
    "mkdirat": 258,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "syncfs": 306,
    "renameat2": 316,
}
_OPENAT, _O_CREAT = 257, 0o100
"""Opening a file changes something when it may make it."""

_PTRACE_TRACEME, _PTRACE_CONT, _PTRACE_SETOPTIONS = 0, 7, 0x4200
_OPTIONS = 0x8 | 0x80 | 0x100000
"""Threads are traced, too; the filter stops them; they die with this process."""
_SECCOMP_STOP = signal.SIGTRAP | 7 << 8
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def _install_filter() -> None:
    """Let the kernel stop this process, for its tracer, at the calls that change files."""
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    allow, trace = 0x7FFF0000, 0x7FF00000
    numbers = sorted(_CALLS.values())
    last = 5 + len(numbers) + 1
    # A line's jumps are counted from the next line: if equal, if not.
    code = [
        (load, 0, 0, 0),
        (equal, 0, 3, _OPENAT),
        (load, 0, 0, 32),
        (any_bit, last - 4, 0, _O_CREAT),
        (answer, 0, 0, allow),
        *((equal, last - place - 1, 0, number) for place, number in enumerate(numbers, 5)),
        (answer, 0, 0, allow),
        (answer, 0, 0, trace),
    ]
    program = _Program(len(code), b"".join(struct.pack("=HBBI", *line) for line in code))
    if _libc.prctl(38, 1, 0, 0, 0) or _libc.prctl(22, 2, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")


def _fork(action: Callable[[], None]) -> int:
    """Run an action in a child, which ends with status 0 when it succeeded; return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        action()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def killed(action: Callable[[], None], at: int) -> bool:
    """Run an action in a child, and kill it before its changing call number `at`, from 0. Tell whether it came so far."""

    def traced() -> None:
        _ptrace(_PTRACE_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _install_filter()
        action()

    child = _fork(traced)
    os.waitpid(child, 0)
    _ptrace(_PTRACE_SETOPTIONS, child, _OPTIONS)
    _ptrace(_PTRACE_CONT, child)
    calls = 0
    while True:
        pid, status = os.waitpid(-1, _WALL)
        if os.WIFSTOPPED(status):
            signalled = 0
            if status >> 8 == _SECCOMP_STOP:
                if calls == at:
                    os.kill(child, signal.SIGKILL)
                calls += 1
            elif status >> 16 == 0 and os.WSTOPSIG(status) != signal.SIGSTOP:
                signalled = os.WSTOPSIG(status)
            try:
                _ptrace(_PTRACE_CONT, pid, signalled)
            except ProcessLookupError:
                # Killed while it was stopped.
                continue
        elif pid == child:
            if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
                raise RuntimeError(f"It failed by itself before call {at}.")
            return os.WIFSIGNALED(status)


def succeeds(action: Callable[[], None]) -> bool:
    """Run an action in a child; tell whether it succeeded."""
    return os.waitstatus_to_exitcode(os.waitpid(_fork(action), 0)[1]) == 0


def prepare(path: Path) -> None:
    images.full(Repository.init(str(path), WINDOW), OLD)


def prepare_garbage(path: Path) -> None:
    """Make a point, and another one of which a chunk and a page are garbage now, old enough to be removed."""
    repository = Repository.init(str(path), WINDOW)
    deleted = images.full(repository, NEW)
    images.full(repository, OLD)
    repository.delete(deleted)
    for file in path.rglob("*"):
        os.utime(file, (1_000_000, 1_000_000))


def back_up(path: Path) -> None:
    """Add a point: new chunks, some of the base's."""
    repository = Repository.open(str(path))
    images.full(repository, NEW, repository.points()[-1])


def look(path: Path, left: Path) -> None:
    """Fail unless each point is whole and another backup succeeds; write how many points there were."""
    repository = Repository.open(str(path))
    points = repository.points()
    contents = [images.restore(repository, point) for point in points]
    assert contents in ([OLD], [NEW, OLD]), len(points)
    assert repository.verify(points, lambda step: None).damage == ()
    back_up(path)
    assert images.restore(repository, repository.points()[0]) == NEW
    left.write_text(str(len(points)))


def collect(path: Path) -> None:
    """Remove what nobody needs."""
    Repository.open(str(path)).collect(Times(timedelta(), timedelta()), lambda said: None)


def look_collected(path: Path, left: Path) -> None:
    """Fail unless the point is whole, and another collection removes the rest; write how many chunks there were."""
    left.write_text(str(_chunks(path)))
    repository = Repository.open(str(path))
    (point,) = repository.points()
    assert images.restore(repository, point) == OLD
    assert repository.verify([point], lambda step: None).damage == ()
    collect(path)
    assert images.restore(repository, point) == OLD
    # Its chunk, and a page.
    assert _chunks(path) == 2
    for folder in ("locks", "condemned", "rescued", "trash"):
        assert not [file for file in (path / folder).rglob("*") if file.is_file()], folder


def _chunks(path: Path) -> int:
    return sum(file.is_file() for file in (path / "chunks").rglob("*"))


class Story(NamedTuple):
    """What is killed, what was there before, and how the rest is looked at."""

    before: Callable[[Path], None]
    act: Callable[[Path], None]
    look: Callable[[Path, Path], None]


STORIES = {"backup": Story(prepare, back_up, look), "collect": Story(prepare_garbage, collect, look_collected)}


def main(story: Story, directory: Path) -> None:
    """Kill it everywhere; print what each left."""
    assert succeeds(lambda: story.before(directory / "before"))
    held: list[int] = []
    path = directory / "now"
    going = True
    while going:
        shutil.copytree(directory / "before", path)
        going = killed(lambda: story.act(path), at=len(held))
        assert succeeds(lambda: story.look(path, directory / "left")), f"killed before call {len(held)}"
        held.append(int((directory / "left").read_text()))
        shutil.rmtree(path)
    print(json.dumps(held))


if __name__ == "__main__":
    main(STORIES[sys.argv[1]], Path(sys.argv[2]))
