"""Restore disks of a recovery point to image files, or one of them to standard output."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from blockferry import errors
from blockferry.jobs import images, selection
from blockferry.jobs.progress import Progress
from blockferry.jobs.upload import Gap
from blockferry.repository import DiskManifest, DiskReader, Manifest, Piece, Repository
from blockferry_agent.units import MiB

# Characters of an alias that go into a file's name, which may have 255 with all that is added.
MAX_NAME = 100

ZEROS = bytes(1 * MiB)


class Restored(msgspec.Struct, frozen=True):
    """
    An image that was restored.

    path: where it is, "-" for standard output.  size: bytes of the disk.  data: bytes that were written; the rest reads
    as zeros.  gaps: ranges that could not be read in the repository, zeros too.
    """

    disk_id: str
    alias: str
    path: str
    size: int
    data: int
    gaps: tuple[Gap, ...] = ()


def run(
    repository: Repository,
    point: Manifest,
    directory: Path,
    image_format: images.Format,
    disks: Sequence[str],
    replace: bool,
    skip_damaged: bool,
    progress: Progress,
) -> list[Restored]:
    """
    Restore the named disks (all when none is named) of `point` into `directory`, one after another.

    Every chunk is checked before it is written; an image gets its name when it is complete and on disk.
    skip_damaged: what cannot be read becomes a gap, instead of an error.

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
    restored: list[Restored] = []
    with repository.reading(_purpose(point)):
        try:
            for disk, path in zip(chosen, paths, strict=True):
                restored.append(_restore_disk(repository, point, disk, path, image_format, skip_damaged, progress))
        except BaseException:
            _tell(restored, progress)
            raise
    return restored


def stream(
    repository: Repository,
    point: Manifest,
    target: BinaryIO,
    disks: Sequence[str],
    skip_damaged: bool,
    progress: Progress,
) -> Restored:
    """
    Write the disk that is named, or the only one, to `target` from its beginning to its end, with all its zeros.

    Raises as `run`, and Ambiguous when there are several disks. What was written before an error is of no use.
    """
    chosen = selection.disks(point.disks, disks, f"Recovery point {point.id}")
    if len(chosen) != 1:
        names = ", ".join(disk.alias for disk in chosen)
        raise errors.Ambiguous(f"Standard output takes one disk, and these are {len(chosen)}: {names}.", "Add --disk.")
    (disk,) = chosen

    def write(piece: Piece) -> None:
        for start in range(0, piece.length, len(ZEROS)):
            part = ZEROS if piece.data is None else piece.data[start:]
            target.write(part[: min(len(ZEROS), piece.length - start)])

    try:
        with repository.reading(_purpose(point)):
            data, gaps = _read(repository, point, disk, write, skip_damaged, progress)
        target.flush()
    except OSError as error:
        raise errors.RestoreError(f"Standard output cannot be written: {error.strerror or error}.") from None
    return Restored(disk.id, disk.alias, "-", disk.size, data, gaps)


def _tell(restored: Sequence[Restored], progress: Progress) -> None:
    """Say which images are there although another one failed, and what became zeros in them."""
    for image in restored:
        progress.warn(f"{image.path} is complete.")
        for gap in image.gaps:
            progress.warn(gap.told_of(image.alias))


def _purpose(point: Manifest) -> str:
    return f"restore of point {point.id} of VM {point.vm.name}"


def _restore_disk(
    repository: Repository,
    point: Manifest,
    disk: DiskManifest,
    path: Path,
    image_format: images.Format,
    skip_damaged: bool,
    progress: Progress,
) -> Restored:
    with images.create(path, image_format, disk.size) as image:

        def write(piece: Piece) -> None:
            if piece.data is not None:
                image.write(piece.start, piece.data)

        data, gaps = _read(repository, point, disk, write, skip_damaged, progress)
    return Restored(disk.id, disk.alias, str(path), disk.size, data, gaps)


def _read(
    repository: Repository,
    point: Manifest,
    disk: DiskManifest,
    write: Callable[[Piece], None],
    skip_damaged: bool,
    progress: Progress,
) -> tuple[int, tuple[Gap, ...]]:
    """Write all pieces of a disk in their order; return the bytes of data, and what could not be read."""
    data = 0
    gaps: list[Gap] = []
    reader = repository.disk(point, disk.id)
    progress.begin(disk.id, f"restoring {disk.alias}", disk.size)
    for piece in _without_damage(reader, gaps) if skip_damaged else reader.read():
        write(piece)
        data += 0 if piece.data is None else piece.length
        progress.advance(disk.id, piece.start + piece.length, data)
    progress.end(disk.id)
    return data, tuple(gaps)


def _without_damage(reader: DiskReader, gaps: list[Gap]) -> Iterator[Piece]:
    """Generate the pieces of a disk, and zeros for what cannot be read, which is added to `gaps`."""
    position = 0
    for entry in reader.entries(0, reader.size):
        if entry.start > position:
            yield Piece(position, entry.start - position, None)
        try:
            yield Piece(entry.start, entry.length, reader.part(entry, reader.chunk(entry.chunk)))
        except errors.Damaged as error:
            gaps.append(Gap(entry.start, entry.length, error.message))
            yield Piece(entry.start, entry.length, None)
        position = entry.end
    if position < reader.size:
        yield Piece(position, reader.size - position, None)


def _paths(disks: Sequence[DiskManifest], directory: Path, image_format: images.Format) -> list[Path]:
    """Return a path for each disk's image, named by alias; by alias and id when aliases do not tell all apart."""
    names = [_file_name(disk.alias) for disk in disks]
    if len(set(names)) < len(names):
        names = [f"{name}-{disk.id}" for name, disk in zip(names, disks, strict=True)]
    return [directory / f"{name}.{image_format}" for name in names]


def _file_name(alias: str) -> str:
    """Return `alias` as a harmless file name: it comes from the engine, where anyone may have written anything."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", alias).lstrip(".")[:MAX_NAME] or "disk"
