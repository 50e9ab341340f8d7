"""Pauses grow and end at the deadline."""

from __future__ import annotations

import threading
import time

import pytest

from blockferry import errors
from blockferry.engine import polling


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def test_pauses_grow_from_a_tenth_to_two_seconds(clock: Clock) -> None:
    assert sum(1 for _ in polling.ticks(60)) == len(clock.pauses) + 1
    assert clock.pauses[:3] == pytest.approx([0.1, 0.15, 0.225])
    assert max(clock.pauses) == 2
    assert clock.pauses[:-1] == sorted(clock.pauses[:-1])


def test_the_last_look_is_at_the_deadline(clock: Clock) -> None:
    looks = [clock.now - 1000 for _ in polling.ticks(5)]
    assert looks[0] == 0
    assert looks[-1] == pytest.approx(5)


def test_a_slow_caller_gets_no_more_looks(clock: Clock) -> None:
    looks = 0
    for _ in polling.ticks(5):
        looks += 1
        clock.now += 10
    assert looks == 1


def test_patience_that_ends_wakes_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "FIRST_PAUSE", 60)
    monkeypatch.setattr(polling, "LONGEST_PAUSE", 60)
    patience = polling.Patience()
    started = time.monotonic()
    with pytest.raises(errors.Interrupted):
        for _ in polling.ticks(60, patience):
            threading.Timer(0.01, patience.end).start()
    assert time.monotonic() - started < 30
    with pytest.raises(errors.Interrupted):
        list(polling.ticks(60, patience))


def test_patience_that_lasts_changes_nothing() -> None:
    assert len(list(polling.ticks(0.2, polling.Patience()))) == 3
