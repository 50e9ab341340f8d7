"""Copy one disk: blocks from a transport into the repository, and count them."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator

from blockferry import errors
from blockferry.jobs.progress import Progress
from blockferry.repository import DiskWriter
from blockferry.transport.disk import Disk, Reading
from blockferry_agent.blocks import ReadRequest, Summary
from blockferry_agent.units import GiB

# A disk that is read whole is asked for in pieces of this size, each with the digests that the base has of it: so that
# both sides have a bounded number of them to remember.
KNOWN_SPAN = 1 * GiB

# What the wire allows (agent.proto). A block whose digest does not go along is moved again; a window that does not
# stays in many pieces until the next backup.
MAX_KNOWN = 65536
MAX_WHOLE_WINDOWS = 65536


class Stop:
    """
    Stops the copying of all disks at once, when one of them failed or the operator asks for it.

    A copy that is stopped raises Interrupted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readings: set[Reading] = set()
        self._stopped = False

    def stop(self) -> None:
        """End the readings that are open, and those that will be opened."""
        with self._lock:
            self._stopped = True
            readings = list(self._readings)
        for reading in readings:
            reading.close()

    def check(self) -> None:
        """Raise Interrupted when it is time to stop."""
        if self._stopped:
            raise errors.Interrupted("Stopped, because another disk failed or a signal came.")

    @contextlib.contextmanager
    def watch(self, reading: Reading) -> Iterator[Reading]:
        """Close the reading at the end of the block, or when `stop` is called."""
        with self._lock:
            self._readings.add(reading)
        try:
            self.check()
            yield reading
        finally:
            with self._lock:
                self._readings.discard(reading)
            reading.close()


def copy(
    disk: Disk, writer: DiskWriter, incremental: bool, window: int, label: str, stop: Stop, progress: Progress
) -> Summary:
    """
    Copy what a backup of the disk needs; the writer got all blocks when this returns.

    incremental: only what changed since the base.  window: the repository's, in bytes.  label: for the progress.

    Raises what the transport or the repository raises; Interrupted when it was stopped.
    """
    key = writer.disk_id
    progress.begin(key, label, disk.size)
    total = Summary(0, 0, 0, 0)
    for request in _requests(disk.size, writer, incremental, window):
        with stop.watch(disk.read(request)) as reading:
            moved = total.moved
            try:
                for block in reading:
                    writer.write(block)
                    moved += len(block.data)
                    progress.advance(key, block.end, moved)
            except errors.Error:
                # A reading that was closed from outside ends with whatever error its transport has for that.
                stop.check()
                raise
            stop.check()
            total = Summary(*(a + b for a, b in zip(total, reading.summary, strict=True)))
    progress.advance(key, disk.size, total.moved)
    progress.end(key)
    return total


def _requests(size: int, writer: DiskWriter, incremental: bool, window: int) -> Iterator[ReadRequest]:
    if incremental:
        broken = frozenset(itertools.islice(sorted(writer.broken_windows(0, size)), MAX_WHOLE_WINDOWS))
        yield ReadRequest(0, size, True, window, whole_windows=broken)
        return
    for start in range(0, size, KNOWN_SPAN):
        length = min(KNOWN_SPAN, size - start)
        known = dict(itertools.islice(writer.known(start, length).items(), MAX_KNOWN))
        yield ReadRequest(start, length, False, window, known=known)
