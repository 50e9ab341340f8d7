"""
Single files out of a recovery point: the point is served, and libguestfs looks into it (see `guestfs`).

Paths are those of the guest: its file systems are mounted where its own /etc/fstab (or Windows) has them. Names are
bytes; they are text here by `os.fsdecode`, which every byte survives.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from blockferry import errors
from blockferry.guestfs import appliance, commands
from blockferry.guestfs.appliance import Appliance, Refused
from blockferry.guestfs.commands import Status
from blockferry.jobs import serve
from blockferry.jobs.progress import Progress
from blockferry.jobs.serve import UnixSocket
from blockferry.repository import Manifest, Repository
from blockferry_agent.units import KiB, MiB

_CACHE = 256 * MiB
_AHEAD = 4 * MiB

_INSTEAD = "Try an older point, or `blockferry restore --skip-damaged` to have the rest of the disk."

_ENOUGH = 100
"""Failed reads, after which a file system that still does not answer is not waited for any more."""

_NO_FILES = {"swap", "unknown", ""}
"""What libguestfs calls devices without a file system that it knows."""


class Place(msgspec.Struct, frozen=True):
    """
    A file system.

    name: as libguestfs calls it, such as /dev/sda1 or /dev/vg0/root.  kind: such as "ext4".  size: bytes.
    path: where the guest mounts it; None when it does not, or no guest was recognised.
    """

    name: str
    kind: str
    label: str
    size: int
    path: str | None


class Listed(msgspec.Struct, frozen=True):
    """
    A file. mode: as ls writes it.  mtime: seconds since 1970.  target: of a symbolic link.
    """

    name: str
    mode: str
    uid: int
    gid: int
    size: int
    mtime: float
    target: str | None


class Fetched(msgspec.Struct, frozen=True):
    """A file or directory that was written to `path`."""

    source: str
    path: str


@contextlib.contextmanager
def opened(repository: Repository, point: Manifest, disks: Sequence[str], progress: Progress) -> Iterator[Guest]:
    """
    Look into disks of a recovery point (ids or aliases, empty for all) until the block ends.

    Raises NotFound, Ambiguous, RestoreError without libguestfs, Damaged, RepositoryError.
    """
    with contextlib.ExitStack() as stack:
        damage = _Damage()
        served = stack.enter_context(
            serve.serving(repository, point, disks, UnixSocket(None), None, _CACHE, _AHEAD, damage.note)
        )
        progress.step(f"looking into {', '.join(disk.alias for disk in served)}")
        # libguestfs knows nbd://…?socket=…, and not the scheme for unix sockets.
        uris = [disk.uri.replace("nbd+unix://", "nbd://", 1) for disk in served]
        yield Guest(stack.enter_context(appliance.booted(uris, damage.check)), point, damage)


class _Damage:
    """What of the point could not be read. first: why."""

    def __init__(self) -> None:
        self.first: errors.Error | None = None
        self._count = 0

    def note(self, error: errors.Error) -> None:
        """A read failed. Called by any thread."""
        self.first = self.first or error
        self._count += 1

    def check(self) -> None:
        """Raise Damaged when so many reads failed that no answer will come."""
        if self._count > _ENOUGH:
            assert self.first is not None
            raise errors.Damaged(f"The file system cannot be read: {self.first.message}", _INSTEAD)


class Guest:
    """The file systems of a point. Made by `opened`."""

    def __init__(self, own: Appliance, point: Manifest, damage: _Damage) -> None:
        self._appliance = own
        self._damage = damage
        self._point = point

    def places(self) -> list[Place]:
        """Return all file systems. Raises RestoreError."""
        try:
            paths: dict[str, str] = {}
            for mounts in self._systems.values():
                paths |= {name: path for path, name in mounts.items()}
            return [self._place(name, kind, paths.get(name)) for name, kind in self._kinds.items()]
        except Refused as error:
            raise self._why("The file systems cannot be listed", error) from None

    def mount(self, name: str | None) -> None:
        """
        Mount what paths mean from now on. name: of one file system; None for all, as the guest does.

        Raises NotFound, Ambiguous, RestoreError.
        """
        usable = [each for each, kind in self._kinds.items() if kind not in _NO_FILES]
        self._appliance.ask("umount-all")
        if name is not None:
            if name not in usable:
                raise self._none(f"has no file system {name}")
            self._mount_one(name, "/")
            return
        if len(self._systems) > 1:
            raise errors.Ambiguous(
                f"Recovery point {self._point.id} has {len(self._systems)} guests: {', '.join(self._systems)}.",
                "Say with --filesystem which file system is meant.",
            )
        if self._systems:
            (mounts,) = self._systems.values()
            for path, device in sorted(mounts.items(), key=lambda each: len(each[0])):
                try:
                    self._mount_one(device, path)
                except (errors.RestoreError, errors.Damaged):
                    # Not all that a guest would mount is there: other disks, the network, removable media.
                    if path == "/":
                        raise
        elif len(usable) == 1:
            self._mount_one(usable[0], "/")
        elif usable:
            raise errors.Ambiguous(
                f"Recovery point {self._point.id} has no guest that is recognised, but {len(usable)} file systems: "
                f"{', '.join(usable)}.",
                "Say with --filesystem which one is meant.",
            )
        else:
            raise self._none("has no file system that is recognised")

    def listing(self, path: str) -> list[Listed]:
        """Return what is in a directory, by name, or one file. Raises NotFound, RestoreError."""
        place = _absolute(path)
        found = self._status(place)
        if not stat.S_ISDIR(found.mode):
            return [self._listed(place, posixpath.basename(place), found)]
        with self._reading(place):
            names = sorted(name for name in self._appliance.ask("ls0", place, "-").split(b"\0") if name)
            return [
                self._listed(posixpath.join(place, name), name, status)
                for group in commands.groups(place, names)
                for name, status in zip(group, self._statuses(place, group), strict=True)
            ]

    def archive(self, path: str, output: IO[bytes]) -> None:
        """
        Write a tar archive: of all that is in a directory, or of one file or link.

        Raises NotFound, RestoreError.
        """
        place = _absolute(path)
        found = self._status(place)
        try:
            if stat.S_ISDIR(found.mode):
                with self._reading(place):
                    self._appliance.stream(output.write, "tar-out", place, "-", "numericowner:true", "xattrs:true")
            else:
                self._archive_one(place, found, output)
            output.flush()
        except OSError as error:
            raise errors.RestoreError(f"The archive cannot be written: {error.strerror or error}.") from None

    def fetch(self, path: str, directory: Path) -> Fetched:
        """
        Write a file, or a directory with all that is in it, into a directory, with modes, times and, as root, owners.

        Raises NotFound, Conflict when there is something of that name, RestoreError.
        """
        place = _absolute(path)
        found = self._status(place)
        target = directory.absolute() / (os.fsdecode(posixpath.basename(place)) or "root")
        with _errors_of(target):
            # A guest's programs and devices may come back in it, with the rights that they had there.
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.path.lexists(target):
                raise errors.Conflict(f"{target} is there already.", "Name another directory, or remove it.")
            unpacked = Path(tempfile.mkdtemp(prefix=".blockferry-", dir=directory))
            try:
                self._unpack(path, unpacked)
                if stat.S_ISDIR(found.mode):
                    unpacked.rename(target)
                else:
                    (only,) = unpacked.iterdir()
                    only.rename(target)
            finally:
                shutil.rmtree(unpacked, ignore_errors=True)
        return Fetched(path, str(target))

    def _unpack(self, path: str, directory: Path) -> None:
        """
        Let tar(1) unpack an archive. It does not follow links that the archive made, and goes nowhere else.
        """
        words = ["tar", "--extract", "--preserve-permissions", "--numeric-owner", "--directory", str(directory)]
        if os.geteuid() == 0:
            words += ["--same-owner", "--xattrs", "--xattrs-include=*"]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=said)
            try:
                assert process.stdin is not None
                self.archive(path, process.stdin)
                process.stdin.close()
            except BaseException:
                process.kill()
                raise
            finally:
                status = process.wait()
            if status:
                said.seek(0)
                lines = said.read(64 * KiB).decode(errors="replace").strip().splitlines()
                raise errors.RestoreError(
                    f"Not everything of {path} could be written: {lines[0] if lines else status}."
                )

    def _archive_one(self, place: bytes, found: Status, output: IO[bytes]) -> None:
        header = tarfile.TarInfo(os.fsdecode(posixpath.basename(place)))
        header.mode, header.uid, header.gid = stat.S_IMODE(found.mode), found.uid, found.gid
        header.mtime = found.mtime / 1e9
        with tarfile.open(mode="w|", fileobj=output, format=tarfile.PAX_FORMAT) as archive:
            if stat.S_ISLNK(found.mode):
                header.type = tarfile.SYMTYPE
                header.linkname = self._target(place)
                archive.addfile(header)
            elif stat.S_ISREG(found.mode):
                header.size = found.size
                archive.addfile(header)
                written = 0
                assert archive.fileobj is not None

                def write(data: bytes) -> None:
                    nonlocal written
                    written += len(data)
                    # What is longer than its file system said would be read as other files.
                    assert archive.fileobj is not None
                    archive.fileobj.write(data[: len(data) - max(0, written - found.size)])

                with self._reading(place):
                    self._appliance.stream(write, "download", place, "-")
                if written != found.size:
                    raise errors.RestoreError(
                        f"{os.fsdecode(place)} has {written} bytes, and its file system says {found.size}."
                    )
                padding = -written % tarfile.BLOCKSIZE
                archive.fileobj.write(bytes(padding))
                # By it the archive's end is padded to a whole record: tar(1) reads no further, and hangs up.
                archive.offset += written + padding
            else:
                raise errors.RestoreError(f"{os.fsdecode(place)} is neither a file, nor a directory, nor a link.")

    @functools.cached_property
    def _kinds(self) -> dict[str, str]:
        """What each file system is. Finding out takes a second."""
        return commands.pairs(self._appliance.ask("list-filesystems"))

    @functools.cached_property
    def _systems(self) -> dict[str, dict[str, str]]:
        """What each operating system that is recognised mounts, by path; by its root. Finding out takes seconds."""
        try:
            roots = self._appliance.ask("inspect-os").decode(errors="replace").split()
            return {root: commands.pairs(self._appliance.ask("inspect-get-mountpoints", root)) for root in roots}
        except Refused:
            return {}

    def _place(self, name: str, kind: str, path: str | None) -> Place:
        def fact(command: str) -> str:
            try:
                return self._appliance.ask(command, name).decode(errors="replace").strip()
            except Refused:
                return ""

        size = fact("blockdev-getsize64")
        return Place(name, kind, fact("vfs-label"), int(size) if size.isdecimal() else 0, path)

    def _mount_one(self, device: str, path: str) -> None:
        try:
            self._appliance.ask("mount-ro", device, path)
        except Refused as error:
            raise self._why(f"The file system {device} cannot be mounted", error) from None

    def _status(self, place: bytes) -> Status:
        with self._reading(place):
            return commands.status(self._appliance.ask("lstatns", place))

    def _statuses(self, directory: bytes, names: Sequence[bytes]) -> list[Status]:
        if len(names) > 1:
            return list(commands.statuses(self._appliance.ask("lstatnslist", directory, b" ".join(names))))
        return [commands.status(self._appliance.ask("lstatns", posixpath.join(directory, names[0])))]

    def _listed(self, place: bytes, name: bytes, found: Status) -> Listed:
        return Listed(
            os.fsdecode(name),
            stat.filemode(found.mode),
            found.uid,
            found.gid,
            found.size,
            found.mtime / 1e9,
            self._target(place) if stat.S_ISLNK(found.mode) else None,
        )

    def _target(self, place: bytes) -> str:
        return os.fsdecode(self._appliance.ask("readlink", place).removesuffix(b"\n"))

    def _why(self, what: str, error: Refused) -> errors.Error:
        """Return why something cannot be done: what is damaged in the repository, or what libguestfs says."""
        if self._damage.first is not None:
            return errors.Damaged(f"{what}: {self._damage.first.message}", _INSTEAD)
        return errors.RestoreError(f"{what}: {error.message}.")

    def _none(self, what: str) -> errors.NotFound:
        return errors.NotFound(
            f"Recovery point {self._point.id} {what}.", f"See `blockferry files ls {self._point.vm.name}`."
        )

    @contextlib.contextmanager
    def _reading(self, place: bytes) -> Iterator[None]:
        """Turn what libguestfs says of a path into our errors."""
        path = os.fsdecode(place)
        try:
            yield
        except Refused as error:
            if error.message.endswith("No such file or directory"):
                raise errors.NotFound(f"Recovery point {self._point.id} has no {path}.") from None
            raise self._why(f"{path} cannot be read", error) from None
        except ValueError as error:
            raise errors.RestoreError(f"{path} cannot be read: {error}.") from None


def _absolute(path: str) -> bytes:
    """Return a path as libguestfs wants it. Raises NotFound for one that cannot be any."""
    if "\0" in path:
        raise errors.NotFound("A path has no NUL in it.")
    return posixpath.normpath(b"/" + os.fsencode(path).lstrip(b"/"))


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.RestoreError(f"{path} cannot be written: {error.strerror or error}.") from None
