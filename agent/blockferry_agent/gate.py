"""
How much is read at once: disks by this agent, within one budget of memory, and connections to one disk.

Who finds the agent full waits in line. The next one goes in as soon as there is memory for one worker, and gets as many
workers as there is memory for, so that nobody is overtaken by those who need less.

The next one is whoever came first of the caller that reads least. So with two controllers each gets half of the places,
however many disks one of them wants to read, and however early it came. When the line is full, too, the caller who
reads and waits for most gives up his last place in it to one with less.

vdsm's qemu-nbd serves 8 connections and leaves the ninth hanging (ovirt-facts, 6.4). Image I/O takes one for each of
our signs of life, and one more may be somebody's who reads through it, so 6 are ours.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator

from blockferry_agent import errors, reader
from blockferry_agent.imageio import Ticket
from blockferry_agent.units import MiB

MAX_CONNECTIONS = 6
"""NBD connections to one disk."""

MAX_LOOKUPS = 4
"""Calls that ask Image I/O for one and the same ticket at once; a controller has one or two of them under way."""

MEMORY = 64 * MiB
"""
Bytes for all readings together. The agent has 40 MiB without them, malloc adds up to a half for its gaps, and the
agent may have 150 MiB. One reading with the largest window takes all of it, for a single worker.
"""

LINE_PATIENCE = 30.0
"""Seconds that a call waits in line; a full read is many short calls, so places become free all the time."""

LULL = 2.0
"""Seconds without a read after which the agent is idle: between the calls of one disk there are short pauses."""

CONNECTION_PATIENCE = 5.0
"""Seconds that a call waits for connections which another one is about to give back."""


class _Place:
    """
    A place in the line.

    given_up: it was taken away from its caller.
    """

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.given_up = False


class Gate:
    """
    Lets calls in. May be used by any number of threads.

    max_reads: disks that are read at once, at most, and calls that wait in line.
    line_patience, connection_patience, lull: seconds.
    """

    def __init__(
        self,
        max_reads: int,
        line_patience: float = LINE_PATIENCE,
        connection_patience: float = CONNECTION_PATIENCE,
        lull: float = LULL,
    ) -> None:
        self._max_reads = max_reads
        self._line_patience = line_patience
        self._connection_patience = connection_patience
        self._lull = lull
        self._changed = threading.Condition()  # guards all below
        self._reads: Counter[str] = Counter()  # by caller
        self._memory = 0
        self._line: list[_Place] = []  # in the order of their coming
        self._closed = False
        self._last_read = -math.inf  # when it ended
        self._connections: Counter[str] = Counter()
        self._lookups: Counter[str] = Counter()

    @property
    def reads(self) -> int:
        """Reads that are in at this moment."""
        with self._changed:
            return sum(self._reads.values())

    @property
    def closed(self) -> bool:
        """Whether nobody may read any more."""
        return self._closed

    @contextlib.contextmanager
    def read(self, workers: int, window: int, caller: str = "") -> Iterator[int]:
        """
        Be one of the reads, waiting in line for it; the value is how many workers it may have, at most `workers`.

        window: of the reading, bytes.  caller: for whom; the places are shared evenly among callers.  Raises Busy.
        """
        with self._changed:
            self._wait_in_line(window, caller)
            workers = next(count for count in range(workers, 0, -1) if self._has_memory(count, window))
            memory = reader.memory(workers, window)
            self._reads[caller] += 1
            self._memory += memory
            self._changed.notify_all()
        try:
            yield workers
        finally:
            with self._changed:
                self._reads[caller] -= 1
                if not self._reads[caller]:
                    del self._reads[caller]
                self._memory -= memory
                self._last_read = time.monotonic()
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody read any more, and send those away who wait in line."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close_if_idle(self) -> bool:
        """Close unless somebody reads, waits for it, or has done so a moment ago; return whether it is closed."""
        with self._changed:
            if not (self.reads or self._line or time.monotonic() < self._last_read + self._lull):
                self._closed = True
            return self._closed

    def _wait_in_line(self, window: int, caller: str) -> None:
        """Return when a reading with one worker may go in."""
        place = self._queue_up(caller)

        def is_let_in() -> bool:
            return self._next() is place and self.reads < self._max_reads and self._has_memory(1, window)

        try:
            self._changed.wait_for(lambda: self._closed or place.given_up or is_let_in(), timeout=self._line_patience)
            if self._closed or place.given_up or not is_let_in():
                raise self._busy()
        finally:
            if not place.given_up:
                self._line.remove(place)
            self._changed.notify_all()

    def _queue_up(self, caller: str) -> _Place:
        """Take the last place in the line."""
        if len(self._line) >= self._max_reads:
            held = self._reads + Counter(place.caller for place in self._line)
            # Of the greediest caller, the one who came last.
            last = max(reversed(self._line), key=lambda place: held[place.caller])
            if held[caller] + 1 >= held[last.caller]:
                raise self._busy()
            last.given_up = True
            self._line.remove(last)
            self._changed.notify_all()
        place = _Place(caller)
        self._line.append(place)
        return place

    def _next(self) -> _Place:
        """Return whose turn it is: of those with the fewest reads, the one who waits longest."""
        return min(self._line, key=lambda place: self._reads[place.caller])

    def _has_memory(self, workers: int, window: int) -> bool:
        return self._memory + reader.memory(workers, window) <= MEMORY

    def _busy(self) -> errors.Busy:
        if self._closed:
            return errors.Busy("The agent is stopping.", "Try again when it has been started.")
        return errors.Busy(
            f"The agent reads {self.reads} disks already, and may not read more.",
            "Wait for other backups. Fewer disks at once, or smaller windows, need less of its memory.",
        )

    @contextlib.contextmanager
    def connections(self, ticket: Ticket, count: int) -> Iterator[None]:
        """Have the right to `count` connections to a ticket's disk, waiting for it a little. Raises Busy."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._connections[ticket.id] + count <= MAX_CONNECTIONS, timeout=self._connection_patience
            ):
                raise errors.Busy(f"The disk of transfer {ticket.transfer_id} is being read already.", "Try later.")
            self._connections[ticket.id] += count
        try:
            yield
        finally:
            with self._changed:
                self._connections[ticket.id] -= count
                if not self._connections[ticket.id]:
                    del self._connections[ticket.id]
                self._changed.notify_all()

    @contextlib.contextmanager
    def lookup(self, ticket_id: str) -> Iterator[None]:
        """Be one of the few who ask for a ticket at this moment. Raises Busy."""
        with self._changed:
            if self._lookups[ticket_id] >= MAX_LOOKUPS:
                raise errors.Busy("The agent is asked for one disk by too many calls at once.", "Try later.")
            self._lookups[ticket_id] += 1
        try:
            yield
        finally:
            with self._changed:
                self._lookups[ticket_id] -= 1
                if not self._lookups[ticket_id]:
                    del self._lookups[ticket_id]
