"""Limits of what is read at once."""

from __future__ import annotations

import threading

import pytest

from blockferry_agent import errors
from blockferry_agent.gate import MAX_CONNECTIONS, Gate
from blockferry_agent.imageio import Ticket

TICKET = Ticket("11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000", "nbd:unix:/x", 512)
OTHER = TICKET._replace(id="33333333-0000-4000-8000-000000000000")


def test_reads_are_counted_and_limited() -> None:
    gate = Gate(max_reads=2)
    with gate.read():
        with gate.read():
            assert gate.reads == 2
            with pytest.raises(errors.Busy, match="reads 2 disks already"), gate.read():
                pass
        assert gate.reads == 1
        with gate.read():
            pass
    assert gate.reads == 0


def test_connections_to_one_disk_are_limited() -> None:
    gate = Gate(1, patience=0.01)
    with gate.connections(TICKET, MAX_CONNECTIONS - 1), gate.connections(TICKET, 1):
        with pytest.raises(errors.Busy, match=TICKET.transfer_id), gate.connections(TICKET, 1):
            pass
        with gate.connections(OTHER, MAX_CONNECTIONS):
            pass
    with gate.connections(TICKET, MAX_CONNECTIONS):
        pass


def test_connections_that_are_about_to_be_given_back_are_waited_for() -> None:
    gate = Gate(1, patience=10)
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
