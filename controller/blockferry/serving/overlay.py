"""
What clients write onto a disk that stays as it is: a sparse scratch file, which is gone with the server.

    grains:   | base | written | zero | base |        64 KiB each; one byte of state for each
    file:     |      |  data   |      |      |        data lies where it lies on the disk

A grain that is written in part gets the rest of its content from the base first.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from blockferry.serving.export import Disk, Extent, Piece
from blockferry_agent.units import KiB

GRAIN = 64 * KiB

_BASE, _WRITTEN, _ZERO = range(3)
_ALIKE = re.compile(rb"(.)\1*", re.DOTALL)
"""States that are the same, as many as there are."""
_PUNCH_HOLE = 0x02 | 0x01  # and keep the size: linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)


class _Run(NamedTuple):
    """A range (bytes) in one state."""

    start: int
    length: int
    state: int


class Overlay:
    """
    A disk that can be written, over a base (`export.Disk`). A context manager: it drops what was written.

    Writers take turns. Who reads what is being written gets the old or the new bytes, as on any disk.
    """

    read_only = False

    def __init__(self, base: Disk, directory: Path) -> None:
        """directory: where the scratch file is, without a name. Raises OSError."""
        self.size = base.size
        self._base = base
        self._writing = threading.Lock()
        # Private, so that states that are only looked at need no memory.
        self._states = mmap.mmap(-1, max(1, -(-self.size // GRAIN)), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 (closed by __exit__)
            os.truncate(self._file.fileno(), self.size)
        except OSError:
            self._states.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._states.close()

    def read(self, start: int, length: int) -> list[Piece]:
        """Return the content of a range (bytes). Raises what the base raises, and OSError."""
        pieces: list[Piece] = []
        for run in self._runs(start, length):
            if run.state == _BASE:
                pieces.extend(self._base.read(run.start, run.length))
            else:
                pieces.append(Piece(run.start, run.length, self._written(run) if run.state == _WRITTEN else None))
        return pieces

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        """Generate what a range (bytes) is made of. Raises what the base raises."""
        for run in self._runs(start, length):
            if run.state == _BASE:
                yield from self._base.extents(run.start, run.length)
            else:
                yield Extent(run.length, zero=run.state == _ZERO)

    def write(self, start: int, data: memoryview) -> None:
        """Write all of `data` at `start` (bytes). Raises what the base raises, and OSError (no room)."""
        with self._writing:
            end = start + len(data)
            self._own_edges(start, end)
            try:
                self._write(start, data)
            except OSError:
                self._drop_rest(start, end)
                raise
            self._mark(start // GRAIN, -(-end // GRAIN), _WRITTEN)

    def zero(self, start: int, length: int) -> None:
        """Make a range (bytes) read as zeros; what it took on the scratch file is free again. Raises as `write`."""
        with self._writing:
            end = start + length
            self._own_edges(start, end)
            # Edges, which `_own_edges` made written, keep that state; what is whole becomes zero.
            first, last = -(-start // GRAIN), (end if end == self.size else end // GRAIN * GRAIN)
            self._punch(start, length)
            self._mark(first, -(-last // GRAIN), _ZERO)

    def _own_edges(self, start: int, end: int) -> None:
        """Bring the first and the last grain of a range, where it covers them in part, into the file."""
        if start % GRAIN:
            self._own(start // GRAIN)
        if end % GRAIN and end != self.size:
            self._own(end // GRAIN)

    def _own(self, grain: int) -> None:
        if self._states[grain] == _BASE:
            begin = grain * GRAIN
            for piece in self._base.read(begin, min(GRAIN, self.size - begin)):
                # The file is zero where it was never written.
                if piece.data is not None:
                    self._write(piece.start, piece.data)
        self._states[grain] = _WRITTEN

    def _drop_rest(self, start: int, end: int) -> None:
        """Empty the grains of a range that did not become written: who owns one later counts on that."""
        for run in self._runs(start, end - start):
            if run.state != _WRITTEN:
                self._punch(run.start, run.length)

    def _mark(self, first: int, last: int, state: int) -> None:
        if first < last:
            self._states[first:last] = bytes([state]) * (last - first)

    def _punch(self, start: int, length: int) -> None:
        place, count = ctypes.c_int64(start), ctypes.c_int64(length)
        if _libc.fallocate(self._file.fileno(), _PUNCH_HOLE, place, count):
            # A file system without holes: the zeros are written.
            zeros = memoryview(bytes(GRAIN))
            for position in range(start, start + length, GRAIN):
                self._write(position, zeros[: start + length - position])

    def _runs(self, start: int, length: int) -> Iterator[_Run]:
        """Generate the ranges of one state, cut to a range (bytes)."""
        first, end = start // GRAIN, start + length
        for alike in _ALIKE.finditer(self._states[first : -(-end // GRAIN)]):
            begin = max(start, (first + alike.start()) * GRAIN)
            yield _Run(begin, min(end, (first + alike.end()) * GRAIN) - begin, alike[1][0])

    def _written(self, run: _Run) -> memoryview:
        data = os.pread(self._file.fileno(), run.length, run.start)
        if len(data) != run.length:
            raise OSError("the scratch file was cut")
        return memoryview(data)

    def _write(self, start: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._file.fileno(), data, start)
            start += written
            data = data[written:]
