"""
Image files that a disk is restored to.

An image is written as .NAME.partial, made durable, and gets its name when it is complete; on failure nothing stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from blockferry import errors, files

Format = Literal["raw", "qcow2"]


class Image:
    """A disk image that is being written, sparse: what is not written reads as zeros."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, start: int, data: memoryview) -> None:
        """Write all of `data` at `start` (bytes). Raises OSError."""
        while data:
            written = os.pwrite(self._descriptor, data, start)
            start += written
            data = data[written:]


@contextlib.contextmanager
def create(path: Path, image_format: Format, size: int) -> Iterator[Image]:
    """
    Make an image of `size` bytes; it appears at `path`, replacing what was there, when the block ends well.

    path: absolute; its name does not begin with a dot.
    A qcow2 image is converted from a raw one at the end, so both need room for a moment.

    Raises RestoreError when it cannot be written, Conflict when somebody else is making it.
    """
    raw = path.with_name(f".{path.name}.partial")
    converted = path.with_name(f".{path.name}.converted")
    with _errors_of(path), _raw(raw, size) as image:
        try:
            yield image
            complete = raw
            if image_format == "qcow2":
                complete = converted
                _convert(raw, converted)
            files.make_durable(complete)
            complete.replace(path)
            files.make_durable(path.parent)
        finally:
            converted.unlink(missing_ok=True)


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.RestoreError(
            f"{path} cannot be written: {error.strerror or error}.", "Make room, or restore to another directory."
        ) from None


@contextlib.contextmanager
def _raw(path: Path, size: int) -> Iterator[Image]:
    """
    Open the raw image, alone until the block ends: what is under its name then is removed. What a killed run left there
    is written over.

    Raises OSError, Conflict.
    """
    # Only its owner may read it: what is on a VM's disks is nobody else's business.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(descriptor), path.lstat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise errors.Conflict(f"Another restore is writing {path}.", "Wait for it, or use another directory.")
        try:
            os.truncate(descriptor, 0)
            os.truncate(descriptor, size)
            yield Image(descriptor)
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _convert(raw: Path, target: Path) -> None:
    """Raises RestoreError."""
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", str(raw), str(target)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", umask=0o077)
    except FileNotFoundError:
        raise errors.RestoreError(
            "qcow2 images need qemu-img, which is not on this machine.",
            "Install it (qemu-utils, or qemu-img), or restore as raw.",
        ) from None
    except subprocess.CalledProcessError as error:
        raise errors.RestoreError(f"qemu-img cannot write {target}: {error.stderr.strip()}.") from None
