"""
How much is read at once: disks by this agent, within one budget of memory, and connections to one disk.

Who finds the agent full waits in line. The first in line goes in as soon as there is memory for one worker, and gets
as many workers as there is memory for, so that nobody is overtaken by those who need less.

vdsm's qemu-nbd serves 8 connections and leaves the ninth hanging (ovirt-facts, 6.4). Image I/O takes one for each of
our signs of life, and one more may be somebody's who reads through it, so 6 are ours.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from blockferry_agent import errors, reader
from blockferry_agent.imageio import Ticket
from blockferry_agent.units import MiB

MAX_CONNECTIONS = 6
"""NBD connections to one disk."""

MEMORY = 64 * MiB
"""
Bytes for all readings together. The agent has 40 MiB without them, malloc adds up to a half for its gaps, and the
agent may have 150 MiB. One reading with the largest window takes all of it, for a single worker.
"""

LINE_PATIENCE = 30.0
"""Seconds that a call waits in line; a full read is many short calls, so places become free all the time."""

CONNECTION_PATIENCE = 5.0
"""Seconds that a call waits for connections which another one is about to give back."""


class Gate:
    """
    Lets calls in. May be used by any number of threads.

    max_reads: disks that are read at once, at most, and calls that wait in line.
    line_patience, connection_patience: seconds.
    """

    def __init__(
        self,
        max_reads: int,
        line_patience: float = LINE_PATIENCE,
        connection_patience: float = CONNECTION_PATIENCE,
    ) -> None:
        self._max_reads = max_reads
        self._line_patience = line_patience
        self._connection_patience = connection_patience
        self._changed = threading.Condition()  # guards all below
        self._reads = 0
        self._memory = 0
        self._line: list[object] = []
        self._closed = False
        self._connections: Counter[str] = Counter()

    @property
    def reads(self) -> int:
        """Reads that are in at this moment."""
        return self._reads

    @contextlib.contextmanager
    def read(self, workers: int, window: int) -> Iterator[int]:
        """
        Be one of the reads, waiting in line for it; the value is how many workers it may have, at most `workers`.

        window: of the reading, bytes.  Raises Busy.
        """
        with self._changed:
            self._wait_in_line(window)
            workers = next(count for count in range(workers, 0, -1) if self._has_memory(count, window))
            memory = reader.memory(workers, window)
            self._reads += 1
            self._memory += memory
            self._changed.notify_all()
        try:
            yield workers
        finally:
            with self._changed:
                self._reads -= 1
                self._memory -= memory
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody read any more, and send those away who wait in line."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_in_line(self, window: int) -> None:
        """Return when a reading with one worker may go in."""
        place = object()

        def is_let_in() -> bool:
            return self._line[0] is place and self._reads < self._max_reads and self._has_memory(1, window)

        if len(self._line) >= self._max_reads:
            raise self._busy()
        self._line.append(place)
        try:
            self._changed.wait_for(lambda: self._closed or is_let_in(), timeout=self._line_patience)
            if self._closed or not is_let_in():
                raise self._busy()
        finally:
            self._line.remove(place)
            self._changed.notify_all()

    def _has_memory(self, workers: int, window: int) -> bool:
        return self._memory + reader.memory(workers, window) <= MEMORY

    def _busy(self) -> errors.Busy:
        if self._closed:
            return errors.Busy("The agent is stopping.", "Try again when it has been started.")
        return errors.Busy(
            f"The agent reads {self._reads} disks already, and may not read more.",
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
