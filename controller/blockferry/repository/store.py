"""
The place that holds a repository: named objects, and nothing that knows what they mean.

This is the border where obstore's exceptions become ours. An object is replaced whole or not at all, for every reader;
whether it survives a power failure is decided by the batch it was put in:

    with store.batch() as batch:
        store.put("chunks/…", data)             may be lost, or torn, until…
        batch.commit("vms/…/manifest.json", m)  …this: all that was put since the batch began is durable, then m is
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from obstore import exceptions as obstore_exceptions
from obstore.store import LocalStore

from blockferry import errors


class Store(Protocol):
    """
    Named objects under one URL. May be used by several threads, and several controllers, at once.

    Raises RepositoryFull when there is no room, and RepositoryError for whatever else the storage says.
    """

    @property
    def url(self) -> str:
        """Where the objects are, for messages; no slash at the end."""

    def get(self, name: str, limit: int) -> bytes:
        """Return the object. Raises NotFound, and Damaged when it is longer than `limit` bytes."""

    def forget(self, name: str) -> None:
        """
        Let the next `get` read what the storage has, and not what this machine remembers of the object.

        When the kernel fails to write a page of a file, it says so once, and may keep the page as if it was written.
        """

    def put(self, name: str, data: bytes) -> None:
        """Make or replace the object. After an error there is the old one, or none."""

    def names(self, folder: str) -> Iterator[str]:
        """Generate the names of all objects in the folder and its folders, in no order."""

    def delete(self, name: str) -> None:
        """Delete the object; it is no error when there is none."""

    def batch(self) -> AbstractContextManager[Batch]:
        """Begin a batch. The caller leaves it, whether it committed or not."""


class Batch(Protocol):
    """What was put into the store since a moment, by anyone."""

    def commit(self, name: str, data: bytes) -> None:
        """Make what was put durable, and only then put `name`, durable when this returns."""


def create(url: str) -> Store:
    """
    Open the store at `url`, and make it when it is not there, for its owner alone: it holds what the VMs' disks hold.

    Raises RepositoryError.
    """
    path = _local_path(url)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _from_errno(error.errno, f"The directory {path} cannot be made", error.strerror or str(error)) from None
    return LocalDirectory(path)


def connect(url: str) -> Store:
    """Open the store at `url`. Raises RepositoryError when nothing is there."""
    path = _local_path(url)
    if not path.is_dir():
        raise errors.RepositoryError(
            f"There is no repository at {url}.",
            "Mount it if it is elsewhere, or make one with `blockferry repository init`.",
        )
    return LocalDirectory(path)


class LocalDirectory:
    """
    A store in a directory of this machine, or of a file server that is mounted here.

    path: a directory that exists.
    """

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        self._path = path
        with _our_errors(f"The directory {path} cannot be opened"):
            self._identity = path.stat()
            self._store = LocalStore(path, automatic_cleanup=True)

    def get(self, name: str, limit: int) -> bytes:
        """See `Store.get`."""
        with _our_errors(f"{self.url}/{name} cannot be read"):
            result = self._store.get(name)
            if result.meta["size"] > limit:
                raise errors.Damaged(f"{self.url}/{name} is damaged: it is longer than it can be.")
            return result.bytes().to_bytes()

    def forget(self, name: str) -> None:
        """See `Store.forget`. Pages that are not written yet stay: the batch will hear of them."""
        try:
            with _our_errors(f"{self.url}/{name} cannot be read"):
                descriptor = os.open(self._path / name, os.O_RDONLY)
        except errors.NotFound:
            return
        try:
            with _our_errors(f"{self.url}/{name} cannot be read"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def put(self, name: str, data: bytes) -> None:
        """See `Store.put`."""
        _check_still_there(self._path, self._identity)
        with _our_errors(f"{self.url}/{name} cannot be written"):
            self._store.put(name, data, use_multipart=False)

    def names(self, folder: str) -> Iterator[str]:
        """See `Store.names`."""
        with _our_errors(f"{self.url}/{folder} cannot be listed"):
            for objects in self._store.list(folder):
                for found in objects:
                    yield found["path"]

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        try:
            with _our_errors(f"{self.url}/{name} cannot be deleted"):
                self._store.delete(name)
        except errors.NotFound:
            pass

    @contextmanager
    def batch(self) -> Iterator[LocalBatch]:
        """See `Store.batch`."""
        with _our_errors(f"The directory {self.url} cannot be opened"):
            directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield LocalBatch(self._path, self._identity, directory)
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

    def __init__(self, path: Path, identity: os.stat_result, directory: int) -> None:
        self._path = path
        self._identity = identity
        self._directory = directory

    def commit(self, name: str, data: bytes) -> None:
        """See `Batch.commit`."""
        path = self._path / name
        # LocalStore names its own unfinished files like this, and does not list them.
        unfinished = path.with_name(path.name + "#0")
        _check_still_there(self._path, self._identity)
        with _our_errors(f"{path} cannot be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            _syncfs(self._directory)
            try:
                with unfinished.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.rename(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            _fsync_directory(path.parent)


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


_libc = ctypes.CDLL(None, use_errno=True)


def _syncfs(descriptor: int) -> None:
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _fsync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    except OSError as error:
        # CIFS and some FUSE file systems have no fsync for directories; they have no way to lose a name either.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(directory)


def _local_path(url: str) -> Path:
    """Return the absolute path that `url` means: a path, or file:///path."""
    parts = urlsplit(url)
    if "://" not in url:
        return Path(url).expanduser().absolute()
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return Path(unquote(parts.path))
    raise errors.RepositoryError(
        f"A repository at {url} cannot be used: this version keeps repositories in directories only.",
        "Give a path, or a file:///path URL; a network file system may be mounted there.",
    )


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HINTS = {
    errno.EACCES: "Run as a user who may, or mend the owner and the mode of the repository.",
    errno.EPERM: "Run as a user who may, or mend the owner and the mode of the repository.",
    errno.EROFS: "The file system is mounted read-only: see the kernel's log for the reason.",
    errno.EIO: "The storage is failing: see the kernel's log.",
}


@contextmanager
def _our_errors(doing: str) -> Iterator[None]:
    """Turn what obstore and the operating system raise into our errors. doing: the sentence so far."""
    try:
        yield
    except (FileNotFoundError, obstore_exceptions.NotFoundError):
        raise errors.NotFound(f"{doing}: it is not there.") from None
    except obstore_exceptions.BaseError as error:
        # obstore tells the operating system's error only in its text; what follows is Rust's view of it.
        text = str(error).split("\n\nDebug source", 1)[0]
        found = re.search(r"\(os error (\d+)\)", text)
        number = int(found[1]) if found else None
        raise _from_errno(number, doing, os.strerror(number) if number else text) from None
    except OSError as error:
        raise _from_errno(error.errno, doing, error.strerror or str(error)) from None


def _from_errno(number: int | None, doing: str, reason: str) -> errors.RepositoryError:
    if number in _FULL:
        return errors.RepositoryFull(f"{doing}: {reason}.", "Make room in the repository, then run this again.")
    return errors.RepositoryError(f"{doing}: {reason}.", _HINTS.get(number or 0, ""))
