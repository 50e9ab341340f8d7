"""
Image files that a disk is restored to.

An image is written under NAME.partial, made durable, and renamed when it is complete; on failure nothing stays.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from blockferry import errors


class Image(Protocol):
    """A disk image that reads as zeros until it is written."""

    def write(self, start: int, data: bytes | memoryview) -> None:
        """Write all of `data` (bytes) at `start`."""


@contextlib.contextmanager
def create(path: Path, image_format: str, size: int) -> Iterator[Image]:
    """
    Make an image of `size` bytes; it appears at `path` when the block ends well.

    Raises RestoreError when the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    writer = _FORMATS[image_format]
    try:
        with writer(partial, size) as image:
            yield image
        _make_durable(partial)
        partial.replace(path)
        _make_durable(path.parent)
    except OSError as error:
        raise errors.RestoreError(
            f"{path} cannot be written: {error.strerror or error}.", "Make room, or choose another directory."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
