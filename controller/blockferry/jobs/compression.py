"""
Whether blocks are compressed on their way: as the configuration says, or where it is measured to be faster.

A block that is compressed needs less of the link and more of the host's processor. So `Auto` tries it only where the
link is what everybody waits for, one request long, and keeps what brought more content per second:

    plain ─▶ plain, slow link ─▶ compressed ─▶ the faster one, LOOK_AGAIN times ─▶ the other one ─▶ …
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from blockferry.config import Compression
from blockferry_agent.units import MiB

# Requests for which a decision holds.
LOOK_AGAIN = 16

# Bytes of content, below which a request tells nothing about speed.
ENOUGH = 16 * MiB

# Bytes of content per second. One core compresses some 500 MiB/s, and a faster link than this gains little.
SLOW = 300 * MiB

# Share of the time for which both sides must have waited for the link.
MOST = 0.5

# How much faster compressed blocks must come to be worth the processor time on the host.
GAIN = 1.1


class Measured(NamedTuple):
    """
    What one request was like.

    compressed: whether that was asked for.  moved: bytes of content, before compression.  seconds: from begin to end.
    waited: seconds of them in which the controller had nothing to do.  stalled: those in which the agent had nothing.
    """

    compressed: bool
    moved: int
    seconds: float
    waited: float
    stalled: float

    @property
    def rate(self) -> float:
        """Bytes of content per second."""
        return self.moved / self.seconds

    @property
    def link_is_slow(self) -> bool:
        """Whether the link is what held it up."""
        return min(self.waited, self.stalled) > MOST * self.seconds and self.rate < SLOW


class Choice(Protocol):
    """Decides for one disk and one transport. Used by one thread."""

    @property
    def compress(self) -> bool:
        """Whether the next request should ask for compressed blocks."""

    def learn(self, measured: Measured) -> None:
        """A request ended well."""


def choice(setting: Compression) -> Choice:
    """Return what decides, by the configuration."""
    return Auto() if setting == "auto" else Fixed(setting == "zstd")


class Fixed:
    """What the operator decided."""

    def __init__(self, compress: bool) -> None:
        self.compress = compress

    def learn(self, measured: Measured) -> None:
        """Nothing is to be learned."""


class Auto:
    """What is faster."""

    def __init__(self) -> None:
        self.compress = False
        self._kept = False
        self._kept_rate = 0.0
        self._left = 0

    def learn(self, measured: Measured) -> None:
        """See `Choice.learn`."""
        if measured.moved < ENOUGH:
            return
        if measured.compressed != self._kept:
            self._decide(measured)
            return
        self._kept_rate = measured.rate
        self._left -= 1
        if self._left < 0 and (self._kept or measured.link_is_slow):
            self.compress = not self._kept

    def _decide(self, trial: Measured) -> None:
        """The other way was tried: keep the better one for a while."""
        if trial.compressed:
            self._kept = trial.rate > GAIN * self._kept_rate
        else:
            self._kept = self._kept_rate > GAIN * trial.rate
        self._left = LOOK_AGAIN
        self.compress = self._kept
