"""A limit of bytes per second, kept by whoever reads."""

from __future__ import annotations

import threading
import time

BURST = 0.25
"""Seconds' worth of bytes that may pass at once after a pause."""


class Throttle:
    """
    Tells readers how long to wait. May be used by any number of threads, which then share the limit.

    bytes_per_second: 0 means without limit.
    """

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def reserve(self, length: int) -> float:
        """Take the right to read `length` bytes; return the seconds to wait before that."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = time.monotonic()
            begin = max(self._free_at, now - BURST)
            self._free_at = begin + length / self._rate
            return max(0.0, self._free_at - now)
