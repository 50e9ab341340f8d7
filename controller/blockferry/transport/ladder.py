"""
The ladder: the transports in the order of the configuration, of which one at a time carries a disk.

    netcat ─▶ grpc ─▶ ssh ─▶ imageio        the first that answers carries the disk
       ▲        │ breaks in the middle
       └────────┘                           climb again from the top, go on from the blocks that are missing

From the top, because an agent that was upgraded comes back within seconds and is better than what is below it; for the
same reason the one that broke is waited for a little. To end at all, a transport that broke without having carried
anything since it was opened is left out for the rest of the disk, and so is one that broke more than MAX_BREAKS times.

An agent that is busy with other disks has not broken: it is waited for (`patience`), in steps that it asks for, while
the other ways to it are tried, and only then the last resort, Image I/O, gets the disk.

Nearly every error is one of the way. That a ticket is refused or the disk's server is gone may be so for the agent
alone (a socket that it may not see or open), and asking another way costs seconds, while it never reads anything wrong:
every block is checked when it arrives. Only these end the climb:

    ReadFailed, WriteFailed         the storage itself answered: it does so to everybody
    BitmapMissing                   the disk must be read whole, for which the backup begins again
    RepositoryError, Interrupted    not of the data path at all
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from blockferry import errors
from blockferry.transport.disk import Target
from blockferry.transport.patience import Patience
from blockferry_agent import errors as agent_errors
from blockferry_agent.units import MiB

# Times that one transport may break under one disk and be taken again.
MAX_BREAKS = 3

# Seconds for which an agent that was there before is waited for, and between two looks.
COMEBACK = 15.0
COMEBACK_PAUSE = 0.5

_OF_THE_DISK = (agent_errors.ReadFailed, agent_errors.WriteFailed, agent_errors.BitmapMissing)
_OF_NEITHER = (errors.RepositoryError, errors.Interrupted)


class OpenDisk(Protocol):
    """A disk that is open, for reading (`disk.Disk`) or for writing (`uploading.Upload`)."""

    def close(self) -> None: ...


D = TypeVar("D", bound=OpenDisk)
D_co = TypeVar("D_co", bound=OpenDisk, covariant=True)


class Way(Protocol[D_co]):
    """A transport (`disk.Transport`, `uploading.UploadTransport`)."""

    @property
    def name(self) -> str: ...

    @property
    def is_last_resort(self) -> bool: ...

    def open(self, target: Target) -> D_co: ...


class Opened(NamedTuple, Generic[D]):
    """
    A disk, and how it came to be opened.

    transport: name of the transport that carries it.
    why: why the better ones do not, and how the last one broke, a sentence each; empty for a first choice.
    """

    disk: D
    transport: str
    why: str


def _say_nothing(text: str) -> None:
    """Tell nobody."""


class Ladder(Generic[D]):
    """
    The ways to one disk. Used by one thread.

    transports: the best first.  pause: waits for so many seconds; what it raises ends the climb (`Stop.pause`).
    """

    def __init__(self, transports: Sequence[Way[D]], target: Target, pause: Callable[[float], None]) -> None:
        self._transports = transports
        self._target = target
        self._pause = pause
        self._patience = Patience(pause)
        # Who said last that he is busy, since a transport was opened.
        self._busy: agent_errors.Busy | None = None
        self._breaks: Counter[str] = Counter()
        self._left_out: set[str] = set()
        self._last_broken: str | None = None
        # The one that was there last, and is waited for a little when it is away.
        self._last_used: str | None = None
        # By transport: why it does not carry the disk, a sentence that names it, and the next step.
        self._reasons: dict[str, str] = {}
        self._hints: dict[str, str] = {}

    def open(self, say: Callable[[str], None] = _say_nothing) -> Opened[D]:
        """
        Open the disk through the first transport that answers and is not left out. The caller closes it.

        say: is told, once, when a busy agent is waited for: a sentence without its subject, which is the disk.

        Raises TransportError, with every transport's reason, when none does; ReadFailed when no way can help.
        """
        while True:
            if self._busy is not None:
                self._wait(self._busy, say)
            opened = self._climb()
            if opened is not None:
                return opened

    def _climb(self) -> Opened[D] | None:
        """Do so once; None when a busy agent is to be waited for."""
        self._busy = None
        for number, transport in enumerate(self._transports):
            if transport.name in self._left_out:
                continue
            if transport.is_last_resort and self._may_wait:
                return None
            try:
                disk = self._open(transport)
            except _OF_NEITHER:
                raise
            except _OF_THE_DISK as error:
                raise self._with_reasons(error) from error
            except agent_errors.Error as error:
                if isinstance(error, agent_errors.Busy):
                    self._busy = error
                # How it broke says more than that it is still away.
                if transport.name != self._last_broken:
                    self._note(transport.name, f"{transport.name}: {error.message}", error)
            else:
                return Opened(disk, transport.name, self._why(self._transports[:number]))
        if self._may_wait:
            return None
        raise self._exhausted()

    @property
    def _may_wait(self) -> bool:
        return self._busy is not None and not self._patience.is_at_end

    def _wait(self, busy: agent_errors.Busy, say: Callable[[str], None]) -> None:
        if not self._patience.has_begun:
            minutes = self._patience.seconds / 60
            say(f"waits for host {self._target.host_name}, for {minutes:.0f} minutes at most. {busy.message}")
        self._patience.wait(busy)

    def broke(self, opened: Opened[D], error: errors.Error, position: int, carried: bool) -> None:
        """
        Note that the open disk failed with `error`, so that `open` finds another way; raise it when there is none.

        position: bytes of the disk that are done.  carried: whether some of them came since it was opened.
        """
        name = opened.transport
        if isinstance(error, _OF_NEITHER):
            raise error
        if isinstance(error, _OF_THE_DISK):
            raise self._with_reasons(error) from error
        self._last_used = name
        if carried:
            self._patience.renew()
        if isinstance(error, agent_errors.Busy):
            self._was_busy(name, error)
            return
        self._breaks[name] += 1
        self._last_broken = name
        self._note(name, f"{name} broke at {position / MiB:.1f} MiB: {error.message}", error)
        if not carried or self._breaks[name] > MAX_BREAKS:
            self._left_out.add(name)

    def _was_busy(self, name: str, busy: agent_errors.Busy) -> None:
        """Note that a transport was opened, and its agent had no place for the disk."""
        self._note(name, f"{name}: {busy.message}", busy)
        if self._patience.is_at_end:
            self._left_out.add(name)
        else:
            self._busy = busy

    def _open(self, transport: Way[D]) -> D:
        """Open one transport; one that was there just now gets some time to come back."""
        give_up = time.monotonic() + (COMEBACK if transport.name == self._last_used else 0)
        while True:
            self._pause(0)
            try:
                return transport.open(self._target)
            except errors.AgentUnreachable:
                if time.monotonic() >= give_up:
                    raise
            self._pause(COMEBACK_PAUSE)

    def _note(self, name: str, reason: str, error: errors.Error) -> None:
        self._reasons[name] = reason
        self._hints[name] = error.hint

    def _why(self, better: Sequence[Way[D]]) -> str:
        names = [transport.name for transport in better]
        if self._last_broken is not None and self._last_broken not in names:
            names.append(self._last_broken)
        return " ".join(self._reasons[name] for name in names)

    def _with_reasons(self, error: errors.Error) -> errors.Error:
        """Return the same error, which tells also why the disk was not left to another way before."""
        hints = dict.fromkeys(hint for hint in (error.hint, *self._hints.values()) if hint)
        return type(error)(" ".join([error.message, *self._reasons.values()]), " ".join(hints))

    def _exhausted(self) -> errors.TransportError:
        host = f"host {self._target.host_name} ({self._target.host_address})"
        does = "carries the disk any further" if self._last_broken else "reaches the disk"
        reasons = " ".join(self._reasons[transport.name] for transport in self._transports)
        # What helps the best one helps most.
        hint = next((hint for hint in self._hints.values() if hint), "")
        return errors.TransportError(
            f"No transport {does} on {host}. {reasons}",
            hint or "Deploy the agent (blockferry agent deploy), or allow Image I/O's port from here.",
        )
