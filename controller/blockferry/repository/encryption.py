"""
Encryption at rest: every object but the settings and the wrapped keys is sealed with AES-256-GCM.

    | magic "BFen" | version 1 | 0, 0, 0 | nonce (12 bytes, random) | encrypted content | tag (16 bytes) |

Everything comes from one master key of 32 random bytes:

    master ─┬─ "objects" ── one key for each object's name      so an object opens under its own name alone
            ├─ "names" ──── key of the digests that name chunks so a name tells nothing of a chunk's content
            └─ "check" ──── proof that a key is the right one   in repository.json

A changed byte anywhere, or an object in another one's place (also an older manifest under a newer one's name), does not
open. What can still be done by someone who may write to the storage, and has no key, is to delete objects, and to put
back an object that had the same name before.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from blockferry import errors
from blockferry.repository.store import Batch, Listed, Store

_HEADER = struct.Struct("<4sBxxx")
_MAGIC = b"BFen"
_VERSION = 1
_NONCE = 12
_TAG = 16

OVERHEAD = _HEADER.size + _NONCE + _TAG
"""Bytes that a sealed object is longer than its content."""


def derive(master: bytes, purpose: str) -> bytes:
    """Return the key (32 bytes) that serves one purpose."""
    return blake3(master, derive_key_context=f"Blockferry 2026-11-23 repository format 1: {purpose}").digest()


class Sealer:
    """
    Seals and opens objects. May be used by several threads.

    A key serves one object's name, so that the few versions of it are far from where random nonces may meet again.
    """

    def __init__(self, master: bytes) -> None:
        self._objects = derive(master, "objects")

    def seal(self, name: str, data: bytes) -> bytes:
        """Return the object of that name as it is stored."""
        nonce = os.urandom(_NONCE)
        header = _HEADER.pack(_MAGIC, _VERSION)
        return b"".join((header, nonce, self._cipher(name).encrypt(nonce, data, header)))

    def open(self, name: str, sealed: bytes) -> bytes:
        """Return the content of a stored object. Raises ValueError when it is not what was sealed under that name."""
        header = sealed[: _HEADER.size]
        if len(sealed) < OVERHEAD or not header.startswith(_MAGIC):
            raise ValueError("it is not encrypted")
        if header != _HEADER.pack(_MAGIC, _VERSION):
            raise ValueError(f"it is encrypted in a way that this version does not know ({header[4]})")
        body = memoryview(sealed)[_HEADER.size :]
        try:
            return self._cipher(name).decrypt(body[:_NONCE], body[_NONCE:], header)
        except InvalidTag:
            raise ValueError("it is not what was encrypted under this name") from None

    def _cipher(self, name: str) -> AESGCM:
        return AESGCM(blake3(name.encode(), key=self._objects).digest())


class SealedStore:
    """Another store, in which every object is sealed. Who may use it how is as in the other."""

    def __init__(self, inner: Store, sealer: Sealer) -> None:
        self.url = inner.url
        self.side_by_side = inner.side_by_side
        self.vouches = inner.vouches
        self._inner = inner
        self._sealer = sealer

    def get(self, name: str, limit: int) -> bytes:
        """See `Store.get`. Raises Damaged when the object was not sealed under this name with this key."""
        sealed = self._inner.get(name, limit + OVERHEAD)
        try:
            return self._sealer.open(name, sealed)
        except ValueError as error:
            raise errors.Damaged(f"{self.url}/{name} is damaged: {error}.") from None

    def holds(self, name: str) -> bool:
        """See `Store.holds`."""
        return self._inner.holds(name)

    def forget(self, name: str) -> None:
        """See `Store.forget`."""
        self._inner.forget(name)

    def put(self, name: str, data: bytes) -> None:
        """See `Store.put`."""
        self._inner.put(name, self._sealer.seal(name, data))

    def put_new(self, name: str, data: bytes) -> None:
        """See `Store.put_new`."""
        self._inner.put_new(name, self._sealer.seal(name, data))

    def listing(self, folder: str) -> Iterator[Listed]:
        """See `Store.listing`. Lengths are those of what is stored."""
        return self._inner.listing(folder)

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        self._inner.delete(name)

    def delete_all(self, names: Iterable[str]) -> None:
        """See `Store.delete_all`."""
        self._inner.delete_all(names)

    def remove_unfinished(self, before: float) -> list[Listed]:
        """See `Store.remove_unfinished`."""
        return self._inner.remove_unfinished(before)

    @contextmanager
    def batch(self) -> Iterator[SealedBatch]:
        """See `Store.batch`."""
        with self._inner.batch() as batch:
            yield SealedBatch(batch, self._sealer)


class SealedBatch:
    """A batch of a sealed store."""

    def __init__(self, inner: Batch, sealer: Sealer) -> None:
        self._inner = inner
        self._sealer = sealer

    def flush(self) -> None:
        """See `Batch.flush`."""
        self._inner.flush()

    def commit(self, name: str, data: bytes) -> None:
        """See `Batch.commit`."""
        self._inner.commit(name, self._sealer.seal(name, data))
