"""Limits of what is read at once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from blockferry_agent import errors, reader
from blockferry_agent.blocks import MAX_WINDOW, MIN_WINDOW
from blockferry_agent.gate import MAX_CONNECTIONS, MAX_LOOKUPS, MEMORY, Gate
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


class Reads:
    """Threads of several callers that wait for a place, hold it, and go when they are told to."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.inside: list[str] = []
        self.refused: list[str] = []
        self._leave: list[threading.Event] = []
        self._threads: list[threading.Thread] = []

    def start(self, caller: str) -> None:
        thread = threading.Thread(target=self._read, args=(caller,))
        self._threads.append(thread)
        seen = (len(self.gate._line), len(self.inside), len(self.refused))
        thread.start()
        wait_until(lambda: (len(self.gate._line), len(self.inside), len(self.refused)) != seen)

    def end_one(self) -> None:
        """The one that came in first goes."""
        seen = len(self.inside)
        self._leave.pop(0).set()
        wait_until(lambda: len(self.inside) > seen or not self.gate._line)

    def end(self) -> None:
        self.gate.close()
        for leave in self._leave:
            leave.set()
        for thread in self._threads:
            thread.join(10)

    def _read(self, caller: str) -> None:
        leave = threading.Event()
        try:
            with self.gate.read(1, MIN_WINDOW, caller):
                self._leave.append(leave)
                self.inside.append(caller)
                leave.wait(10)
        except errors.Busy:
            self.refused.append(caller)


@pytest.fixture
def crowd() -> Iterator[Reads]:
    reads = Reads(Gate(max_reads=4, line_patience=10))
    yield reads
    reads.end()


def test_places_are_shared_evenly_among_controllers(crowd: Reads) -> None:
    """One controller was first, and wants more than there is; the other gets its half as places become free."""
    for _ in range(7):
        crowd.start("first")
    assert crowd.inside == ["first"] * 4
    crowd.start("second")  # the last place in line
    crowd.end_one()
    assert crowd.inside[4:] == ["second"], "before those who waited longer"
    crowd.end_one()
    assert crowd.inside[5:] == ["first"], "nobody else waits"


def test_a_full_line_makes_room_for_a_controller_that_has_no_place_in_it(crowd: Reads) -> None:
    for _ in range(8):
        crowd.start("greedy")
    crowd.start("modest")
    wait_until(lambda: crowd.refused == ["greedy"])
    crowd.start("greedy")
    assert crowd.refused == ["greedy", "greedy"]
    crowd.end_one()
    assert crowd.inside[4:] == ["modest"]


def test_it_closes_for_an_upgrade_only_when_nobody_reads_or_did_so_a_moment_ago() -> None:
    gate = Gate(max_reads=1, lull=0.05)
    with gate.read(1, MIN_WINDOW):
        assert not gate.close_if_idle()
    assert not gate.close_if_idle(), "the next call of the same disk is on its way"
    wait_until(gate.close_if_idle)
    assert gate.closed
    with pytest.raises(errors.Busy, match="is stopping"), gate.read(1, MIN_WINDOW):
        pass


def test_reads_that_begin_while_it_closes_are_read_to_their_end_or_refused() -> None:
    """No race: whoever is let in is in before the gate closes, and then it does not."""
    for _ in range(50):
        gate = Gate(max_reads=1, lull=0)
        start = threading.Barrier(2)
        was_in: list[bool] = []

        def read(gate: Gate = gate, start: threading.Barrier = start, was_in: list[bool] = was_in) -> None:
            start.wait()
            try:
                with gate.read(1, MIN_WINDOW):
                    was_in.append(not gate.closed)
            except errors.Busy:
                pass

        reader_thread = threading.Thread(target=read)
        reader_thread.start()
        start.wait()
        gate.close_if_idle()
        reader_thread.join(10)
        assert all(was_in), "it closed around a reading"


def test_lookups_of_one_ticket_are_limited() -> None:
    gate = Gate(1)
    with contextlib.ExitStack() as lookups:
        for _ in range(MAX_LOOKUPS):
            lookups.enter_context(gate.lookup("ticket"))
        with pytest.raises(errors.Busy, match="too many calls"), gate.lookup("ticket"):
            pass
        with gate.lookup("other"):
            pass
    with gate.lookup("ticket"):
        pass
