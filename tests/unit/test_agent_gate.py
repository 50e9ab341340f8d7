"""Limits of what is read at once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from blockferry_agent import errors, reader
from blockferry_agent.blocks import MAX_WINDOW, MIN_WINDOW
from blockferry_agent.gate import MAX_CONNECTIONS, MEMORY, Gate
from blockferry_agent.imageio import Ticket
from blockferry_agent.units import MiB

TICKET = Ticket("11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000", "nbd:unix:/x", 512)
OTHER = TICKET._replace(id="33333333-0000-4000-8000-000000000000")


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def test_reads_are_counted_and_limited() -> None:
    gate = Gate(max_reads=2, line_patience=0.01)
    with gate.read(1, MIN_WINDOW):
        with gate.read(1, MIN_WINDOW):
            assert gate.reads == 2
            with pytest.raises(errors.Busy, match="reads 2 disks already"), gate.read(1, MIN_WINDOW):
                pass
        assert gate.reads == 1
        with gate.read(1, MIN_WINDOW):
            pass
    assert gate.reads == 0


@pytest.mark.parametrize("window", [MIN_WINDOW, 1 * MiB, MAX_WINDOW])
def test_sixteen_readings_stay_within_the_memory(window: int) -> None:
    gate = Gate(max_reads=16, line_patience=0.001)
    taken = 0
    with gate.read(4, window) as alone:
        assert alone >= 1
    with contextlib.ExitStack() as readings:
        for _ in range(16):
            with contextlib.suppress(errors.Busy):
                workers = readings.enter_context(gate.read(4, window))
                assert 1 <= workers <= 4
                taken += reader.memory(workers, window)
        assert 0 < gate.reads <= 16
        assert taken <= MEMORY
    with gate.read(4, window) as workers:
        assert workers == alone, "not all memory was given back"


def test_who_waits_in_line_is_let_in_first_even_if_others_need_less() -> None:
    gate = Gate(max_reads=16, line_patience=10)
    order: list[int] = []

    def enter(window: int) -> None:
        with gate.read(1, window):
            order.append(window)

    large, small = (threading.Thread(target=enter, args=(window,)) for window in (MAX_WINDOW, MIN_WINDOW))
    with gate.read(4, MAX_WINDOW):
        large.start()
        wait_until(lambda: len(gate._line) == 1)
        small.start()
        wait_until(lambda: len(gate._line) == 2)
        assert order == []
    large.join()
    small.join()
    assert sorted(order) == [MIN_WINDOW, MAX_WINDOW]
    assert gate.reads == 0


def test_the_line_is_not_endless_and_ends_when_the_agent_stops() -> None:
    gate = Gate(max_reads=1, line_patience=10)
    refused = threading.Event()

    def wait() -> None:
        with pytest.raises(errors.Busy, match="is stopping"), gate.read(1, MIN_WINDOW):
            pass
        refused.set()

    waiting = threading.Thread(target=wait)
    with gate.read(1, MIN_WINDOW):
        waiting.start()
        wait_until(lambda: len(gate._line) == 1)
        with pytest.raises(errors.Busy, match="reads 1 disks already"), gate.read(1, MIN_WINDOW):
            pass
        gate.close()
        assert refused.wait(5)
    waiting.join()


def test_connections_to_one_disk_are_limited() -> None:
    gate = Gate(1, connection_patience=0.01)
    with gate.connections(TICKET, MAX_CONNECTIONS - 1), gate.connections(TICKET, 1):
        with pytest.raises(errors.Busy, match=TICKET.transfer_id), gate.connections(TICKET, 1):
            pass
        with gate.connections(OTHER, MAX_CONNECTIONS):
            pass
    with gate.connections(TICKET, MAX_CONNECTIONS):
        pass


def test_connections_that_are_about_to_be_given_back_are_waited_for() -> None:
    gate = Gate(1, connection_patience=10)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with gate.connections(TICKET, MAX_CONNECTIONS):
            entered.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(10)
    threading.Timer(0.05, leave.set).start()
    with gate.connections(TICKET, 1):
        assert leave.is_set()
    holder.join()
