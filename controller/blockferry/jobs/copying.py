"""
Copy one disk: blocks from whatever transport carries it into the repository, and count them.

    ladder.open ─▶ request, request, … ─▶ done
        ▲              │ breaks
        └──────────────┘  what arrived is not asked for again
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypeVar

from blockferry import errors
from blockferry.config import Compression
from blockferry.jobs import compression
from blockferry.jobs.compression import Measured
from blockferry.jobs.progress import Progress
from blockferry.repository import Carrier, DiskWriter
from blockferry.transport.disk import Disk, Reading
from blockferry.transport.ladder import Ladder, Opened
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Kind, ReadRequest, Summary
from blockferry_agent.units import GiB, MiB

# A disk is asked for in pieces: small ones first, so that the first say soon how fast the way is, then each twice as
# large as the one before.
FIRST_SPAN = 64 * MiB

# The largest piece of a disk that is read whole, with the digests that the base has of it: so that both sides have a
# bounded number of them to remember.
KNOWN_SPAN = 1 * GiB

# What the wire allows (agent.proto). A block whose digest does not go along is moved again.
MAX_KNOWN = 65536
MAX_WHOLE_WINDOWS = 65536


class Closable(Protocol):
    """What is under way: a reading, or a disk that is written. `close` ends it, from any thread."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class Stop:
    """
    Stops the copying of all disks at once, when one of them failed or the operator asks for it.

    A copy that is stopped raises Interrupted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Closable] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End what is under way, and what will be."""
        with self._lock:
            self._stopped.set()
            under_way = list(self._open)
        for one in under_way:
            one.close()

    def check(self) -> None:
        """Raise Interrupted when it is time to stop."""
        self.pause(0)

    def pause(self, seconds: float) -> None:
        """Wait, but raise Interrupted as soon as it is time to stop."""
        if self._stopped.wait(seconds):
            raise errors.Interrupted("Stopped, because another disk failed or a signal came.")

    @contextlib.contextmanager
    def watch(self, one: C) -> Iterator[C]:
        """Close it at the end of the block, or when `stop` is called."""
        with self._lock:
            self._open.add(one)
        try:
            self.check()
            yield one
        finally:
            with self._lock:
                self._open.discard(one)
            one.close()


class Terms(NamedTuple):
    """
    How a disk is read.

    size: bytes.  incremental: only what changed since the base.  window: the repository's, in bytes.
    compression: of blocks on their way.  bytes_per_second: read no faster; 0 means without a limit.
    """

    size: int
    incremental: bool
    window: int
    compression: Compression = "auto"
    bytes_per_second: int = 0


class Copied(NamedTuple):
    """
    What was copied of a disk, in bytes, and what carried it, in disk order.

    dirty, read, moved: as `Summary` has them, each part of the disk counted once. A request that broke has no summary:
    for the part of it that arrived they are counted here, from its blocks. Then `moved` is exact; `dirty` takes a
    window that is read whole for dirty as a whole; `read` leaves out what was read and found to be zeros, and what the
    host had read ahead.
    """

    dirty: int
    read: int
    moved: int
    carriers: tuple[Carrier, ...]


def copy(ladder: Ladder[Disk], writer: DiskWriter, terms: Terms, label: str, stop: Stop, progress: Progress) -> Copied:
    """
    Copy what a backup of the disk needs; the writer got all blocks when this returns.

    label: the disk's name, for the progress.

    Raises TransportError when no transport is left, with every one's reason; what the disk or the repository raises;
    Interrupted when it was stopped.
    """
    tally = _Tally(progress, writer.disk_id)
    progress.begin(writer.disk_id, label, terms.size)
    carriers = _Copy(ladder, writer, terms, label, stop, progress, tally).run()
    progress.advance(writer.disk_id, terms.size, tally.moved)
    progress.end(writer.disk_id)
    return Copied(tally.dirty, tally.read, tally.moved, tuple(carriers))


class _Tally:
    """
    Counts the bytes of one disk, and tells the progress.

    dirty, read, moved: of all requests; those of the one that is under way as far as its blocks came.
    """

    def __init__(self, progress: Progress, key: str) -> None:
        self._progress = progress
        self._key = key
        self.dirty = self.read = self.moved = 0
        self._before = (0, 0)

    def begin(self) -> None:
        """A request begins."""
        self._before = self.dirty, self.read

    def add(self, block: Block) -> None:
        """A block arrived."""
        self.dirty += block.length
        self.read += block.length if block.kind is not Kind.ZERO else 0
        self.moved += len(block.data)
        self._progress.advance(self._key, block.end, self.moved)

    def end(self, summary: Summary) -> None:
        """The request ended well: what its reader counted is more exact."""
        dirty, read = self._before
        self.dirty, self.read = dirty + summary.dirty, read + summary.read


class _Requests:
    """What to ask one transport for. What was measured of another one says nothing about it."""

    def __init__(self, writer: DiskWriter, terms: Terms) -> None:
        self._writer = writer
        self._terms = terms
        self._span = FIRST_SPAN
        self._compression = compression.choice(terms.compression)

    def next(self, start: int) -> ReadRequest:
        """Return what to ask for next, from `start` on."""
        terms = self._terms
        most = MAX_WHOLE_WINDOWS * terms.window if terms.incremental else KNOWN_SPAN
        span = min(self._span, most)
        self._span = 2 * span
        # A transport may have broken within a window. The next request ends at a window's border all the same, so that
        # no block is cut where it would not be otherwise.
        length = min(start - start % terms.window + span, terms.size) - start
        damaged = self._writer.damaged_windows(start, length) if terms.incremental else []
        if damaged and damaged[0] <= start:
            # Whether it has changed or not: so that nothing needs what is damaged any more.
            length = min(damaged[0] + terms.window, terms.size) - start
        elif damaged:
            length = damaged[0] - start
        incremental = terms.incremental and not (damaged and damaged[0] <= start)
        request = ReadRequest(
            start,
            length,
            incremental,
            terms.window,
            compress=self._compression.compress,
            bytes_per_second=terms.bytes_per_second,
        )
        if incremental:
            return request._replace(whole_windows=self._writer.broken_windows(start, length))
        known = itertools.islice(self._writer.known(start, length).items(), MAX_KNOWN)
        return request._replace(known=dict(known))

    def learn(self, measured: Measured) -> None:
        """A request ended well."""
        self._compression.learn(measured)


class _Copy:
    """The copying of one disk."""

    def __init__(
        self,
        ladder: Ladder[Disk],
        writer: DiskWriter,
        terms: Terms,
        label: str,
        stop: Stop,
        progress: Progress,
        tally: _Tally,
    ) -> None:
        self._ladder = ladder
        self._writer = writer
        self._terms = terms
        self._label = label
        self._stop = stop
        self._progress = progress
        self._tally = tally
        # All before it is done: blocks arrived, or a request ended that found nothing behind the last of them.
        self._position = 0
        self._carriers: list[Carrier] = []

    def run(self) -> list[Carrier]:
        """Copy it, and return what carried it."""
        while self._position < self._terms.size:
            opened = self._ladder.open(lambda text: self._progress.warn(f"Disk {self._label} {text}"))
            if opened.why:
                goes = "goes on" if self._position else "goes"
                self._progress.warn(f"Disk {self._label} {goes} through {opened.transport}. {opened.why}")
            with contextlib.closing(opened.disk):
                self._carry(opened)
        return self._carriers

    def _carry(self, opened: Opened[Disk]) -> None:
        """Copy through one transport, to the end of the disk or to where it breaks."""
        start, moved = self._position, self._tally.moved
        requests = _Requests(self._writer, self._terms)
        failure: errors.Error | None = None
        try:
            while self._position < self._terms.size:
                requests.learn(self._copy_range(opened.disk, requests.next(self._position)))
        except errors.Error as error:
            failure = error
        carried = self._position > start
        if carried:
            self._carriers.append(
                Carrier(
                    transport=opened.transport,
                    start=start,
                    moved=self._tally.moved - moved,
                    reason=opened.why or None,
                    remark=opened.disk.remark or None,
                )
            )
        if failure is not None:
            self._ladder.broke(opened, failure, self._position, carried)

    def _copy_range(self, disk: Disk, request: ReadRequest) -> Measured:
        """Copy one range."""
        with self._stop.watch(disk.read(request)) as reading:
            try:
                return self._receive(request, reading)
            except errors.Error:
                # A reading that was closed from outside ends with whatever error its transport has for that.
                self._stop.check()
                raise

    def _receive(self, request: ReadRequest, reading: Reading) -> Measured:
        """Give the repository all blocks of one reading, and measure it."""
        self._tally.begin()
        moved, started, waited = self._tally.moved, time.monotonic(), 0.0
        blocks = iter(reading)
        while True:
            asked = time.monotonic()
            block = next(blocks, None)
            waited += time.monotonic() - asked
            if block is None:
                break
            self._writer.write(block)
            self._position = block.end
            self._tally.add(block)
        self._stop.check()
        summary = reading.summary
        self._end(request, summary)
        seconds = time.monotonic() - started
        return Measured(request.compress, self._tally.moved - moved, seconds, waited, summary.stalled)

    def _end(self, request: ReadRequest, summary: Summary) -> None:
        """A request ended well. Whatever of it brought no block is as in the base; in a full read there is no such."""
        end = request.start + request.length
        if not request.incremental and self._position != end:
            raise agent_errors.ProtocolError(f"The blocks from {request.start} to {end} ended at {self._position}.")
        self._position = end
        self._tally.end(summary)
