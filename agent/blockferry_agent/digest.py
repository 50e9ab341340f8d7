"""
XXH3-128: proves that a block arrived as it was read, finds zeros, and tells what the receiver has already.

It is not collision-resistant, so it never names content across disks.
"""

from __future__ import annotations

import functools

import xxhash

from blockferry_agent.units import KiB

LENGTH = 16
"""Bytes of a digest."""

_ZEROS = bytes(64 * KiB)


def xxh3(data: bytes | bytearray | memoryview) -> bytes:
    """Return the digest of `data` in its canonical form: 16 bytes, big-endian."""
    return xxhash.xxh3_128_digest(data)


@functools.lru_cache(maxsize=256)
def zeros(length: int) -> bytes:
    """Return the digest of `length` zero bytes."""
    state = xxhash.xxh3_128()
    whole, rest = divmod(length, len(_ZEROS))
    for _ in range(whole):
        state.update(_ZEROS)
    state.update(_ZEROS[:rest])
    return state.digest()
