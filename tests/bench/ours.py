"""
One operation on a repository, in a process of its own: so its start and its memory count, as those of its peers do.

    python -m tests.bench.ours init|backup|restore|verify|fill|collect URL …
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import xxhash

from blockferry.jobs import images
from blockferry.repository import Carrier, Manifest, Repository, Times, Vm
from blockferry.repository.index import Range
from blockferry.repository.keys import Passphrase
from blockferry.repository.store.bucket import Bucket
from blockferry_agent import malloc
from blockferry_agent.blocks import Block, Kind
from blockferry_agent.units import MiB
from tests.bench.changing import ChangingImage

PASSPHRASE = "as long as it takes"

_VM = Vm("7ad5b6a9-9a1e-4d35-9d3f-0a37be5a01a1", "bench")
_DISK = "11111111-2222-3333-4444-555555555555"
_SMALL = 512
"""Bytes of the chunks that `fill` makes: what each costs beside its content is looked for."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ours", description=__doc__)
    parser.add_argument("operation", choices=("init", "backup", "restore", "verify", "fill", "collect"))
    parser.add_argument("url")
    parser.add_argument("--image", type=Path, help="what is backed up, or restored to")
    parser.add_argument("--dirty", type=int, metavar="VERSION", help="back up only what this version has changed")
    parser.add_argument("--chunks", type=int, help="to be made by `fill`")
    parser.add_argument("--content", type=int, default=0, help="of what `fill` makes: another number, other chunks")
    parser.add_argument("--window", type=int, default=1 * MiB, help="of a new repository")
    parser.add_argument("--compression", choices=("zstd", "none"), default="zstd")
    parser.add_argument("--encrypted", action="store_true")
    parser.add_argument("--one-at-a-time", action="store_true", help="one request to a bucket at a time")
    options = parser.parse_args()
    # As the controller does it.
    malloc.keep_small()
    if options.one_at_a_time:
        Bucket.side_by_side = 1
    secret = Passphrase(PASSPHRASE) if options.encrypted else None
    if options.operation == "init":
        Repository.init(options.url, options.window, compression=options.compression, secret=secret)
        return
    repository = Repository.open(options.url, secret)
    match options.operation:
        case "backup":
            back_up(repository, options.image, options.dirty)
        case "restore":
            restore(repository, options.image)
        case "verify":
            verify(repository)
        case "fill":
            fill(repository, options.chunks, options.content)
        case _:
            collect(repository)


def back_up(repository: Repository, image: Path, dirty: int | None) -> Manifest:
    """Commit a point of the image: all of it, or what a version of it has changed."""
    size = image.stat().st_size
    base = None
    ranges = [Range(0, size)]
    if dirty is not None:
        base = repository.points()[0]
        ranges = ChangingImage.changes(size, dirty)
    with image.open("rb") as file:
        return _commit(repository, _blocks(file.fileno(), ranges, repository.settings.window), size, base)


def _commit(repository: Repository, blocks: Iterable[Block], size: int, base: Manifest | None = None) -> Manifest:
    with repository.new_point(_VM) as draft:
        writer = draft.disk(_DISK, size, "full" if base is None else "incremental", base)
        for block in blocks:
            writer.write(block)
        writer.finish(
            alias="system",
            format="raw",
            bootable=True,
            interface="virtio_scsi",
            carriers=(Carrier(transport="grpc", start=0, moved=0, reason=None, remark=None),),
            dirty=0,
            read=0,
            moved=0,
            seconds=0.0,
        )
        return draft.commit(
            mode="live", backup_id=str(uuid.uuid4()), checkpoint_id=str(uuid.uuid4()), parent=base, seconds=0.0
        )


def _blocks(image: int, ranges: Iterable[Range], window: int) -> Iterator[Block]:
    """Generate the blocks of ranges, as an agent sends them: cut at windows, hashed, zeros without data."""
    nothing = bytes(window)
    for start, length in ranges:
        end, position = start + length, start
        while position < end:
            cut = min(end, (position // window + 1) * window)
            content = os.pread(image, cut - position, position)
            if content == nothing[: len(content)]:
                yield Block(position, len(content), Kind.ZERO)
            else:
                yield Block(position, len(content), Kind.DATA, xxhash.xxh3_128_digest(content), content)
            position = cut


def restore(repository: Repository, target: Path) -> None:
    """Restore the newest point's disk, sparse."""
    reader = repository.disk(repository.points()[0], _DISK)
    with images.create(target, "raw", reader.size) as image:
        for piece in reader.read():
            if piece.data is not None:
                image.write(piece.start, piece.data)


def verify(repository: Repository) -> None:
    """Read and check everything."""
    found = repository.verify(repository.points(), lambda step: None)
    if found.damage or found.unreadable:
        sys.exit(f"{repository.url} is damaged: {found.damage}{found.unreadable}")
    print(f"{found.chunks} chunks, {found.checked / MiB:.0f} MiB")


def fill(repository: Repository, chunks: int, content: int) -> None:
    """Commit a point of so many small chunks, one in each window."""
    window = repository.settings.window

    def blocks() -> Iterator[Block]:
        for number in range(chunks):
            start = number * window
            data = f"{content} {number} ".encode().ljust(_SMALL, b".")
            yield Block(start, _SMALL, Kind.DATA, xxhash.xxh3_128_digest(data), data)
            yield Block(start + _SMALL, window - _SMALL, Kind.ZERO)

    _commit(repository, blocks(), chunks * window)


def collect(repository: Repository) -> None:
    """Delete the newest point, and remove at once what only that needed."""
    repository.delete(repository.points()[0])
    done = repository.collect(Times(trash=timedelta(0), young=timedelta(0)), lambda text: None)
    print(f"removed {done.freed.objects}")
    if done.hindrance is not None:
        sys.exit(done.hindrance)


if __name__ == "__main__":
    main()
