"""One thing done on many hosts: in their order, one that fails beside those that do not."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from blockferry import errors
from blockferry.jobs import fleet
from blockferry.jobs.fleet import Turn

HOSTS = [(f"host{number}", number) for number in range(6)]


class Board(fleet.Unseen):
    def __init__(self) -> None:
        self.ended: dict[str, bool] = {}

    def end(self, host_name: str, text: str, failed: bool) -> None:
        self.ended[host_name] = failed


def fails_at(*numbers: int) -> object:
    def work(number: int, turn: Turn) -> int:
        if number in numbers:
            raise errors.DeployError(f"{turn.host_name} is on fire.")
        return number * 10

    return work


def test_one_that_fails_does_not_stop_the_others() -> None:
    board = Board()
    outcomes = fleet.side_by_side(HOSTS, fails_at(2), board, 3)  # type: ignore[arg-type]
    assert [outcome.result for outcome in outcomes] == [0, 10, None, 30, 40, 50]
    assert str(fleet.failure(outcomes)) == "host2 is on fire."
    assert board.ended == {name: number == 2 for name, number in HOSTS}


def test_never_more_at_once_than_allowed() -> None:
    lock, under_way, most = threading.Lock(), 0, 0
    full = threading.Barrier(2, timeout=10)

    def work(number: int, turn: Turn) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        full.wait()
        with lock:
            under_way -= 1

    fleet.side_by_side(HOSTS, work, fleet.Unseen(), 2)
    assert most == 2


def test_what_is_wrong_everywhere_breaks_only_one() -> None:
    outcomes = fleet.first_alone(HOSTS, fails_at(0, 1, 2, 3), fleet.Unseen(), 3)  # type: ignore[arg-type]
    assert [outcome.begun for outcome in outcomes] == [True, False, False, False, False, False]


def test_the_first_failure_of_a_wave_is_the_last() -> None:
    outcomes = fleet.first_alone(HOSTS, fails_at(2), fleet.Unseen(), 1)  # type: ignore[arg-type]
    assert [outcome.result for outcome in outcomes] == [0, 10, None, None, None, None]
    assert [outcome.begun for outcome in outcomes] == [True, True, True, False, False, False]


def test_going_on_all_the_same() -> None:
    outcomes = fleet.first_alone(HOSTS, fails_at(0, 2), fleet.Unseen(), 2, keep_going=True)  # type: ignore[arg-type]
    assert [outcome.result for outcome in outcomes] == [None, 10, None, 30, 40, 50]


def test_a_signal_lets_those_that_have_begun_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = threading.Event()

    class Interrupting(Board):
        def note(self, text: str) -> None:
            interrupted.set()

    def work(number: int, turn: Turn) -> int:
        if number == 0:
            # As Ctrl-C does, in the main thread, which waits for results.
            time.sleep(0.2)  # the main thread waits for results by now
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert interrupted.wait(10)
        with pytest.raises(errors.Interrupted):
            turn.pause(10)
        return number

    board = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        fleet.side_by_side(HOSTS, work, board, 2)
    assert set(board.ended) == {"host0", "host1"}, "others have begun"
