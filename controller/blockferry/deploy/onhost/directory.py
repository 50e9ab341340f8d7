"""
The agent's directory, and nothing outside of it:

    .blockferry-agent          marks the directory as ours; without it nothing is touched
    lock                       held (flock) by who changes anything, so it is free as soon as that process ends
    bundles/<sha256>/          unpacked bundles
    releases/<name>/           see `releases`
    current, previous          links to the release in force, and to the one before it
    run, log                   only where a process of the login's user is the agent (`processes`)

What is complete by its name is on the disk: a power cut leaves nothing in force of which parts are missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from blockferry.deploy.onhost.refusal import Busy, Refused

MARKER = ".blockferry-agent"
MARKER_TEXT = (
    "This directory belongs to Blockferry's agent: `blockferry agent remove` deletes it with all that is in it.\n"
)


class Directory:
    """path: of the directory, which may be missing; its parents are as they really are."""

    def __init__(self, path: str) -> None:
        """Raises Refused when somebody else than root (or the user who logs in) could put something else there."""
        given = Path(path)
        self.path = Path(os.path.realpath(given.parent)) / given.name
        check_way(self.path)

    @property
    def is_ours(self) -> bool:
        return (self.path / MARKER).is_file()

    def claim(self) -> None:
        """Make the directory ours if it is new or empty. Raises Refused."""
        try:
            self.path.mkdir(mode=0o755, exist_ok=True)
            # In this order: the marker is the first file of a directory that another deployment claims just now.
            if any(self.path.iterdir()) and not self.is_ours:
                raise Refused(
                    f"{self.path} has files in it that are not Blockferry's.", "Choose another agent.directory."
                )
            if not self.is_ours:
                (self.path / MARKER).write_text(MARKER_TEXT)
        except OSError as error:
            raise Refused(
                f"{error.filename} cannot be made: {error.strerror}.",
                "Its parent must exist and be writable for the user who logs in; or choose another agent.directory.",
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from changing the directory. Raises Busy."""
        path = self.path / "lock"
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"Another deployment works in {self.path}.", "Try again when it has ended.") from None
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise Busy(f"{self.path} was removed a moment ago.", "Try again.")
            yield

    def delete(self) -> None:
        """Delete the directory. The marker goes last: a deletion that was cut off can be repeated."""
        for path in self.path.iterdir():
            if path.name != MARKER:
                delete(path)
        (self.path / MARKER).unlink()
        self.path.rmdir()


def check_way(path: Path) -> None:
    """
    Raise Refused when others could put something else at `path`.

    As root, nothing is done in a directory that, or a parent of which, another user can change.
    """
    ours = {0, os.geteuid()}
    for place in (path, *path.parents):
        try:
            found = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # its parent says why
        if not stat.S_ISDIR(found.st_mode):
            raise Refused(f"{place} is no directory.", "Choose another agent.directory.")
        # In a sticky directory, such as /tmp, nobody can replace what is another's.
        is_open = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (found.st_mode & stat.S_ISVTX and place != path)
        if os.geteuid() == 0 and (found.st_uid not in ours or is_open):
            raise Refused(
                f"{place} can be changed by others than root.",
                "Take their rights away (chown root, chmod go-w), or choose another agent.directory.",
            )


def replace(path: Path, data: bytes, mode: int, group: int | None = None) -> None:
    """Write a file completely or not at all, durably, in place of what was there."""
    partial = path.with_name(f".{path.name}.new")
    unlink(partial)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        if group is not None:
            os.fchown(file.fileno(), -1, group)
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    make_durable(path.parent)


def link(path: Path, target: str) -> None:
    """Point a symbolic link to `target`, in one step and durably."""
    new = path.with_name(f".{path.name}.new")
    unlink(new)
    new.symlink_to(target)
    new.replace(path)
    make_durable(path.parent)


def delete(path: Path) -> None:
    """Delete a file, a link or a directory with all that is in it; nothing when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        unlink(path)


def unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def make_durable(path: Path) -> None:
    """Have a file's content, or a directory's entries, on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_tree_durable(path: Path) -> None:
    """Have a directory with all that is in it on the disk, before its new name makes it count."""
    for found in (path, *path.rglob("*")):
        if not found.is_symlink():
            make_durable(found)
