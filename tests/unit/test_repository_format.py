"""A reader written from docs/format.md alone: it shares no code with the repository."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import zstandard
from blake3 import blake3

from blockferry.repository import Repository
from blockferry_agent.units import KiB
from tests.unit import repository_images as images

WINDOW = 256 * KiB


def read_chunk(root: Path, digest: bytes) -> bytes:
    name = digest.hex()
    stored = (root / "chunks" / name[:2] / name).read_bytes()
    magic, version, storage, zero, length = struct.unpack("<4sBBHI", stored[:12])
    assert (magic, version, zero) == (b"BFch", 1, 0)
    content = stored[12:] if storage == 0 else zstandard.decompress(stored[12:], max_output_size=length)
    assert len(content) == length
    assert blake3(content).digest() == digest
    return content


def read_disk(root: Path, point: Path, disk: dict[str, object]) -> bytes:
    index = (point / f"{disk['id']}.index").read_bytes()
    assert disk["index"] == {"length": len(index), "blake3": blake3(index).hexdigest()}
    magic, version, count, window, size = struct.unpack("<4sB3xIIQ", index[:24])
    assert (magic, version, len(index)) == (b"BFix", 1, 24 + 40 * count)
    assert window == json.loads((root / "repository.json").read_text())["window"]
    assert size == disk["size"]
    image = bytearray(size)
    for number, _broken, page_digest in struct.iter_unpack("<II32s", index[24:]):
        page = read_chunk(root, page_digest)
        magic, version, entries = struct.unpack("<4sB3xI", page[:12])
        assert (magic, version, len(page)) == (b"BFpg", 1, 12 + 60 * entries)
        for start, length, offset, chunk, _xxh3 in struct.iter_unpack("<III32s16s", page[12:]):
            place = number * 2**28 + start
            image[place : place + length] = read_chunk(root, chunk)[offset : offset + length]
    return bytes(image)


def test_a_stranger_can_restore_every_point(tmp_path: Path) -> None:
    repository = Repository.init(str(tmp_path), WINDOW)
    first = os.urandom(WINDOW) + bytes(WINDOW) + b"text" * WINDOW + os.urandom(512)
    second = first[: 70 * KiB] + os.urandom(10 * KiB) + bytes(80 * KiB) + first[160 * KiB :] + os.urandom(WINDOW)
    older = images.full(repository, first)
    newer = images.incremental(repository, first, second, older)
    contents = {older.id: first, newer.id: second}

    manifests = list(tmp_path.glob("vms/*/*/manifest.json"))
    assert len(manifests) == 2
    for path in manifests:
        document = json.loads(path.read_text())
        assert document["format"] == 1
        assert (document["vm"]["id"], document["id"]) == path.parts[-3:-1]
        (disk,) = document["disks"]
        assert read_disk(tmp_path, path.parent, disk) == contents[document["id"]]
        ovf = (path.parent / "vm.ovf").read_bytes()
        assert document["ovf"] == {"length": len(ovf), "blake3": blake3(ovf).hexdigest()}


def test_the_page_of_the_format_names_every_field(tmp_path: Path) -> None:
    repository = Repository.init(str(tmp_path), WINDOW)
    images.full(repository, os.urandom(WINDOW))
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    (path,) = tmp_path.glob("vms/*/*/manifest.json")
    documents = [json.loads(path.read_text()), json.loads((tmp_path / "repository.json").read_text())]
    for document in [*documents, *documents[0]["disks"]]:
        for field in document:
            assert field in text
