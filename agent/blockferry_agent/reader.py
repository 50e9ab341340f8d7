"""
The block reader: from extents to blocks, read by several connections, handed out in disk order.

    source ─▶ extents ─▶ ranges ─┬─▶ worker: read, hash ─┬─▶ blocks in disk order
                                 ├─▶ worker: read, hash ─┤
                                 └─▶ worker: read, hash ─┘

Workers are threads that share the iterator of ranges; each has its own connection and buffer. None takes a range while
too many blocks wait for the receiver, so a few windows are in memory, however large the disk and however slow the
receiver. The first error stops everyone and is the one raised.

A block's data is lent: it lies in a buffer that is used again when the receiver asks for the next block. So nothing
is copied here, and a few buffers serve a whole disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Callable

from blockferry_agent import blocks, compression, digest, errors
from blockferry_agent.blocks import Block, Kind, Range, ReadRequest, Summary
from blockferry_agent.source import Extent, Source
from blockferry_agent.throttle import Throttle
from blockferry_agent.units import MiB

MAX_AHEAD = 8 * MiB
"""Bytes of blocks between the disk and the receiver, when windows are large; there are never fewer than two blocks."""

_IN_TRANSIT = 5
"""The block that the receiver has in hand, compressed, as a message, and what gRPC has yet to send of it."""


Cut = Callable[[Iterable[Extent], ReadRequest], Iterator[Range]]
"""Makes ranges, none longer than the request's window but zeros, of the extents of the request's range."""


def read(
    open_source: Callable[[], Source],
    request: ReadRequest,
    workers: int,
    throttles: Sequence[Throttle] = (),
    cut: Cut = blocks.ranges,
) -> Reading:
    """
    Return a reading, which starts when it is iterated.

    open_source: connects to the disk. Called by several threads: once for the extents, at most once for each worker.
    workers: threads that read, 1 or more.  throttles: limits of speed beside the request's own.
    cut: says what is read; each range becomes one block.
    """
    return Reading(open_source, request, workers, throttles, cut)


def memory(workers: int, window: int) -> int:
    """Return the bytes that a reading needs at most, with what its receiver makes of the block that it has in hand."""
    return (_max_taken(workers, window) + _IN_TRANSIT) * window


def _max_taken(workers: int, window: int) -> int:
    """Return how many blocks may be between the disk and the receiver."""
    return max(2, min(workers + 2, MAX_AHEAD // window))


class Reading:
    """
    Blocks of a range of a disk, in disk order. Iterated once, by one thread. A block's data is good until the next
    block is asked for.

    Iterating raises the first error of the source. When the iterator ends, raises or is dropped, the workers have
    stopped and their connections are closed.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        request: ReadRequest,
        workers: int,
        throttles: Sequence[Throttle],
        cut: Cut,
    ) -> None:
        self._open_source = open_source
        self._request = request
        self._cut = cut
        self._throttles = [Throttle(request.bytes_per_second), *throttles]
        self._dirty = 0
        self._summary: Summary | None = None

        self._taking = threading.Lock()  # held by the worker that takes the next range
        self._ranges = self._open_ranges()

        self._changed = threading.Condition()  # guards all below
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._max_taken = _max_taken(workers, request.window)
        self._workers = min(workers, self._max_taken)
        self._taken = 0
        self._handed_out = 0
        self._ready: dict[int, tuple[Block, bytearray | None]] = {}
        self._free: list[bytearray] = []
        self._lent: bytearray | None = None
        self._read = 0
        self._moved = 0
        self._stalled = 0.0
        self._error: BaseException | None = None
        self._stopped = False

    def __iter__(self) -> Iterator[Block]:
        try:
            self._start()
            while True:
                block = self._next()
                if block is None:
                    break
                yield block
            self._summary = Summary(self._handed_out, self._dirty, self._read, self._moved, self._stalled)
        finally:
            self.close()

    @property
    def finished(self) -> bool:
        """Whether the last block was handed out."""
        return self._summary is not None

    @property
    def read_bytes(self) -> int:
        """Bytes that were read from the disk so far."""
        return self._read

    @property
    def summary(self) -> Summary:
        """What was covered. Only after the last block."""
        assert self._summary is not None, "asked before the last block"
        return self._summary

    def stop(self) -> None:
        """Make the workers end, and the iteration fail, as soon as the block in hand is read. From any thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait until all connections are closed. From any thread; may be called again."""
        self.stop()
        for thread in self._threads:
            thread.join()
        with self._taking:
            self._ranges.close()

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The receiver's side

    def _start(self) -> None:
        with self._changed:
            self._raise_if_ended()
            for number in range(self._workers):
                thread = threading.Thread(target=self._work, name=f"reader-{number}", daemon=True)
                thread.start()  # fails when the host has no more threads; `close` joins those that started
                self._threads.append(thread)
                self._running += 1

    def _next(self) -> Block | None:
        """Wait for the next block in disk order; None behind the last."""
        with self._changed:
            self._give_back(self._lent)
            self._lent = None
            while self._handed_out not in self._ready:
                self._raise_if_ended()
                if not self._running:
                    return None
                self._changed.wait()
            self._raise_if_ended()
            block, self._lent = self._ready.pop(self._handed_out)
            self._handed_out += 1
            self._changed.notify_all()
            return block

    def _raise_if_ended(self) -> None:
        if self._error is not None:
            raise self._error
        if self._stopped:
            raise errors.Error("The reading was stopped before its end.")

    # The workers' side

    def _work(self) -> None:
        source: Source | None = None
        try:
            while True:
                taken = self._take()
                if taken is None:
                    break
                number, piece = taken
                if piece.zero:
                    self._put(number, Block(piece.start, piece.length, Kind.ZERO), None)
                    continue
                if source is None:
                    source = self._open_source()
                buffer = self._buffer()
                view = memoryview(buffer)[: piece.length]
                source.readinto(piece.start, view)
                self._put(number, self._block(piece, view), buffer)
        except BaseException as error:
            self._fail(error)
        finally:
            if source is not None:
                source.close()
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _take(self) -> tuple[int, Range] | None:
        """Wait until the receiver has kept up, then take the next range and its number; None when all is done."""
        with self._taking:
            with self._changed:
                while self._taken - self._handed_out >= self._max_taken and not self._stopped:
                    began = time.monotonic()
                    self._changed.wait()
                    self._stalled += time.monotonic() - began
                if self._stopped:
                    return None
            piece = next(self._ranges, None)
            if piece is None or not self._is_let_through(piece):
                return None
            number = self._taken
            self._taken += 1
            return number, piece

    def _is_let_through(self, piece: Range) -> bool:
        """Wait until the limits of speed allow to read a range; False when the reading was stopped meanwhile."""
        if piece.zero:
            return True
        pause = max(throttle.reserve(piece.length) for throttle in self._throttles)
        with self._changed:
            return not self._changed.wait_for(lambda: self._stopped, timeout=pause)

    def _buffer(self) -> bytearray:
        """Return a buffer of a window's length; there are never more of them than blocks may be on their way."""
        with self._changed:
            return self._free.pop() if self._free else bytearray(self._request.window)

    def _give_back(self, buffer: bytearray | None) -> None:
        if buffer is not None:
            self._free.append(buffer)

    def _block(self, piece: Range, view: memoryview) -> Block:
        """Return the block of what was read."""
        start, length, _ = piece
        xxh3 = digest.xxh3(view)
        if xxh3 == digest.zeros(length):
            return Block(start, length, Kind.ZERO)
        if self._request.known.get((start, length)) == xxh3:
            return Block(start, length, Kind.SAME)
        if self._request.compress:
            compressed = compression.compress(view)
            if compressed is not None:
                return Block(start, length, Kind.DATA, xxh3, compressed, compressed=True)
        return Block(start, length, Kind.DATA, xxh3, view)

    def _put(self, number: int, block: Block, buffer: bytearray | None) -> None:
        """Have a block ready. buffer: that it was read into."""
        with self._changed:
            if buffer is not None:
                self._read += block.length
            if block.kind is Kind.DATA:
                self._moved += block.length
            if block.kind is not Kind.DATA or block.compressed:
                self._give_back(buffer)
                buffer = None
            self._ready[number] = block, buffer
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._error is None and not self._stopped:
                self._error = error
            self._stopped = True
            self._changed.notify_all()

    def _open_ranges(self) -> Generator[Range, None, None]:
        """Generate the ranges to read, over a connection of their own."""
        request = self._request
        source = self._open_source()
        try:
            extents = source.extents(request.start, request.length, request.incremental)
            yield from self._cut(self._counted(extents), request)
        finally:
            source.close()

    def _counted(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        for extent in extents:
            if extent.dirty:
                self._dirty += extent.length
            yield extent
