"""
A store in a directory of this machine, or of a file server that is mounted here.

An object is a file. Each is written beside its place, under its name with # and a number behind it, and renamed,
without flushing: that is left to the batch.

obstore's LocalStore does the same, but takes two to seven times as long for objects of a few KiB, and does not notice
when a file cannot be closed, which is how a file server may say that it is full.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blockferry import errors, files
from blockferry.repository.store import faults
from blockferry.repository.store.contract import Durability, Listed

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_TRIES = 10
_UNFINISHED = re.compile(r".+#[0-9]+")
"""Names of files that are being written, or were when their writer was killed."""


def create(path: Path, durability: Durability = "full") -> LocalDirectory:
    """
    Open the store in the directory, and make it when it is not there, for its owner alone.

    Raises RepositoryError.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise faults.from_errno(error.errno, f"The directory {path} cannot be made", reason) from None
    return LocalDirectory(path, durability)


class LocalDirectory:
    """
    The store.

    path: a directory that exists.  durability: what a power failure may cost.
    """

    # On a disk of this machine as fast as one for each processor; a file server answers late.
    side_by_side = 8
    vouches = False

    def __init__(self, path: Path, durability: Durability = "full") -> None:
        self.url = str(path)
        self._path = path
        self._durability = durability
        with faults.of_a_directory(f"The directory {path} cannot be opened"):
            self._identity = path.stat()

    def get(self, name: str, limit: int) -> bytes:
        """See `Store.get`."""
        with faults.of_a_directory(f"{self.url}/{name} cannot be read"):
            descriptor = os.open(f"{self.url}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    # A folder is no object.
                    raise FileNotFoundError
                if status.st_size > limit:
                    raise errors.Damaged(f"{self.url}/{name} is damaged: it is longer than it can be.")
                return _read(descriptor, status.st_size)
            finally:
                os.close(descriptor)

    def holds(self, name: str) -> bool:
        """See `Store.holds`."""
        with faults.of_a_directory(f"{self.url}/{name} cannot be looked for"):
            return (self._path / name).is_file()

    def forget(self, name: str) -> None:
        """See `Store.forget`. Pages that are not written yet stay: the batch will hear of them."""
        try:
            with faults.of_a_directory(f"{self.url}/{name} cannot be read"):
                descriptor = os.open(f"{self.url}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except errors.NotFound:
            return
        try:
            with faults.of_a_directory(f"{self.url}/{name} cannot be read"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def put(self, name: str, data: bytes) -> None:
        """See `Store.put`."""
        with self._writing(f"{self.url}/{name} cannot be written"):
            unfinished = self._write_beside(name, data)
            try:
                unfinished.rename(self._path / name)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise

    def put_new(self, name: str, data: bytes) -> None:
        """See `Store.put_new`."""
        with self._writing(f"{self.url}/{name} cannot be made"):
            unfinished = self._write_beside(name, data)
            try:
                _give_name(unfinished, self._path / name)
            finally:
                unfinished.unlink(missing_ok=True)

    def listing(self, folder: str) -> Iterator[Listed]:
        """See `Store.listing`."""
        with faults.of_a_directory(f"{self.url}/{folder} cannot be listed"):
            yield from _files_in(f"{self.url}/{folder}", folder)

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        self.delete_all([name])

    def delete_all(self, names: Iterable[str]) -> None:
        """See `Store.delete_all`."""
        folders = set()
        for name in names:
            path = self._path / name
            with faults.of_a_directory(f"{path} cannot be deleted"):
                path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            self._remove_if_empty(folder)

    def remove_unfinished(self, before: float) -> list[Listed]:
        """See `Store.remove_unfinished`."""
        removed = []
        with faults.of_a_directory(f"{self.url} cannot be cleared of unfinished files"):
            for path in self._path.rglob("*#*"):
                # Its writer may give it its name at any moment.
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat(follow_symlinks=False)
                    if _UNFINISHED.fullmatch(path.name) and path.is_file() and status.st_mtime < before:
                        path.unlink()
                        removed.append(Listed(str(path.relative_to(self._path)), status.st_size, status.st_mtime))
        return removed

    @contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        """Raise our errors, and nothing but that the directory went away when it does, before this or meanwhile."""
        _check_still_there(self._path, self._identity)
        try:
            with faults.of_a_directory(doing):
                yield
        except errors.NotFound:
            _check_still_there(self._path, self._identity)
            raise

    def _write_beside(self, name: str, data: bytes) -> Path:
        """Write a file beside an object's place, and return its path. Raises OSError; there is no file then."""
        unfinished = self._path / f"{name}#{secrets.randbits(63)}"
        descriptor = _create(unfinished)
        try:
            try:
                _write(descriptor, data)
            finally:
                os.close(descriptor)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return unfinished

    def _remove_if_empty(self, folder: Path) -> None:
        """Remove a folder, and those that it is in, as far as nothing else is in them."""
        while folder != self._path:
            try:
                folder.rmdir()
            except OSError:
                # Almost always: it is not empty.
                return
            folder = folder.parent

    @contextmanager
    def batch(self) -> Iterator[LocalBatch]:
        """See `Store.batch`."""
        with faults.of_a_directory(f"The directory {self.url} cannot be opened"):
            directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield LocalBatch(self._path, self._identity, directory, self._durability)
        finally:
            os.close(directory)


class LocalBatch:
    """
    A batch in a directory.

    What was put is in the page cache. One syncfs(2) writes it all, for the price of one fsync for each of many thousand
    files. Since Linux 5.8 it also reports what could not be written, but only what failed after
    its file descriptor was opened: hence a batch has a beginning, and each its own descriptor.

    path, identity: the store's directory.  directory: descriptor of it; stays the caller's.
    """

    def __init__(self, path: Path, identity: os.stat_result, directory: int, durability: Durability) -> None:
        self._path = path
        self._identity = identity
        self._directory = directory
        self._flushes = durability == "full"

    def flush(self) -> None:
        """See `Batch.flush`."""
        if self._flushes:
            with faults.of_a_directory(f"{self._path} cannot be flushed"):
                _syncfs(self._directory)

    def commit(self, name: str, data: bytes) -> None:
        """See `Batch.commit`."""
        path = self._path / name
        unfinished = path.with_name(f"{path.name}#{secrets.randbits(63)}")
        _check_still_there(self._path, self._identity)
        with faults.of_a_directory(f"{path} cannot be written"):
            descriptor = self._create_after_all_else(unfinished)
            try:
                try:
                    _write(descriptor, data)
                    if self._flushes:
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                unfinished.rename(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            if self._flushes:
                files.make_durable(path.parent)

    def _create_after_all_else(self, path: Path) -> int:
        """Make a file when all else, its folders too, is durable. Return its descriptor. Raises OSError."""
        for _ in range(_TRIES):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                path.parent.mkdir(parents=True, exist_ok=True)
            if self._flushes:
                _syncfs(self._directory)
            # Who deletes may have taken the empty folder away again: flushing takes long.
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, _NEW_FILE, 0o666)
        return os.open(path, _NEW_FILE, 0o666)


def _check_still_there(path: Path, identity: os.stat_result) -> None:
    """
    Raise RepositoryError unless the directory is the one that was opened.

    When its file system was unmounted, an empty directory is in its place, and missing folders would be made there.
    """
    try:
        there = os.path.samestat(path.stat(), identity)
    except OSError:
        there = False
    if not there:
        raise errors.RepositoryError(
            f"The repository {path} went away while it was used.", "Mount it again, then run this again."
        )


def _create(path: Path) -> int:
    """Make a file, and its folders where they are missing. Return its descriptor. Raises OSError."""
    for _ in range(_TRIES):
        try:
            return os.open(path, _NEW_FILE, 0o666)
        except FileNotFoundError:
            # More than once: who deletes may take the folder away again, also while `mkdir` looks at what is there.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, _NEW_FILE, 0o666)


def _files_in(path: str, folder: str) -> Iterator[Listed]:
    """Generate the files in a directory and its directories, but unfinished ones. folder: the directory's own name."""
    try:
        entries = os.scandir(path)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if entry.is_dir():
                yield from _files_in(entry.path, name)
            elif not _UNFINISHED.fullmatch(entry.name):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    # Deleted since.
                    continue
                yield Listed(name, status.st_size, status.st_mtime)


def _read(descriptor: int, length: int) -> bytes:
    """Return what a file holds, `length` bytes, or less when it is shorter by now."""
    data = os.read(descriptor, length)
    while len(data) < length:
        # A signal, or more than 2 GiB.
        more = os.read(descriptor, length - len(data))
        if not more:
            break
        data += more
    return data


def _write(descriptor: int, data: bytes) -> None:
    """Write all of the data."""
    written = os.write(descriptor, data)
    while written < len(data):
        # So the operating system says that there is no room, before it says it.
        written += os.write(descriptor, memoryview(data)[written:])


def _give_name(unfinished: Path, path: Path) -> None:
    """Let a file have another name, too. Raises FileExistsError when that is taken."""
    try:
        path.hardlink_to(unfinished)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # FAT and some network file systems have no hard links. Whoever reads in this moment may see half of it.
        with path.open("xb") as file:
            file.write(unfinished.read_bytes())


_libc = ctypes.CDLL(None, use_errno=True)


def _syncfs(descriptor: int) -> None:
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
