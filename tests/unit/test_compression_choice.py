"""Compression on the wire: tried where the link is slow, kept where it helps."""

from __future__ import annotations

import pytest

from blockferry.jobs import compression
from blockferry.jobs.compression import ENOUGH, LOOK_AGAIN, Auto, Choice, Measured
from blockferry_agent.units import GiB, MiB

CONTENT = 128 * MiB


class Link:
    """
    A link, with an agent that compresses.

    speed: bytes per second.  ratio: what is left of a block that was compressed.  compressor: bytes per second.
    """

    def __init__(self, speed: float, ratio: float = 1.0, compressor: float = 500 * MiB) -> None:
        self.speed = speed
        self.ratio = ratio
        self.compressor = compressor

    def carry(self, choice: Choice, requests: int) -> list[bool]:
        """Carry requests; return which of them were compressed."""
        asked = []
        for _ in range(requests):
            asked.append(choice.compress)
            choice.learn(self._measure(choice.compress))
        return asked

    def _measure(self, compressed: bool) -> Measured:
        on_the_link = CONTENT * (self.ratio if compressed else 1) / self.speed
        at_work = CONTENT / self.compressor if compressed else CONTENT / (2 * GiB)
        seconds = max(on_the_link, at_work)
        return Measured(compressed, CONTENT, seconds, waited=0.9 * seconds, stalled=max(0.0, seconds - at_work))


def test_fixed_settings_learn_nothing() -> None:
    assert Link(10 * MiB, 0.1).carry(compression.choice("off"), 9) == [False] * 9
    assert Link(10 * GiB, 1.0).carry(compression.choice("zstd"), 9) == [True] * 9


def test_slow_link_gets_compressed_blocks() -> None:
    assert Link(50 * MiB, 0.4).carry(compression.choice("auto"), 5) == [False, True, True, True, True]


def test_blocks_that_do_not_shrink_are_left_alone() -> None:
    asked = Link(50 * MiB, 0.99).carry(Auto(), 2 * LOOK_AGAIN + 4)
    assert asked == [False, True, *[False] * (LOOK_AGAIN + 1), True, *[False] * LOOK_AGAIN]


@pytest.mark.parametrize("speed", [400 * MiB, 2 * GiB])
def test_fast_link_is_not_tried(speed: float) -> None:
    assert not any(Link(speed, 0.1).carry(Auto(), 40))


def test_slow_processor_is_no_gain() -> None:
    asked = Link(100 * MiB, 0.3, compressor=60 * MiB).carry(Auto(), LOOK_AGAIN)
    assert asked.count(True) == 1


def test_link_that_becomes_fast_is_noticed() -> None:
    auto = Auto()
    Link(50 * MiB, 0.4).carry(auto, 3)
    asked = Link(2 * GiB, 0.4).carry(auto, LOOK_AGAIN + 4)
    assert asked.count(True) == LOOK_AGAIN
    assert not any(asked[LOOK_AGAIN:])


def test_link_that_stays_slow_is_looked_at_again_now_and_then() -> None:
    asked = Link(50 * MiB, 0.4).carry(Auto(), 1 + 1 + 2 * (LOOK_AGAIN + 2))
    assert asked.count(False) == 3


@pytest.mark.parametrize(
    ("waited", "stalled"),
    [(0.9, 0.1), (0.1, 0.9)],
    ids=["the disk is slow", "the repository is slow"],
)
def test_what_is_not_slow_by_the_link_is_not_tried(waited: float, stalled: float) -> None:
    auto = Auto()
    auto.learn(Measured(False, CONTENT, 10.0, 10 * waited, 10 * stalled))
    assert not auto.compress


def test_little_content_tells_nothing() -> None:
    auto = Auto()
    auto.learn(Measured(False, ENOUGH - 1, 10.0, 9.0, 9.0))
    auto.learn(Measured(False, 0, 0.0, 0.0, 0.0))
    assert not auto.compress
    auto.learn(Measured(False, ENOUGH, 10.0, 9.0, 9.0))
    assert auto.compress
