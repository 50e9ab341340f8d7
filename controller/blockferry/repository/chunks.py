"""
Chunks: stored content, named by the BLAKE3 digest of what it is before it is compressed.

A chunk is one object: a header, then its content, compressed when that makes it smaller.

    | magic "BFch" | version 1 | storage 0 plain, 1 zstd | 0, 0 | plain length (u32, little endian) | payload … |
"""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import zstandard
from blake3 import blake3

from blockferry import errors
from blockferry.repository import layout
from blockferry.repository.reliance import Reliance
from blockferry.repository.store import Store
from blockferry_agent.blocks import MAX_WINDOW, Data

Compression = Literal["zstd", "none"]

_HEADER = struct.Struct("<4sBBHI")
HEADER = _HEADER.size
"""Bytes that every chunk has at least."""

_MAGIC = b"BFch"
_VERSION = 1
_PLAIN, _ZSTD = 0, 1

_LEVEL = 1
"""Of zstd: higher ones cost more than they save while a VM's scratch file grows."""

_TRUSTED = 64 * 1024
"""Digests that are remembered, about 8 MiB."""


class Stored(NamedTuple):
    """
    What became of content that was put.

    digest: BLAKE3, 32 bytes, keyed when the repository is encrypted.
    length: bytes that were written, 0 when the chunk was there.
    """

    digest: bytes
    length: int


class Chunks:
    """
    The chunks of a store, for the time of one backup, restore or verification.

    A chunk that is there already is read back from the storage before a backup relies on it, where the storage does not
    vouch for it: a power failure may have torn one that a backup had written and not committed, or the storage may have
    failed to take it. A torn or rotten one is replaced. What was written, read back or looked up since this object was
    made is trusted (the newest 65,536 of it), and costs no look at the storage any more.

    Called by several threads at once.

    key: of the digests, when the repository is encrypted.  damaged: digests of chunks that are marked as damaged; one
    that is put is written anew.  healed: those of them that were.  reliance: of the writer whose chunks these are.
    """

    def __init__(
        self,
        store: Store,
        compression: Compression,
        key: bytes | None = None,
        damaged: Collection[bytes] = (),
        reliance: Reliance | None = None,
    ) -> None:
        self.healed: set[bytes] = set()
        self._store = store
        self._hash = blake3 if key is None else functools.partial(blake3, key=key)
        self._damaged = frozenset(damaged)
        self._reliance = reliance or Reliance()
        self._compression = compression
        self._codec = _Codec()
        self._lock = threading.Lock()
        self._trusted: dict[bytes, None] = {}

    def put(self, data: Data) -> Stored:
        """
        Store `data`. It is durable when the batch is committed, not before.

        Raises RepositoryError.
        """
        digest = self._hash(data).digest()
        if self._is_trusted(digest):
            return Stored(digest, 0)
        length = 0
        with self._reliance.looking_for(digest) as note_missing:
            if not self._is_sound(digest, len(data), note_missing):
                encoded = self._encode(data)
                self._store.put(layout.chunk(digest), encoded)
                length = len(encoded)
            self._trust(digest)
        return Stored(digest, length)

    def heal(self, digest: bytes, data: Data) -> int:
        """
        Store a chunk that is marked as damaged anew, if `data` is its content. Return how many bytes were written.

        Raises RepositoryError.
        """
        return self.put(data).length if self._hash(data).digest() == digest else 0

    def find(self, digest: bytes) -> bool:
        """Tell whether a chunk of a disk's content is there, and a point may rely on it. Raises RepositoryError."""
        if self._is_trusted(digest):
            return True
        with self._reliance.looking_for(digest) as note_missing:
            if not self._is_sound(digest, MAX_WINDOW, note_missing):
                return False
            self._trust(digest)
        return True

    def get(self, digest: bytes, limit: int = MAX_WINDOW) -> bytes:
        """
        Return the content of a chunk, checked.

        limit: bytes that it may have.  Raises Damaged when it is missing, longer, or not what its name says.
        """
        try:
            return self._load(digest, limit)
        except errors.NotFound:
            raise self.damaged(digest, "it is missing") from None

    def damaged(self, digest: bytes, reason: str) -> errors.Damaged:
        """Return the error that says what is wrong with a chunk."""
        return errors.Damaged(
            f"Chunk {digest.hex()} is damaged: {reason} ({self._store.url}/{layout.chunk(digest)}).",
            "`blockferry verify` tells which recovery points it hurts.",
        )

    def is_damaged(self, digest: bytes) -> bool:
        """Tell whether a chunk is marked as damaged, and was not written anew."""
        return digest in self._damaged and digest not in self.healed

    @property
    def any_damaged(self) -> bool:
        """Whether any chunk is marked as damaged."""
        return bool(self._damaged)

    @property
    def side_by_side(self) -> int:
        """How many calls are worth having under way at once."""
        return self._store.side_by_side

    def _is_sound(self, digest: bytes, length: int, note_missing: Callable[[], None]) -> bool:
        """Tell whether a backup may rely on what is there. note_missing: told when nothing is."""
        if digest in self._damaged and digest not in self.healed:
            return False
        if self._store.vouches:
            if self._store.holds(layout.chunk(digest)):
                return True
            note_missing()
            return False
        self._store.forget(layout.chunk(digest))
        try:
            self._load(digest, length)
        except errors.NotFound:
            note_missing()
            return False
        except errors.Damaged:
            # Torn or rotten. One that only could not be read now is not replaced: a point may need it, and until the
            # commit a power failure could tear what replaces it.
            return False
        return True

    def _load(self, digest: bytes, limit: int) -> bytes:
        """Return the content of a chunk, checked. Raises NotFound, and Damaged as `get` does."""
        try:
            data = self._decode(self._store.get(layout.chunk(digest), _HEADER.size + limit), limit)
        except (ValueError, zstandard.ZstdError) as error:
            raise self.damaged(digest, str(error)) from None
        if self._hash(data).digest() != digest:
            raise self.damaged(digest, "its content is not what was stored")
        return data

    def _encode(self, data: Data) -> bytes:
        storage, payload = _PLAIN, data
        if self._compression == "zstd":
            compressed = self._codec.compressor.compress(data)
            if len(compressed) < len(data):
                storage, payload = _ZSTD, compressed
        return _HEADER.pack(_MAGIC, _VERSION, storage, 0, len(data)) + payload

    def _decode(self, encoded: bytes, limit: int) -> bytes:
        """Return the plain content, at most `limit` bytes. Raises ValueError or ZstdError."""
        if len(encoded) < _HEADER.size:
            raise ValueError("it ends in its header")
        magic, version, storage, reserved, length = _HEADER.unpack_from(encoded)
        payload = memoryview(encoded)[_HEADER.size :]
        if magic != _MAGIC:
            raise ValueError("it is not a chunk")
        if version != _VERSION or storage not in (_PLAIN, _ZSTD) or reserved:
            raise ValueError(f"it is of an unknown kind ({version}, {storage})")
        if length > limit:
            raise ValueError(f"it says it holds {length} bytes, more than it can")
        if storage == _PLAIN:
            data = bytes(payload)
        else:
            if zstandard.frame_content_size(payload) != length:
                raise ValueError("its header and its content differ")
            data = self._codec.decompressor.decompress(payload, max_output_size=length, allow_extra_data=False)
        if len(data) != length:
            raise ValueError(f"it holds {len(data)} of {length} bytes")
        return data

    def _is_trusted(self, digest: bytes) -> bool:
        with self._lock:
            return digest in self._trusted

    def _trust(self, digest: bytes) -> None:
        with self._lock:
            self._trusted[digest] = None
            if digest in self._damaged:
                self.healed.add(digest)
            if len(self._trusted) > _TRUSTED:
                del self._trusted[next(iter(self._trusted))]


class _Codec(threading.local):
    """zstandard's objects serve one thread each; so every thread that comes here gets its own."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()
