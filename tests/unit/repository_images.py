"""Backups and restores of images that are strings of bytes: what a transport and the jobs do, in a few lines."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator

import xxhash

from blockferry.repository import Carrier, DiskWriter, Manifest, Repository, Vm
from blockferry.repository.manifest import BackupMode
from blockferry_agent.blocks import Block, Kind
from blockferry_agent.units import KiB

VM = Vm("7ad5b6a9-9a1e-4d35-9d3f-0a37be5a01a1", "web")
DISK = "11111111-2222-3333-4444-555555555555"
GRAIN = 64 * KiB


def data(start: int, content: bytes) -> Block:
    """Return a block as a reader sends it."""
    return Block(start, len(content), Kind.DATA, xxhash.xxh3_128_digest(content), content)


def zero(start: int, length: int) -> Block:
    return Block(start, length, Kind.ZERO)


def same(start: int, length: int) -> Block:
    return Block(start, length, Kind.SAME)


def read(
    image: bytes, ranges: Iterable[tuple[int, int]], window: int, known: dict[tuple[int, int], bytes] | None = None
) -> Iterator[Block]:
    """
    Generate the blocks of (start, end) ranges of an image: cut at windows, zeros left out, known ones as the same.
    """
    for start, end in ranges:
        position = start
        while position < end:
            cut = min(end, (position // window + 1) * window)
            content = image[position:cut]
            block = data(position, content)
            if not any(content):
                yield zero(position, cut - position)
            elif (known or {}).get((position, cut - position)) == block.digest:
                yield same(position, cut - position)
            else:
                yield block
            position = cut


def dirty_ranges(old: bytes, new: bytes, grain: int = GRAIN) -> Iterator[tuple[int, int]]:
    """Generate the (start, end) ranges of grains that differ; what was not in `old` and is not zero differs."""
    old = old[: len(new)].ljust(len(new), b"\0")
    for start in range(0, len(new), grain):
        end = min(start + grain, len(new))
        if old[start:end] != new[start:end]:
            yield start, end


def finish(writer: DiskWriter, alias: str = "system", bootable: bool = True) -> None:
    writer.finish(
        alias=alias,
        format="cow",
        bootable=bootable,
        interface="virtio_scsi",
        carriers=(Carrier(transport="grpc", start=0, moved=0, reason=None, remark=None),),
        dirty=0,
        read=0,
        moved=0,
        seconds=1.5,
    )


def back_up(
    repository: Repository,
    blocks: Iterable[Block],
    size: int,
    backup_mode: BackupMode = "full",
    base: Manifest | None = None,
    disk_id: str = DISK,
    vm: Vm = VM,
) -> Manifest:
    """Commit a recovery point with one disk."""
    with repository.new_point(vm) as draft:
        writer = draft.disk(disk_id, size, backup_mode, base)
        for block in blocks:
            writer.write(block)
        finish(writer)
        draft.ovf("<ovf/>")
        return draft.commit(
            mode="live",
            backup_id=str(uuid.uuid4()),
            checkpoint_id=str(uuid.uuid4()),
            parent=base if backup_mode == "incremental" else None,
            seconds=2.5,
        )


def full(repository: Repository, image: bytes, base: Manifest | None = None) -> Manifest:
    """Back up all of an image; with a base, what is known from there is not sent."""
    with_base = known(repository, base) if base is not None else {}
    blocks = read(image, [(0, len(image))], repository.settings.window, with_base)
    return back_up(repository, blocks, len(image), "full", base)


def incremental(repository: Repository, old: bytes, new: bytes, base: Manifest, grain: int = GRAIN) -> Manifest:
    """Back up what changed between two images."""
    blocks = read(new, dirty_ranges(old, new, grain), repository.settings.window)
    return back_up(repository, blocks, len(new), "incremental", base)


def known(repository: Repository, base: Manifest, disk_id: str = DISK) -> dict[tuple[int, int], bytes]:
    """Return what a reader is told of the base."""
    with repository.new_point(base.vm) as draft:
        size = base.disk(disk_id).size
        return draft.disk(disk_id, size, "full", base).known(0, size)


def restore(repository: Repository, point: Manifest, disk_id: str = DISK, start: int = 0) -> bytes:
    """Return the content of a disk from `start` on, after having seen that the pieces are in order and without gaps."""
    reader = repository.disk(point, disk_id)
    content = bytearray()
    for piece in reader.read(start):
        assert piece.start == start + len(content)
        assert piece.data is None or len(piece.data) == piece.length
        content += bytes(piece.length) if piece.data is None else piece.data
    assert start + len(content) == reader.size == point.disk(disk_id).size
    return bytes(content)
