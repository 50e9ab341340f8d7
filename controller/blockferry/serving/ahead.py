"""When clients read on and on, and how far ahead of them to fetch."""

from __future__ import annotations

import threading
from collections import OrderedDict

from blockferry_agent.units import MiB

_RUNS = 16
"""Sequential readings that are followed at once: as many as a client has connections, and more."""
_SLACK = 4 * MiB
"""Bytes around a reading's end where its next read may start: several are in flight, and come in any order."""


class _Run:
    """
    A sequential reading.

    end: bytes; where its furthest read ended.  asked: bytes; up to where it was fetched ahead.  reads: how many so far.
    """

    def __init__(self, end: int) -> None:
        self.end = end
        self.asked = end
        self.reads = 1


class ReadAhead:
    """Follows the reads of a disk; several threads may tell it of theirs."""

    def __init__(self, distance: int) -> None:
        """distance: bytes to be ahead of a sequential reading; 0 for never."""
        self._distance = distance
        self._lock = threading.Lock()
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        """By an arbitrary key, the least recently met first."""

    def after(self, start: int, length: int) -> range:
        """Return what to fetch (bytes) now that a range is read: nothing, unless reads before it led up to it."""
        end = start + length
        with self._lock:
            run = self._run_at(start)
            if run is None:
                self._begin(end)
                return range(0)
            run.reads += 1
            run.end = max(run.end, end)
            wanted = range(max(run.asked, run.end), run.end + self._distance)
            run.asked = max(run.asked, wanted.stop)
            return wanted

    def _run_at(self, start: int) -> _Run | None:
        for key, run in self._runs.items():
            if abs(run.end - start) <= min(_SLACK, self._distance):
                self._runs.move_to_end(key)
                return run
        return None

    def _begin(self, end: int) -> None:
        self._runs[end] = _Run(end)
        self._runs.move_to_end(end)
        if len(self._runs) > _RUNS:
            self._runs.popitem(last=False)
