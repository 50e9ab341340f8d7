"""
Volumes: qcow2 and raw files, their bitmaps and backing files, made and inspected with qemu-img.

Every volume belongs to the owner of the storage, mode 0660, as vdsm makes them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Literal

from tests.lab import errors, processes

Format = Literal["qcow2", "raw"]


@dataclasses.dataclass(frozen=True)
class Volume:
    """
    What qemu-img says about a volume.

    size: virtual size in bytes.  allocated: bytes on disk.
    backing: the next volume of the chain, or None.
    bitmaps: flags ("auto", "in-use") of every bitmap by its name.
    """

    path: Path
    format: Format
    size: int
    allocated: int
    backing: Path | None
    bitmaps: dict[str, frozenset[str]]


def create(path: Path, format: Format, size: int, backing: Path | None = None) -> None:
    """
    Create a sparse volume that reads as zeros, or as its backing volume, which a VM may be using.

    size: bytes, a multiple of 512.  Raises HostError when the file exists or there is no room.
    """
    if path.exists():
        raise errors.HostError(f"Volume {path} exists already")
    if not path.parent.exists():
        path.parent.mkdir()
        _give_to_owner(path.parent, 0o755)
    options = ["-o", "compat=1.1"] if format == "qcow2" else []
    if backing is not None:
        # Unsafe means that qemu-img does not open the backing file, which QEMU may have locked.
        options += ["-u", "-b", str(backing), "-F", info(backing).format]
    _qemu_img("create", "-q", "-f", format, *options, path, str(size))
    _give_to_owner(path, 0o660)


def create_ext4(path: Path, format: Format, size: int) -> None:
    """Create a volume with an empty ext4 file system on the whole of it."""
    raw = path if format == "raw" else path.with_suffix(".mkfs")
    create(raw, "raw", size)
    try:
        # Written here in full, so that the guest's kernel does not go on initialising it in the background.
        processes.run(
            *("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
            raw,
        )
        if format == "qcow2":
            _qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", raw, path)
            _give_to_owner(path, 0o660)
    finally:
        if raw != path:
            raw.unlink()


def create_from(path: Path, format: Format, size: int, raw: Path) -> None:
    """Create a volume that begins with the content of a raw file.  size: bytes, at least the file's."""
    create(path, format, size)
    _qemu_img("convert", "-n", "-f", "raw", "-O", format, raw, path)


def remove(path: Path) -> None:
    """Remove a volume; a missing one is ignored."""
    path.unlink(missing_ok=True)


def info(path: Path) -> Volume:
    """What qemu-img says about a volume; works while QEMU has it open."""
    return chain(path)[0]


def chain(path: Path) -> list[Volume]:
    """The volume and what backs it, top first."""
    return [_volume(entry) for entry in _qemu_img_json("info", "--backing-chain", path)]


def extend(path: Path, size: int) -> None:
    """Make a volume that no QEMU has open larger. size: bytes."""
    _qemu_img("resize", "-q", "-f", info(path).format, path, str(size))


def add_bitmap(path: Path, name: str) -> None:
    """Add an empty bitmap, recording from now on."""
    _qemu_img("bitmap", "--add", "--enable", path, name)


def remove_bitmap(path: Path, name: str) -> None:
    """Remove a bitmap from a volume that no QEMU has open; a missing one is ignored."""
    if name in info(path).bitmaps:
        _qemu_img("bitmap", "--remove", path, name)


def merge_bitmap(source: Path, target: Path, name: str) -> None:
    """Add what a bitmap has recorded in one volume to the bitmap of that name in another, made when missing."""
    if name not in info(target).bitmaps:
        add_bitmap(target, name)
    _qemu_img("bitmap", "--merge", name, "-b", source, "-F", "qcow2", target, name)


def commit(path: Path) -> None:
    """Write a volume's data into the volume below.  Its bitmaps are not touched."""
    below = info(path).backing
    assert below is not None, f"{path} has no backing volume"
    _qemu_img("commit", "-q", "-d", "-f", "qcow2", "-t", "none", "-b", below, path)


def _volume(entry: dict[str, object]) -> Volume:
    details = entry.get("format-specific", {})
    assert isinstance(details, dict)
    bitmaps = details.get("data", {}).get("bitmaps", [])
    backing = entry.get("full-backing-filename")
    return Volume(
        path=Path(str(entry["filename"])),
        format="qcow2" if entry["format"] == "qcow2" else "raw",
        size=int(str(entry["virtual-size"])),
        allocated=int(str(entry["actual-size"])),
        backing=Path(str(backing)) if backing else None,
        bitmaps={bitmap["name"]: frozenset(bitmap["flags"]) for bitmap in bitmaps},
    )


def _qemu_img_json(*arguments: str | Path) -> list[dict[str, object]]:
    # Shared, because a running QEMU holds the image's lock.
    verb, *rest = arguments
    document: list[dict[str, object]] = json.loads(_qemu_img(str(verb), "--force-share", "--output=json", *rest))
    return document


def _qemu_img(*arguments: str | Path) -> str:
    try:
        return processes.run("qemu-img", *arguments)
    except errors.LabError as error:
        raise errors.HostError(str(error)) from error


def _give_to_owner(path: Path, mode: int) -> None:
    """Give a file to whom the directory belongs that it is in."""
    owner = path.parent.stat()
    os.chown(path, owner.st_uid, owner.st_gid)
    path.chmod(mode)
