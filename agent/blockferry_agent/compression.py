"""
Compression of blocks on their way, for links that are slower than a processor.

zstandard is not in Python 3.9, so an agent may be without it: it then sends all blocks as they are.
"""

from __future__ import annotations

import threading
from typing import Any

from blockferry_agent.units import KiB

try:
    import zstandard
except ImportError:  # pragma: no cover -- in a bundle for a Python that zstandard has no wheel for
    zstandard = None  # type: ignore[assignment]

LEVEL = 1
"""Of zstd: what a link of some 100 MiB/s is worth."""

SAMPLE = 32 * KiB
"""Bytes from the middle of a block that are tried first; when they do not shrink, the block is left alone."""

WORTH = 0.9
"""What must be left of it, at most, for a block to be sent compressed."""

AVAILABLE = zstandard is not None


class _Codec(threading.local):
    """zstandard's objects serve one thread each."""

    def __init__(self) -> None:
        self.compressor: Any = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)


_codec = _Codec() if AVAILABLE else None


def compress(data: memoryview) -> bytes | None:
    """Return a zstd frame of `data`, which says how long its content is; None where that is not worth it."""
    if _codec is None:
        return None
    middle = max(0, len(data) - SAMPLE) // 2
    sample = data[middle : middle + SAMPLE]
    if len(data) > SAMPLE and len(_codec.compressor.compress(sample)) > WORTH * len(sample):
        return None
    compressed: bytes = _codec.compressor.compress(data)
    return compressed if len(compressed) <= WORTH * len(data) else None
