"""
How much is read at once: disks by this agent, and connections to one disk.

vdsm's qemu-nbd serves 8 connections and leaves the ninth hanging (ovirt-facts, 6.4). Image I/O takes one for each of
our signs of life, and one more may be somebody's who reads through it, so 6 are ours.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from blockferry_agent import errors
from blockferry_agent.imageio import Ticket

MAX_CONNECTIONS = 6
"""NBD connections to one disk."""

PATIENCE = 5.0
"""Seconds that a call waits for connections which another one is about to give back."""


class Gate:
    """
    Lets calls in. May be used by any number of threads.

    max_reads: disks that are read at once.
    """

    def __init__(self, max_reads: int, patience: float = PATIENCE) -> None:
        self._max_reads = max_reads
        self._patience = patience
        self._changed = threading.Condition()  # guards all below
        self._reads = 0
        self._connections: Counter[str] = Counter()

    @property
    def reads(self) -> int:
        """Reads that are in at this moment."""
        return self._reads

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Be one of the reads. Raises Busy."""
        with self._changed:
            if self._reads >= self._max_reads:
                raise errors.Busy(
                    f"The agent reads {self._reads} disks already, and may not read more.",
                    "Wait for other backups, or raise max_reads in its configuration.",
                )
            self._reads += 1
        try:
            yield
        finally:
            with self._changed:
                self._reads -= 1

    @contextlib.contextmanager
    def connections(self, ticket: Ticket, count: int) -> Iterator[None]:
        """Have the right to `count` connections to a ticket's disk, waiting for it a little. Raises Busy."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._connections[ticket.id] + count <= MAX_CONNECTIONS, timeout=self._patience
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
