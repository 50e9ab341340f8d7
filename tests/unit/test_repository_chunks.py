"""Chunks: what is stored comes back as it was, or not at all."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable

import pytest
import zstandard
from blake3 import blake3

from blockferry import errors
from blockferry.repository import layout
from blockferry.repository.chunks import Chunks
from blockferry_agent.units import KiB, MiB
from tests.unit.repository_stores import MemoryStore

RANDOM = os.urandom(64 * KiB)
TEXT = b"All work and no play makes Jack a dull boy. " * 1000


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_content_comes_back(store: MemoryStore) -> None:
    for data in (RANDOM, TEXT, b"\0", bytes(1 * MiB)):
        stored = Chunks(store, "zstd").put(data)
        assert stored.digest == blake3(data).digest()
        assert stored.length == len(store.objects[layout.chunk(stored.digest)])
        assert Chunks(store, "zstd").get(stored.digest) == data


def test_only_what_gets_smaller_is_compressed(store: MemoryStore) -> None:
    chunks = Chunks(store, "zstd")
    assert chunks.put(TEXT).length < len(TEXT) // 10
    assert chunks.put(RANDOM).length == len(RANDOM) + 12
    assert Chunks(MemoryStore(), "none").put(TEXT).length == len(TEXT) + 12


def test_content_is_stored_once(store: MemoryStore) -> None:
    chunks = Chunks(store, "zstd")
    digest = chunks.put(TEXT).digest
    assert chunks.put(TEXT) == (digest, 0)
    assert Chunks(store, "zstd").put(TEXT) == (digest, 0), "another run writes it again"
    assert len(store.objects) == 1


def test_compression_may_change_between_runs(store: MemoryStore) -> None:
    digest = Chunks(store, "zstd").put(TEXT).digest
    assert Chunks(store, "none").get(digest) == TEXT
    assert Chunks(store, "none").put(TEXT).length == 0


def cut(encoded: bytes) -> bytes:
    return encoded[: len(encoded) // 2]


def cut_header(encoded: bytes) -> bytes:
    return encoded[:7]


def nothing(_: bytes) -> bytes:
    return b""


def zeros(encoded: bytes) -> bytes:
    return bytes(len(encoded))


def flipped_at_end(encoded: bytes) -> bytes:
    return encoded[:-1] + bytes([encoded[-1] ^ 1])


def flipped_at_start(encoded: bytes) -> bytes:
    return bytes([encoded[0] ^ 1]) + encoded[1:]


def longer(encoded: bytes) -> bytes:
    return encoded + b"\0"


def other_content(_: bytes) -> bytes:
    return struct.pack("<4sBBHI", b"BFch", 1, 0, 0, 5) + b"other"


def next_version(encoded: bytes) -> bytes:
    return encoded[:4] + b"\2" + encoded[5:]


def bomb(_: bytes) -> bytes:
    """More than the header says, in a few bytes."""
    return struct.pack("<4sBBHI", b"BFch", 1, 1, 0, 100) + zstandard.ZstdCompressor().compress(bytes(64 * MiB))


def silent_bomb(_: bytes) -> bytes:
    """The same, in a frame that does not say how long its content is."""
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    return struct.pack("<4sBBHI", b"BFch", 1, 1, 0, 100) + compressor.compress(bytes(64 * MiB))


def huge(_: bytes) -> bytes:
    return struct.pack("<4sBBHI", b"BFch", 1, 1, 0, 2**32 - 1) + zstandard.ZstdCompressor().compress(bytes(MiB))


def other_compression(encoded: bytes) -> bytes:
    return struct.pack("<4sBBHI", b"BFch", 1, 1, 0, 44_000) + zlib.compress(TEXT)


DAMAGES = [
    cut, cut_header, nothing, zeros, flipped_at_end, flipped_at_start, longer, other_content, next_version, bomb,
    silent_bomb, huge, other_compression,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("data", [RANDOM, TEXT], ids=["plain", "compressed"])
def test_a_damaged_chunk_is_never_returned(store: MemoryStore, data: bytes, damage: Callable[[bytes], bytes]) -> None:
    digest = Chunks(store, "zstd").put(data).digest
    name = layout.chunk(digest)
    store.objects[name] = damage(store.objects[name])
    with pytest.raises(errors.Damaged, match=digest.hex()):
        Chunks(store, "zstd").get(digest)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_torn_chunk_is_replaced_when_its_content_is_put_again(
    store: MemoryStore, damage: Callable[[bytes], bytes]
) -> None:
    digest, length = Chunks(store, "zstd").put(TEXT)
    name = layout.chunk(digest)
    store.objects[name] = damage(store.objects[name])
    chunks = Chunks(store, "zstd")
    assert chunks.put(TEXT) == (digest, length)
    assert chunks.get(digest) == TEXT


def test_a_chunk_that_only_the_cache_has_is_written_again(store: MemoryStore) -> None:
    digest, length = Chunks(store, "zstd").put(TEXT)
    store.lose_writes()
    assert Chunks(store, "zstd").put(TEXT) == (digest, length)
    store.commit("m", b"manifest")
    store.lose_power(random.Random(0))
    assert Chunks(store, "zstd").get(digest) == TEXT


def test_a_missing_chunk_is_damage(store: MemoryStore) -> None:
    with pytest.raises(errors.Damaged, match="missing"):
        Chunks(store, "zstd").get(bytes(32))


def test_a_chunk_larger_than_asked_for_is_refused(store: MemoryStore) -> None:
    digest = Chunks(store, "zstd").put(bytes(9 * MiB)).digest
    with pytest.raises(errors.Damaged, match="9437184"):
        Chunks(store, "zstd").get(digest)
    assert Chunks(store, "zstd").get(digest, limit=9 * MiB) == bytes(9 * MiB)
