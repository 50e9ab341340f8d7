"""How long an agent that has enough to do with other disks is waited for, and in which steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic

from blockferry_agent import errors as agent_errors

# Seconds for which a busy agent is waited for before the next transport gets the disk. Image I/O takes longer for a
# disk, and from the same host; but a backup must also come to its end on a host that is busy for hours.
PATIENCE = 300.0

# Each pause is so much longer than the one before, up to so many seconds, so that the transfer is not idle for the
# minute after which the engine gives it up; and up to so much longer by chance, so that the disks that wait for one
# agent do not come back all at once.
_GROWTH = 1.5
_MAX_PAUSE = 20.0
_JITTER = 0.5


class Patience:
    """
    The waiting for one disk's agent. Used by one thread.

    pause: waits for so many seconds; what it raises ends the waiting.  seconds: in all, from the first pause on.
    """

    def __init__(self, pause: Callable[[float], None], seconds: float = PATIENCE) -> None:
        self.seconds = seconds
        self._pause = pause
        self._ends: float | None = None
        self._longer = 1.0

    @property
    def has_begun(self) -> bool:
        """Whether somebody was waited for since the last `renew`."""
        return self._ends is not None

    @property
    def is_at_end(self) -> bool:
        return self._ends is not None and monotonic() >= self._ends

    def wait(self, busy: agent_errors.Busy) -> None:
        """Pause before the agent is asked again: for what it asked for at least, but not beyond the end."""
        if self._ends is None:
            self._ends = monotonic() + self.seconds
        least = min(busy.retry_after * self._longer, _MAX_PAUSE)
        self._longer *= _GROWTH
        step = least * random.uniform(1, 1 + _JITTER)  # noqa: S311 -- no secret
        self._pause(max(0.0, min(step, self._ends - monotonic())))

    def renew(self) -> None:
        """Something of the disk came: the next waiting is a new one."""
        self._ends = None
        self._longer = 1.0
