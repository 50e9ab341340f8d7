"""Signs of life: how often, for how long, and what when one fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from blockferry_agent import errors
from blockferry_agent.imageio import Ticket
from blockferry_agent.keepalive import KeepAlive

TICKET = Ticket("11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000", "nbd:unix:/x", 512)
OTHER = TICKET._replace(id="33333333-0000-4000-8000-000000000000")
INTERVAL = 0.05
LONG = 3600.0


class Touches:
    """What Image I/O hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, ticket_id: str) -> None:
        self.heard.append(ticket_id)


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def beating() -> int:
    return sum(thread.name == "keepalive" for thread in threading.enumerate())


def test_it_beats_at_once_and_then_again_until_nobody_holds_the_ticket() -> None:
    touches = Touches()
    keepalive = KeepAlive(touches, INTERVAL)
    started = time.monotonic()
    with keepalive.hold(TICKET):
        wait_until(lambda: len(touches.heard) == 1)
        assert time.monotonic() - started < 5
        wait_until(lambda: len(touches.heard) >= 4)
        assert time.monotonic() - started >= 3 * INTERVAL
    wait_until(lambda: beating() == 0)
    assert set(touches.heard) == {TICKET.id}


def test_all_readers_of_a_ticket_share_one_heart() -> None:
    touches = Touches()
    keepalive = KeepAlive(touches, LONG)
    with keepalive.hold(TICKET), keepalive.hold(TICKET):
        with keepalive.hold(TICKET), keepalive.hold(OTHER):
            wait_until(lambda: len(touches.heard) == 2)
            assert beating() == 2
        wait_until(lambda: beating() == 1)
    wait_until(lambda: beating() == 0)
    assert sorted(touches.heard) == [TICKET.id, OTHER.id]


def test_a_ticket_that_comes_back_soon_is_not_touched_again() -> None:
    touches = Touches()
    keepalive = KeepAlive(touches, LONG)
    for _ in range(3):
        with keepalive.hold(TICKET):
            wait_until(lambda: len(touches.heard) == 1)
    wait_until(lambda: beating() == 0)
    assert touches.heard == [TICKET.id]


def test_a_beat_that_fails_is_logged_without_the_ticket_and_is_followed_by_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = []

    def fail(ticket_id: str) -> None:
        failures.append(ticket_id)
        raise errors.TicketRefused("Image I/O answered 403.")

    with caplog.at_level(logging.WARNING), KeepAlive(fail, INTERVAL).hold(TICKET):
        wait_until(lambda: len(failures) >= 3)
    assert f"transfer {TICKET.transfer_id}: Image I/O answered 403." in caplog.text
    assert TICKET.id not in caplog.text


def test_a_touch_that_hangs_holds_nobody_up() -> None:
    release = threading.Event()
    started = time.monotonic()
    with KeepAlive(lambda ticket_id: release.wait(10) and None, LONG).hold(TICKET):
        pass
    assert time.monotonic() - started < 5
    release.set()
    wait_until(lambda: beating() == 0)
