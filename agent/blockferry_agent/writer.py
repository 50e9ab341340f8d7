"""
The block writer: blocks, in disk order, onto a disk, written by several connections.

    blocks ─┬─▶ worker: check, write ─┬─▶ positions, in disk order ─▶ flush ─▶ the last position
            ├─▶ worker: check, write ─┤
            └─▶ worker: check, write ─┘

The reader's mirror image (`reader`): workers are threads that share the iterator of blocks; each has its own
connection, and none asks for another block before the one that it has is written. So as many blocks are in memory as
there are workers (a reading of as many workers and the same window needs more), and a slow storage slows down whoever
makes the blocks. The first error stops everyone and is the one raised.

Nothing of a block is written before its content was checked against its digest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple

from blockferry_agent import compression, digest, errors, reader
from blockferry_agent.blocks import Block, Data, Kind
from blockferry_agent.sink import Sink
from blockferry_agent.throttle import Throttle

INTERVAL = 0.1
"""Seconds between two positions: to tell of each block would cost more than to write it, when blocks are small."""


class Written(NamedTuple):
    """
    What a finished writing did.

    blocks: that came.  data: bytes of content that were written.  zeros: bytes that were made zeros, or were already.
    """

    blocks: int
    data: int
    zeros: int


class Target(NamedTuple):
    """
    A disk to write to.

    connect: returns a new connection. Called by several threads.
    size: bytes.  may_punch: the storage may give up the space of zeros.
    """

    connect: Callable[[], Sink]
    size: int
    may_punch: bool


def _nothing() -> None: ...


class Writing:
    """
    The positions up to which everything is written, as `Upload.write` in the controller has them. Iterated once, by
    one thread; blocks are written only while it is.

    Iterating raises the first error of the disk, of the blocks' maker, or InvalidRequest for blocks that are not in
    order, not within the disk, or not what their digest says. When the iterator ends, raises or is dropped, the workers
    have stopped and their connections are closed; `blocks` is not touched any more.
    """

    def __init__(
        self,
        target: Target,
        blocks: Iterable[Block],
        window: int,
        workers: int,
        throttles: Sequence[Throttle] = (),
        interrupt: Callable[[], None] = _nothing,
    ) -> None:
        """
        blocks: of kind DATA and ZERO, their data the receiver's.  window: the longest that a DATA block may be, bytes.
        workers: threads that write, 1 or more; only one does where the disk's server allows no more.
        throttles: limits of speed.  interrupt: makes a worker return that waits for the next of `blocks`; called when
        the writing stops, possibly more than once. Without it, stopping takes as long as `blocks` take.
        """
        self._target = target
        self._window = window
        self._max_workers = max(1, min(workers, reader.MAX_AHEAD // window))
        self._throttles = throttles
        self._interrupt = interrupt

        self._taking = threading.Lock()  # held by the worker that takes the next block
        self._blocks = iter(blocks)
        self._end = 0

        self._ended = threading.Condition()  # guards all below; told when the workers have ended, or must
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._taken = 0
        self._ahead: dict[int, int] = {}  # ends of blocks that are written, behind one that is not
        self._blocks_done = 0
        self._done_to = 0
        self._position = 0
        self._data = self._zeros = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._finished = False

    def __iter__(self) -> Iterator[int]:
        sink = self._target.connect()
        try:
            self._start(sink)
            position = 0
            while True:
                reached = self._wait_beyond(position)
                if reached is None:
                    break
                position = reached
                yield position
            sink.flush()
            self._finished = True
            if self._taken:
                yield self._done_to
        finally:
            self.close()
            sink.close()

    @property
    def written(self) -> Written:
        """What was done so far."""
        return Written(self._blocks_done, self._data, self._zeros)

    @property
    def finished(self) -> bool:
        """Whether everything is written and flushed."""
        return self._finished

    def stop(self) -> None:
        """Make the workers end, and the iteration fail, as soon as the block in hand is written. From any thread."""
        with self._ended:
            self._stopped = True
            self._ended.notify_all()
        self._interrupt()

    def close(self) -> None:
        """Stop, and wait until nothing is written any more. From any thread; may be called again."""
        self.stop()
        for thread in self._threads:
            thread.join()

    # The side of whoever takes the positions

    def _start(self, first: Sink) -> None:
        """Start the workers. first: the first one's connection, which is not the worker's to close."""
        with self._ended:
            self._raise_if_ended()
            for number in range(self._max_workers if first.is_shareable else 1):
                thread = threading.Thread(
                    target=self._work, args=(first if number == 0 else None,), name=f"writer-{number}", daemon=True
                )
                thread.start()  # fails when the host has no more threads; `close` joins those that started
                self._threads.append(thread)
                self._running += 1

    def _wait_beyond(self, position: int) -> int | None:
        """Wait until the position is beyond `position`, and return it; None when all blocks are written."""
        with self._ended:
            while True:
                self._ended.wait_for(lambda: self._stopped or not self._running, timeout=INTERVAL)
                self._raise_if_ended()
                if not self._running:
                    return None
                if self._position > position:
                    return self._position

    def _raise_if_ended(self) -> None:
        if self._error is not None:
            raise self._error
        if self._stopped:
            raise errors.Error("The writing was stopped before its end.")

    # The workers' side

    def _work(self, sink: Sink | None) -> None:
        own: Sink | None = None
        try:
            while True:
                taken = self._take()
                if taken is None:
                    break
                number, block = taken
                if sink is None:
                    sink = own = self._target.connect()
                self._write(sink, block)
                self._finish(number, block)
        except BaseException as error:
            self._fail(error)
        finally:
            if own is not None:
                own.close()
            with self._ended:
                self._running -= 1
                self._ended.notify_all()

    def _take(self) -> tuple[int, Block] | None:
        """Take the next block and its number; None when all is done, or the writing was stopped."""
        with self._taking:
            if self._stopped:
                return None
            block = next(self._blocks, None)
            if block is None:
                return None
            self._check(block)
            self._end = block.end
            number = self._taken
            self._taken += 1
            return (number, block) if self._is_let_through(block) else None

    def _check(self, block: Block) -> None:
        """Raise InvalidRequest for a block that has no place on the disk."""
        if block.start < self._end or block.length <= 0 or block.end > self._target.size:
            raise errors.InvalidRequest(
                f"A block of {block.length} bytes at {block.start} follows one that ends at {self._end}, "
                f"on a disk of {self._target.size} bytes."
            )
        if block.kind is Kind.SAME or (block.kind is Kind.DATA and block.length > self._window):
            raise errors.InvalidRequest(
                f"A block of kind {block.kind.value} and {block.length} bytes at {block.start} cannot be written: "
                f"data comes in at most {self._window} bytes."
            )

    def _is_let_through(self, block: Block) -> bool:
        """Wait until the limits of speed allow to write a block; False when the writing was stopped meanwhile."""
        if block.kind is Kind.ZERO:
            return True
        pause = max((throttle.reserve(block.length) for throttle in self._throttles), default=0.0)
        with self._ended:
            return not self._ended.wait_for(lambda: self._stopped, timeout=pause)

    def _write(self, sink: Sink, block: Block) -> None:
        if block.kind is Kind.ZERO:
            sink.zero(block.start, block.length, self._target.may_punch)
        else:
            sink.write(block.start, _content(block))

    def _finish(self, number: int, block: Block) -> None:
        """Note that a block is written; the position moves on when it is the next one in disk order."""
        with self._ended:
            if block.kind is Kind.ZERO:
                self._zeros += block.length
            else:
                self._data += block.length
            self._ahead[number] = block.end
            while self._blocks_done in self._ahead:
                # One block behind what is done: the last one's position comes only after the flush.
                self._position = self._done_to
                self._done_to = self._ahead.pop(self._blocks_done)
                self._blocks_done += 1

    def _fail(self, error: BaseException) -> None:
        with self._ended:
            if self._error is None and not self._stopped:
                self._error = error
        self.stop()


def _content(block: Block) -> Data:
    """Return what a block holds, which is what its digest says. Raises InvalidRequest."""
    try:
        data = compression.expand(block.data, block.length) if block.compressed else block.data
    except ValueError:
        data = b""
    if len(data) != block.length or digest.xxh3(data) != block.digest:
        raise errors.InvalidRequest(
            f"The block at {block.start} is not what its digest says, so it was not written.",
            "It was damaged on its way: run again.",
        )
    return data
