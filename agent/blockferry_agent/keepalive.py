"""
Signs of life for tickets whose disks are read past Image I/O.

Reading over NBD does not count as activity of a transfer: the engine aborts it after 60 s (its inactivity time-out)
unless Image I/O hears of the ticket, and a ticket expires after 300 s (ovirt-facts, 4.5).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Callable

from blockferry_agent import errors
from blockferry_agent.imageio import Ticket

log = logging.getLogger(__name__)


class KeepAlive:
    """
    Keeps tickets alive while somebody holds them. May be used by any number of threads.

    touch: gives one sign of life for a ticket's id.  interval: seconds between two of them.
    """

    def __init__(self, touch: Callable[[str], None], interval: float) -> None:
        self._touch = touch
        self._interval = interval
        self._lock = threading.Lock()  # guards all below
        self._hearts: dict[str, _Heart] = {}
        self._last_beats: dict[str, float] = {}

    @contextlib.contextmanager
    def hold(self, ticket: Ticket) -> Iterator[None]:
        """
        Keep `ticket` alive inside, together with whoever else holds it.

        The first sign is given at once, unless there was one less than an interval ago. One that fails is logged: the
        engine may still be patient, and when it is not, reading itself tells so.
        """
        heart = self._enter(ticket)
        try:
            yield
        finally:
            self._leave(ticket, heart)

    def _enter(self, ticket: Ticket) -> _Heart:
        with self._lock:
            heart = self._hearts.get(ticket.id)
            if heart is None:
                heart = self._hearts[ticket.id] = _Heart()
                threading.Thread(target=self._beat, args=(ticket, heart), name="keepalive", daemon=True).start()
            heart.holders += 1
            return heart

    def _leave(self, ticket: Ticket, heart: _Heart) -> None:
        with self._lock:
            heart.holders -= 1
            if not heart.holders:
                del self._hearts[ticket.id]
                heart.stopped.set()

    def _beat(self, ticket: Ticket, heart: _Heart) -> None:
        pause = self._until_due(ticket)
        while not heart.stopped.wait(pause):
            try:
                self._touch(ticket.id)
            except errors.Error as error:
                log.warning("transfer %s: %s", ticket.transfer_id, error)
            else:
                with self._lock:
                    self._last_beats[ticket.id] = time.monotonic()
            pause = self._interval

    def _until_due(self, ticket: Ticket) -> float:
        """Return the seconds until a ticket's next sign of life; forget tickets that nobody asked for in a while."""
        now = time.monotonic()
        with self._lock:
            recent = {key: beat for key, beat in self._last_beats.items() if beat > now - self._interval}
            self._last_beats = recent
            return recent[ticket.id] + self._interval - now if ticket.id in recent else 0.0


class _Heart:
    """One ticket's: how many hold it, and whether it is to stop."""

    def __init__(self) -> None:
        self.holders = 0
        self.stopped = threading.Event()
