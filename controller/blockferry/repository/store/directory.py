"""
A store in a directory of this machine, or of a file server that is mounted here.

An object is a file. obstore's LocalStore writes each beside its place and renames it, without flushing: that is left to
the batch.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obstore.store import LocalStore

from blockferry import errors, files
from blockferry.repository.store import faults
from blockferry.repository.store.contract import Durability, Listed


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

    side_by_side = min(4, os.cpu_count() or 1)
    vouches = False

    def __init__(self, path: Path, durability: Durability = "full") -> None:
        self.url = str(path)
        self._path = path
        self._durability = durability
        with faults.of_a_directory(f"The directory {path} cannot be opened"):
            self._identity = path.stat()
            self._store = LocalStore(path, automatic_cleanup=True)

    def get(self, name: str, limit: int) -> bytes:
        """See `Store.get`."""
        with faults.of_a_directory(f"{self.url}/{name} cannot be read"):
            result = self._store.get(name)
            if result.meta["size"] > limit:
                raise errors.Damaged(f"{self.url}/{name} is damaged: it is longer than it can be.")
            return result.bytes().to_bytes()

    def holds(self, name: str) -> bool:
        """See `Store.holds`."""
        with faults.of_a_directory(f"{self.url}/{name} cannot be looked for"):
            return (self._path / name).is_file()

    def forget(self, name: str) -> None:
        """See `Store.forget`. Pages that are not written yet stay: the batch will hear of them."""
        try:
            with faults.of_a_directory(f"{self.url}/{name} cannot be read"):
                descriptor = os.open(self._path / name, os.O_RDONLY)
        except errors.NotFound:
            return
        try:
            with faults.of_a_directory(f"{self.url}/{name} cannot be read"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def put(self, name: str, data: bytes) -> None:
        """See `Store.put`."""
        _check_still_there(self._path, self._identity)
        with faults.of_a_directory(f"{self.url}/{name} cannot be written"):
            self._store.put(name, data, use_multipart=False)

    def put_new(self, name: str, data: bytes) -> None:
        """See `Store.put_new`."""
        _check_still_there(self._path, self._identity)
        path = self._path / name
        # LocalStore does not list names like this.
        unfinished = path.with_name(f"{path.name}#{secrets.randbits(63)}")
        with faults.of_a_directory(f"{path} cannot be made"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                unfinished.write_bytes(data)
                _give_name(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)

    def listing(self, folder: str) -> Iterator[Listed]:
        """See `Store.listing`."""
        with faults.of_a_directory(f"{self.url}/{folder} cannot be listed"):
            for objects in self._store.list(folder):
                for found in objects:
                    yield Listed(found["path"], found["size"], found["last_modified"].timestamp())

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        try:
            with faults.of_a_directory(f"{self.url}/{name} cannot be deleted"):
                self._store.delete(name)
        except errors.NotFound:
            pass

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

    LocalStore leaves what it writes in the page cache. One syncfs(2) writes it all, for the price of one fsync for
    each of many thousand files. Since Linux 5.8 it also reports what could not be written, but only what failed after
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
        # LocalStore names its own unfinished files like this, and does not list them.
        unfinished = path.with_name(path.name + "#0")
        _check_still_there(self._path, self._identity)
        with faults.of_a_directory(f"{path} cannot be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._flushes:
                _syncfs(self._directory)
            try:
                with unfinished.open("wb") as file:
                    file.write(data)
                    file.flush()
                    if self._flushes:
                        os.fsync(file.fileno())
                unfinished.rename(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            if self._flushes:
                files.make_durable(path.parent)


def _check_still_there(path: Path, identity: os.stat_result) -> None:
    """
    Raise RepositoryError unless the directory is the one that was opened.

    When its file system was unmounted, an empty directory is in its place: LocalStore would make what it misses there.
    """
    try:
        there = os.path.samestat(path.stat(), identity)
    except OSError:
        there = False
    if not there:
        raise errors.RepositoryError(
            f"The repository {path} went away while it was used.", "Mount it again, then run this again."
        )


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
