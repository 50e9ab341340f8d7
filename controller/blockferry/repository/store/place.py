"""The store that a URL means: a path, file:///path, or a bucket."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from blockferry import errors
from blockferry.repository.store import bucket, directory, faults
from blockferry.repository.store.contract import Durability, Store


def create(url: str, durability: Durability = "full") -> Store:
    """
    Open the store at `url`, for a repository that is yet to be. A directory is made when it is not there, for its owner
    alone: it holds what the VMs' disks hold. A bucket is not made.

    durability: what a power failure may cost where that can be chosen.

    Raises RepositoryError.
    """
    if bucket.is_url(url):
        return bucket.connect(url)
    return directory.create(_local_path(url), durability)


def connect(url: str, durability: Durability = "full") -> Store:
    """Open the store at `url`. Raises RepositoryError when there is no such directory."""
    if bucket.is_url(url):
        return bucket.connect(url)
    path = _local_path(url)
    if not path.is_dir():
        raise errors.RepositoryError(
            f"There is no repository at {url}.",
            "Mount it if it is elsewhere, or make one with `blockferry repository init`.",
        )
    return directory.LocalDirectory(path, durability)


@contextmanager
def beside(url: str, durability: Durability) -> Iterator[Store]:
    """
    Make an empty store beside the one at `url`, on the same storage. It is removed in the end, with all that it holds.

    Raises RepositoryError.
    """
    if bucket.is_url(url):
        place = bucket.connect(f"{url.rstrip('/')}.scratch-{secrets.token_hex(4)}")
        try:
            yield place
        finally:
            with contextlib.suppress(errors.RepositoryError):
                place.clear()
        return
    path = _local_path(url)
    try:
        made = tempfile.mkdtemp(prefix=f".{path.name}.scratch-", dir=path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise faults.from_errno(error.errno, f"No directory can be made beside {path}", reason) from None
    try:
        yield directory.LocalDirectory(Path(made), durability)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _local_path(url: str) -> Path:
    """Return the absolute path that `url` means: a path, or file:///path."""
    parts = urlsplit(url)
    if "://" not in url:
        return Path(url).expanduser().absolute()
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return Path(unquote(parts.path))
    raise errors.RepositoryError(
        f"A repository at {url} cannot be used: that is neither a directory nor a bucket.",
        "Give a path, file:///path, s3://BUCKET/PATH, az://CONTAINER/PATH or gs://BUCKET/PATH. "
        "A network file system may be mounted at a path.",
    )
