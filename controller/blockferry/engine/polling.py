"""
How long to wait for the engine, and how often to look.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator

from blockferry import errors

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
GROWTH = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadlines:
    """
    Seconds that each step may take before we give up on it.

    conflict: for locks to pass before a backup starts or a checkpoint goes (409).
    ready: from the start of a backup until its disks can be read; hybrid makes a snapshot meanwhile.
    transfer: from the start of a transfer until its ticket can be used.
    transfer_end: for a transfer to end; Image I/O alone may wait 60 s for a connection that still reads.
    finalize: for a backup to end; hybrid merges its snapshot, which takes as long as the guest wrote much.
    give_up: the same after a failure, when nobody needs the outcome.
    linger: to see then whether the engine is done with it soon; it goes on by itself.
    outage: how long the engine may be away (a restart takes a minute or two) once a backup runs.
    ovf: for a VM's configuration to be readable.
    checkpoint: for a checkpoint to be removed.
    """

    conflict: float = 300
    ready: float = 600
    transfer: float = 120
    transfer_end: float = 180
    finalize: float = 3600
    give_up: float = 300
    linger: float = 10
    outage: float = 300
    ovf: float = 30
    checkpoint: float = 300


class Patience:
    """
    The patience of threads that wait for the engine: it can be ended, by any thread, and stays so.

    Waits that clean up have none of it: they must come to their end.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()

    def end(self) -> None:
        """Let those who wait with it raise Interrupted, at once."""
        self._ended.set()

    def pause(self, seconds: float) -> None:
        """Wait. Raises Interrupted."""
        if self._ended.wait(seconds):
            raise errors.Interrupted("The waiting for the engine was stopped.")


def ticks(seconds: float, patience: Patience | None = None) -> Iterator[None]:
    """
    Yield at once, then after growing pauses, and for the last time when `seconds` have passed.

    A caller that finds what it waits for leaves the loop; one that falls out of it was too late. Raises Interrupted
    when the patience ends before.
    """
    wait = patience.pause if patience else time.sleep
    end = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while True:
        yield
        left = end - time.monotonic()
        if left <= 0:
            return
        wait(min(pause, left))
        pause = min(pause * GROWTH, LONGEST_PAUSE)
