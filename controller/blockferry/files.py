"""Files that are there completely or not at all, and survive a power cut."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """
    Write `data` to `path`, in place of what was there. Nobody ever sees half of it, and it survives a power cut.

    mode: of the file, from its first byte on. The directory must exist. Raises OSError.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    partial = Path(name)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        make_durable(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def make_durable(path: Path) -> None:
    """Have a file's content, or a directory's entries, on the disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # CIFS and some FUSE file systems have no fsync for directories; they have no way to lose a name either.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
