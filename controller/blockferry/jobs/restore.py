"""Restore disks of a recovery point to image files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from blockferry import errors
from blockferry.jobs import images, selection
from blockferry.jobs.progress import Progress
from blockferry.repository import DiskManifest, Manifest, Repository

# Characters of an alias that go into a file's name, which may have 255 with all that is added.
MAX_NAME = 100


class Restored(msgspec.Struct, frozen=True):
    """
    An image that was restored.

    path: where it is.  size: bytes of the disk.  data: bytes that were written; the rest reads as zeros.
    """

    disk_id: str
    alias: str
    path: str
    size: int
    data: int


def run(
    repository: Repository,
    point: Manifest,
    directory: Path,
    image_format: images.Format,
    disks: Sequence[str],
    replace: bool,
    progress: Progress,
) -> list[Restored]:
    """
    Restore the named disks (all when none is named) of `point` into `directory`, one after another.

    Every chunk is checked before it is written; an image gets its name when it is complete and on disk.

    Raises NotFound, Conflict when an image is there and `replace` is false, Damaged, RepositoryError.
    """
    chosen = selection.disks(point.disks, disks, f"Recovery point {point.id}")
    # Absolute, so that qemu-img takes no image's name for an option or a protocol.
    paths = _paths(chosen, directory.absolute(), image_format)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.RestoreError(f"The directory {directory} cannot be made: {error.strerror}.") from None
    if not replace:
        for path in paths:
            if path.exists():
                raise errors.Conflict(f"{path} is there already.", "Use --force to replace it, or another directory.")
    return [
        _restore_disk(repository, point, disk, path, image_format, progress)
        for disk, path in zip(chosen, paths, strict=True)
    ]


def _restore_disk(
    repository: Repository,
    point: Manifest,
    disk: DiskManifest,
    path: Path,
    image_format: images.Format,
    progress: Progress,
) -> Restored:
    data = 0
    progress.begin(disk.id, f"restoring {disk.alias}", disk.size)
    with images.create(path, image_format, disk.size) as image:
        for piece in repository.disk(point, disk.id).read():
            if piece.data is not None:
                image.write(piece.start, piece.data)
                data += piece.length
            progress.advance(disk.id, piece.start + piece.length, data)
    progress.end(disk.id)
    return Restored(disk.id, disk.alias, str(path), disk.size, data)


def _paths(disks: Sequence[DiskManifest], directory: Path, image_format: images.Format) -> list[Path]:
    """Return a path for each disk's image, named by alias; by alias and id when aliases do not tell all apart."""
    names = [_file_name(disk.alias) for disk in disks]
    if len(set(names)) < len(names):
        names = [f"{name}-{disk.id}" for name, disk in zip(names, disks, strict=True)]
    return [directory / f"{name}.{image_format}" for name in names]


def _file_name(alias: str) -> str:
    """Return `alias` as a harmless file name: it comes from the engine, where anyone may have written anything."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", alias).lstrip(".")[:MAX_NAME] or "disk"
