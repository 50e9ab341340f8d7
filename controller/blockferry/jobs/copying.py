"""Copy one disk: blocks from a transport into the repository, and count them."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator

from blockferry import errors
from blockferry.jobs.progress import Progress
from blockferry.repository import DiskWriter
from blockferry.transport.disk import Disk, Reading
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, ReadRequest, Summary
from blockferry_agent.units import GiB

# A disk that is read whole is asked for in pieces of this size, each with the digests that the base has of it: so that
# both sides have a bounded number of them to remember.
KNOWN_SPAN = 1 * GiB

# What the wire allows (agent.proto). A block whose digest does not go along is moved again.
MAX_KNOWN = 65536
MAX_WHOLE_WINDOWS = 65536

# Seconds for which a host that has enough to do is asked again, and between two questions.
BUSY_TIMEOUT = 900
BUSY_PAUSE = 5


class Stop:
    """
    Stops the copying of all disks at once, when one of them failed or the operator asks for it.

    A copy that is stopped raises Interrupted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readings: set[Reading] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the readings that are open, and those that will be opened."""
        with self._lock:
            self._stopped.set()
            readings = list(self._readings)
        for reading in readings:
            reading.close()

    def check(self) -> None:
        """Raise Interrupted when it is time to stop."""
        self.pause(0)

    def pause(self, seconds: float) -> None:
        """Wait, but raise Interrupted as soon as it is time to stop."""
        if self._stopped.wait(seconds):
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
        summary = _copy_range(disk, request, writer, stop, _Tally(progress, key, total.moved))
        total = total.plus(summary)
    progress.advance(key, disk.size, total.moved)
    progress.end(key)
    return total


class _Tally:
    """Tells the progress of one disk. moved: bytes before the range that is being copied."""

    def __init__(self, progress: Progress, key: str, moved: int) -> None:
        self._progress = progress
        self._key = key
        self._moved = moved

    def add(self, block: Block) -> None:
        self._moved += len(block.data)
        self._progress.advance(self._key, block.end, self._moved)


def _copy_range(disk: Disk, request: ReadRequest, writer: DiskWriter, stop: Stop, tally: _Tally) -> Summary:
    """Copy one range. Asks again while the agent has enough to do with other disks. Raises what `copy` raises."""
    give_up = time.monotonic() + BUSY_TIMEOUT
    before = writer.position
    while True:
        with stop.watch(disk.read(request)) as reading:
            try:
                for block in reading:
                    writer.write(block)
                    tally.add(block)
                stop.check()
                return reading.summary
            except agent_errors.Busy:
                if writer.position != before or time.monotonic() > give_up:
                    raise
            except errors.Error:
                # A reading that was closed from outside ends with whatever error its transport has for that.
                stop.check()
                raise
        stop.pause(BUSY_PAUSE)


def _requests(size: int, writer: DiskWriter, incremental: bool, window: int) -> Iterator[ReadRequest]:
    span = MAX_WHOLE_WINDOWS * window if incremental else KNOWN_SPAN
    for start in range(0, size, span):
        length = min(span, size - start)
        if incremental:
            yield ReadRequest(start, length, True, window, whole_windows=writer.broken_windows(start, length))
        else:
            known = dict(itertools.islice(writer.known(start, length).items(), MAX_KNOWN))
            yield ReadRequest(start, length, False, window, known=known)
